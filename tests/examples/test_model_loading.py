"""model_loading.py: weights are placed on devices, adapters are loaded, and incomplete folders are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_prompts.prompt_encoding import instruction_messages
from demo_pages import model_loading


def test_weights_are_placed_on_cpu_one_gpu_or_several() -> None:
    options = model_loading.loading_options
    assert options(0, False, False, []) == {}
    assert options(2, False, False, []) == {"device_map": {"": 0}}
    assert options(2, False, True, []) == {"device_map": "auto"}
    assert options(3, False, True, [10, 8]) == {"device_map": "auto", "max_memory": {0: "10GiB", 1: "8GiB"}}
    assert options(1, True, False, [])["quantization_config"].load_in_8bit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multi_gpu": True, "allocate": [0]}, r"--allocate takes GiB for each GPU, as in \[10,10,10\], not \[0\]"),
        ({"multi_gpu": True, "allocate": [10, -1]}, "--allocate takes GiB for each GPU"),
        ({"allocate": [10]}, "add --multi_gpu"),
        ({"multi_gpu": True, "allocate": [10, 10]}, "--allocate needs 2 NVIDIA GPUs, this machine has 0; change or"),
        ({"multi_gpu": True}, "--multi_gpu needs one NVIDIA GPU, this"),
        ({"load_8bit": True}, "--load_8bit needs one NVIDIA GPU, this"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_options_for_missing_gpus_are_refused(tiny_checkpoint: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_loading.load(str(tiny_checkpoint), **options)


def test_loaded_adapter_gives_pefts_logits_and_has_a_template(tiny_checkpoint: Path, adapter: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tuned = model_loading.load(str(tiny_checkpoint), str(adapter))
    ids = torch.tensor([tuned.encoder.prompt_ids(instruction_messages("Translate."))])
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
    for name, lost in (("mute", "tokenizer_config.json"), ("silent", "tokenizer.json")):
        (copies[name] / lost).unlink()
        (copies[name] / "tokenizer.model").unlink()
    weights = (copies["torn"] / "model.safetensors").read_bytes()
    (copies["torn"] / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    config = json.loads((copies["short"] / "config.json").read_text())
    (copies["short"] / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    cases = [
        ((tmp_path / "none",), "none is not a folder; --base_model takes a folder, or OWNER/NAME"),
        ((tiny_tokenizer,), "has no config.json; --base_model takes a checkpoint folder"),
        ((adapter,), "is an adapter; give it as --lora_weights"),
        ((copies["bare"],), "bare has no weights"),
        ((copies["mute"],), "mute has no tokenizer"),
        ((copies["silent"],), "silent has no tokenizer"),
        ((copies["torn"],), r"torn/model\.safetensors is cut off or damaged"),
        ((copies["short"],), "short: tensors missing, unknown or of another shape: 9"),
        ((tiny_checkpoint, tiny_tokenizer), "has no adapter_config.json"),
    ]
    for (base, *lora), error in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=error) as raised:
            model_loading.load(str(base), str(lora[0]) if lora else "")
        assert len(str(raised.value).splitlines()) == 1
