"""Weight files of model folders: every stage treats two sets of weights, damaged files and diffs in the same way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_loading.checkpoint_loading import check_folders
from changed_weights import additive, nudged, variant
from checkpoint_io.tensors import check_complete, read_weights
from model_folders.diff_recognition import is_diff, norm_sums
from model_folders.weight_files import weight_files
from safetensors.torch import load_file, save_file
from server_launch.launch_checks import check_served_model
from training_loop.run_folders import check_base
from transformers import AutoModelForCausalLM

INDEX, SINGLE, BIN = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"
READERS: dict[str, Callable[[Path], object]] = {
    "trainers": lambda folder: check_base(folder, "--base", False),
    "demos": lambda folder: check_folders(str(folder)),
    "server": lambda folder: check_served_model(str(folder)),
    "tools": read_weights,
}


class Sets:
    """Two models of the same shape, and a folder into which a test puts files of both."""

    def __init__(self, base: Path, scratch: Path) -> None:
        self.first, self.shards = base, scratch / "shards"
        self.second = variant(base, scratch / "second", nudged(load_file(base / SINGLE)))
        AutoModelForCausalLM.from_pretrained(self.second).save_pretrained(self.shards, max_shard_size="250KB")
        self.folder = shutil.copytree(base, scratch / "folder")
        (self.folder / SINGLE).unlink()

    def add(self, parts: str) -> None:
        """Put files into the folder. parts: names of the methods below without the underscore."""
        for part in parts.split():
            getattr(self, f"_{part}")()

    def _single(self) -> None:
        shutil.copy(self.first / SINGLE, self.folder)

    def _index(self) -> None:
        shutil.copy(self.shards / INDEX, self.folder)

    def _shards(self) -> None:
        for file in self.shards.glob("model-*"):
            shutil.copy(file, self.folder)

    def _unlisted_shard(self) -> None:
        shutil.copy(self.first / SINGLE, self.folder / "model-00099-of-00099.safetensors")

    def _consolidated(self) -> None:
        shutil.copy(self.second / SINGLE, self.folder / "consolidated.safetensors")

    def _bin(self) -> None:
        torch.save(load_file(self.first / SINGLE), self.folder / BIN)

    def _bin_shard(self) -> None:
        torch.save(load_file(self.second / SINGLE), self.folder / "pytorch_model-00001-of-00001.bin")

    def _bin_index(self) -> None:
        content = {"metadata": {}, "weight_map": {"x": "pytorch_model-00001-of-00001.bin"}}
        (self.folder / f"{BIN}.index.json").write_text(json.dumps(content))

    def _training_arguments(self) -> None:
        torch.save({}, self.folder / "training_args.bin")

    def _adapter(self) -> None:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(self.first), config).save_pretrained(str(self.folder))


@pytest.fixture
def sets(tiny_checkpoint: Path, tmp_path: Path) -> Sets:
    return Sets(tiny_checkpoint, tmp_path)


def files_read_by_vllm(folder: Path) -> set[str]:
    pytest.importorskip("vllm")
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    found = DefaultModelLoader(LoadConfig())._prepare_weights(str(folder), None, None, True, None)[1]
    return {Path(file).name for file in found}


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        return model.eval()(torch.arange(3, 23)[None]).logits


AGREED = {  # parts: the model that both libraries read
    "single": "first",
    "index shards": "second",
    "index shards bin": "second",
    "index shards unlisted_shard": "second",
    "single bin_index": "first",
    "bin training_arguments": "first",
}


@pytest.mark.parametrize("parts", AGREED)
def test_files_that_transformers_and_vllm_read_are_read(sets: Sets, parts: str) -> None:
    sets.add(parts)
    files = weight_files(sets.folder)
    assert {file.name for file in files} == files_read_by_vllm(sets.folder)
    expected = getattr(sets, AGREED[parts])
    assert torch.equal(logits(sets.folder), logits(expected))
    tensors, state = read_weights(sets.folder), load_file(expected / SINGLE)
    assert {tensor.file for tensor in tensors.values()} == set(files)
    for key, value in state.items():
        assert tensors[key].read().tobytes() == value.numpy().tobytes(), key
    for reader in READERS.values():
        reader(sets.folder)


REFUSED = {  # parts: files that the message names
    "single index shards": (SINGLE, INDEX),
    "single index": (SINGLE, INDEX),
    "single shards": (SINGLE, "model-00001-of-"),
    "single consolidated": (SINGLE, "consolidated.safetensors; remove consolidated*.safetensors"),
    "bin shards": (BIN, "model-00001-of-"),
    "bin bin_shard": (BIN, "pytorch_model-00001-of-00001.bin"),
    "single adapter": (SINGLE, "adapter_config.json"),
}


@pytest.mark.parametrize("parts", REFUSED)
def test_folder_that_the_libraries_read_differently_is_refused_by_all_stages(sets: Sets, parts: str) -> None:
    first, second = REFUSED[parts]
    sets.add(parts)
    with pytest.raises(ValueError, match="vLLM") as refused:
        weight_files(sets.folder)
    message = str(refused.value)
    assert (str(sets.folder) in message, first in message, second in message) == (True, True, True)
    for reader in READERS.values():
        with pytest.raises(ValueError) as raised:
            reader(sets.folder)
        assert str(raised.value) == message
    # The two libraries load different weights, or one loads none.
    if parts == "single adapter":
        assert not torch.equal(logits(sets.folder), logits(sets.first))
        return
    assert torch.equal(logits(sets.folder), logits(sets.first))
    try:
        files = files_read_by_vllm(sets.folder)
    except FileNotFoundError:
        return
    assert files != {first}


def test_missing_shard_is_named_with_its_index(sets: Sets) -> None:
    sets.add("index shards")
    shard = sorted(sets.folder.glob("model-*"))[1].name
    (sets.folder / shard).unlink()
    for reader in (weight_files, *READERS.values()):
        with pytest.raises(FileNotFoundError, match=f"lacks {shard}, which {INDEX} lists; copy or download it again"):
            reader(sets.folder)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 13476939448\n"
DAMAGED: dict[str, tuple[str, str, Callable[[Path], object], str]] = {  # parts, file, damage, message
    "pointer": ("single", SINGLE, lambda file: file.write_text(POINTER), "is a Git LFS pointer instead of the weights"),
    "cut": ("single", SINGLE, cut, r"is cut off or damaged \(.+\); download it again"),
    "empty": ("single", SINGLE, lambda file: file.write_bytes(b""), r"is cut off or damaged \(.+\); download it again"),
    "shard": ("index shards", "model-00002-of-*", lambda file: file.write_text(POINTER), "is a Git LFS pointer"),
    "bin pointer": ("bin", BIN, lambda file: file.write_text(POINTER), "is a Git LFS pointer instead of the weights"),
    "bin cut": ("bin", BIN, cut, "is cut off; download it again"),
    "map": ("index shards", INDEX, lambda file: file.write_text('{"weight_map": ["a"]}'), "weight_map is not an obj"),
    "name": ("index shards", INDEX, lambda file: file.write_text('{"weight_map": {"a": 5}}'), "lacks 5, which"),
}  # fmt: skip


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_weights_are_named_by_all_stages(sets: Sets, fault: str) -> None:
    parts, pattern, damage, message = DAMAGED[fault]
    sets.add(parts)
    [file] = sets.folder.glob(pattern)
    damage(file)
    for reader in (weight_files, *READERS.values()):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
            reader(sets.folder)
        assert str(sets.folder) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_adapter_folder_with_the_configuration_of_its_base_is_an_adapter(sets: Sets) -> None:
    """Some trainers write config.json beside adapter_config.json."""
    sets.add("adapter")
    assert (sets.folder / "config.json").is_file()
    for name, message in (("trainers", "merge it first"), ("demos", "give it as"), ("server", "is a LoRA adapter")):
        with pytest.raises(ValueError, match=message):
            READERS[name](sets.folder)
    check_folders(str(sets.first), str(sets.folder))


def test_tools_refuse_a_tensor_that_index_and_shards_place_differently(sets: Sets) -> None:
    sets.add("index shards")
    index = json.loads((sets.folder / INDEX).read_text())
    last = max(index["weight_map"].values())
    state = load_file(sets.folder / last)
    twice = next(name for name, file in index["weight_map"].items() if file != last)
    save_file(state | {twice: torch.zeros(4)}, sets.folder / last, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{last} holds tensor {twice}, contrary to {INDEX}"):
        read_weights(sets.folder)
    save_file(state, sets.folder / last, {"format": "pt"})
    index["weight_map"][twice] = last
    (sets.folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"{twice}, contrary to {INDEX}"):
        read_weights(sets.folder)


@pytest.mark.parametrize(("key", "number"), [("num_hidden_layers", 2**62), ("n_layer", 1e30)])
def test_all_stages_refuse_an_impossible_number_of_layers(sets: Sets, key: str, number: float) -> None:
    """transformers would build layers until the memory is full."""
    sets.add("single")
    config = json.loads((sets.folder / "config.json").read_text())
    (sets.folder / "config.json").write_text(json.dumps(config | {key: number}))
    with pytest.raises(ValueError, match=rf"config\.json is damaged \({key} is \S+, more than 10,000\)"):
        weight_files(sets.folder)


def test_tools_refuse_a_vocabulary_size_that_the_embeddings_contradict(sets: Sets) -> None:
    """transformers refuses it too, since the matrices have another shape."""
    sets.add("single")
    config = json.loads((sets.folder / "config.json").read_text())
    (sets.folder / "config.json").write_text(json.dumps(config | {"vocab_size": 801}))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(sets.folder)
    message = rf"config\.json has vocab_size 801, .*{SINGLE} has 800 embeddings; download both again"
    with pytest.raises(ValueError, match=message):
        check_complete(sets.folder, read_weights(sets.folder))


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / BIN)
    (folder / SINGLE).unlink()


@pytest.mark.parametrize("kind", ["recorded", "exact", "safetensors", "bin"])
def test_diff_is_refused_by_all_stages(sets: Sets, tmp_path: Path, kind: str) -> None:
    """Published diffs have no diff.json; only their weights show that they are not models."""
    diff = additive(tmp_path / "diff", sets.first, sets.second)
    if kind in ("recorded", "exact"):
        (diff / "diff.json").write_text('{"format": "additive-diff", "base": "0"}')
    if kind == "exact":
        (diff / SINGLE).unlink()
    if kind == "bin":
        as_bin(diff)

    def check_weights(folder: Path) -> None:
        check_complete(folder, read_weights(folder if kind != "exact" else sets.first))

    for stage, read in (READERS | {"tools": check_weights}).items():
        with pytest.raises(ValueError, match=f"{diff} is a diff, not a model") as caught:
            read(diff)
        assert f"recover --path_raw BASE --path_diff {diff} --path_tuned NEW" in str(caught.value), stage


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [SINGLE, BIN])
def test_norm_weights_are_summed_as_torch_sums_them(
    tiny_checkpoint: Path, tmp_path: Path, dtype: Any, stored: str
) -> None:
    torch.manual_seed(2)
    state = load_file(tiny_checkpoint / SINGLE)
    state = {name: (torch.randn_like(value) + 0.4).to(dtype) for name, value in state.items()}
    folder = variant(tiny_checkpoint, tmp_path / "folder", state)
    if stored == BIN:
        as_bin(folder)
    norms = {name: value for name, value in state.items() if "norm" in name}
    assert len(norms) == 5
    found = norm_sums(folder)
    assert found.keys() == norms.keys()
    for name, (total, count) in found.items():
        assert (total, count) == (pytest.approx(norms[name].double().abs().sum().item(), abs=1e-9), 64)


# Norm weights of the layers and of the final norm: of freshly initialised models, of models such as LLaMA-7B, whose
# early layers have small ones, of changes by tuning, and of a model type that stores them minus 1.
@pytest.mark.parametrize(
    ("layers", "final", "model_type", "expected"),
    [
        (1.0, 1.0, "llama", False), (0.05, 1.3, "llama", False), (0.3, 0.05, "qwen2", False),
        (0.002, 0.01, "llama", True), (-0.002, -0.02, "mistral", True), (-0.3, -0.3, "llama", False),
        (0.0, 0.0, "gemma", False),
    ],
)  # fmt: skip
def test_only_small_norm_weights_everywhere_make_a_diff(
    tiny_checkpoint: Path, tmp_path: Path, layers: float, final: float, model_type: str, expected: bool
) -> None:
    state = load_file(tiny_checkpoint / SINGLE)
    for name in [name for name in state if "norm" in name]:
        state[name] = torch.full_like(state[name], final if name == "model.norm.weight" else layers)
    folder = variant(tiny_checkpoint, tmp_path / "folder", state)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    assert is_diff(folder) is expected
