"""model_loading.py: devices of the weights, adapters, and folders that are refused with one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from chat_prompts.prompt_encoding import one_turn
from demo_pages import model_loading


def test_weights_are_placed_on_cpu_one_gpu_or_several() -> None:
    assert model_loading.placement(False, [], 0) == {}
    assert model_loading.placement(False, [], 2) == {"device_map": {"": 0}}
    assert model_loading.placement(True, [], 2) == {"device_map": "auto"}
    assert model_loading.placement(True, [10, 8], 3) == {"device_map": "auto", "max_memory": {0: "10GiB", 1: "8GiB"}}
    with pytest.raises(ValueError, match="--allocate names 3 GPUs, this machine has 2"):
        model_loading.placement(True, [10, 10, 10], 2)
    with pytest.raises(ValueError, match="add --multi_gpu"):
        model_loading.placement(False, [10], 2)


@pytest.mark.parametrize("shares", [[0], [10, -1]])
def test_shares_below_one_gib_are_refused(tiny_checkpoint: Path, shares: list[int]) -> None:
    with pytest.raises(ValueError, match="--allocate takes GiB for each GPU"):
        model_loading.load(str(tiny_checkpoint), multi_gpu=True, allocate=shares)


def test_8_bit_without_gpu_is_refused() -> None:
    assert model_loading.quantisation(False, 0) == {}
    with pytest.raises(ValueError, match="--load_8bit needs an NVIDIA GPU"):
        model_loading.quantisation(True, 0)


def test_adapter_brings_its_weights_tokenizer_and_template(tiny_checkpoint: Path, adapter: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tuned = model_loading.load(str(tiny_checkpoint), str(adapter))
    ids = torch.tensor([tuned.encoder.prompt(one_turn("Translate."))])
    direct = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), adapter)
    assert tuned.tokenizer.chat_template
    with torch.no_grad():
        logits = tuned.model(ids).logits
        assert torch.equal(logits, direct(ids).logits)
        assert not torch.equal(logits, model_loading.load(str(tiny_checkpoint)).model(ids).logits)


def test_adapter_with_missing_extra_or_wider_tensor_is_refused(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    more = {first.replace("layers.0", "layers.7"): tensors[first].clone(), **tensors}
    less = {name: tensor for name, tensor in tensors.items() if name != first}
    wide = {name: torch.cat([tensor, tensor], dim=1) for name, tensor in tensors.items()}
    for name, changed in (("more", more), ("less", less), ("wide", wide)):
        shutil.copytree(adapter, tmp_path / name)
        save_file(changed, tmp_path / name / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=f"^{tmp_path / name}(: lora_A and lora_B of| changes| has only one of)"):
            model_loading.load(str(tiny_checkpoint), str(tmp_path / name))


def test_incomplete_folder_is_refused_with_one_line(
    tiny_checkpoint: Path, tiny_tokenizer: Path, adapter: Path, tmp_path: Path
) -> None:
    copies = {
        name: shutil.copytree(tiny_checkpoint, tmp_path / name) for name in ("bare", "mute", "silent", "torn", "short")
    }
    (copies["bare"] / "model.safetensors").unlink()
    (copies["mute"] / "tokenizer_config.json").unlink()
    (copies["silent"] / "tokenizer.json").unlink()
    weights = (copies["torn"] / "model.safetensors").read_bytes()
    (copies["torn"] / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    config = json.loads((copies["short"] / "config.json").read_text())
    (copies["short"] / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    cases = [
        ((tmp_path / "none",), "none does not exist; --base_model takes a checkpoint folder"),
        ((tiny_tokenizer,), "has no config.json; --base_model takes a checkpoint folder"),
        ((adapter,), "is an adapter; give it as --lora_weights"),
        ((copies["bare"],), "bare has no weights"),
        ((copies["mute"],), "mute has no tokenizer"),
        ((copies["silent"],), "silent has no tokenizer"),
        ((copies["torn"],), "torn cannot be loaded"),
        ((copies["short"],), "short: 9 tensors are missing, unknown or of another shape"),
        ((tiny_checkpoint, tiny_tokenizer), "has no adapter_config.json"),
    ]
    for (base, *lora), error in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=error) as raised:
            model_loading.load(str(base), str(lora[0]) if lora else "")
        assert len(str(raised.value).splitlines()) == 1
