"""tools/checkpoint.py: verify finds changes, fingerprints do not depend on shards, compare reports differences."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_io.tensors import read_weights
from checkpoint_seals.seal_writer import hashed_weights, kind_of, write_seal
from conftest import REPOSITORY
from in_process import RunTool
from safetensors.torch import load_file, save_file

SCRIPT, DIFF = "tools/checkpoint.py", "tools/weight_diff.py"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def shard(source: Path, target: Path, count: int = 3) -> Path:
    """Write a copy of a checkpoint with its weights in several shards; return its folder."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    state = load_file(source / "model.safetensors")
    files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    places = {name: files[number % count] for number, name in enumerate(sorted(state, reverse=True))}
    for file in files:
        save_file({name: state[name] for name, place in places.items() if place == file}, target / file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return target


def test_seal_lists_files_parents_and_weights(folder: Path, tmp_path: Path, run_tool: RunTool) -> None:
    (folder / ".cache").mkdir()
    (folder / ".cache/hidden").write_text("not part of it")
    parent = shard(folder, tmp_path / "parent")
    run_tool(SCRIPT, "seal", folder, "--parents", parent)
    sealed = json.loads((folder / "checkpoint.json").read_text())
    assert sealed["kind"] == "full"
    assert set(sealed["files"]) == {path.name for path in folder.iterdir() if path.is_file()} - {"checkpoint.json"}
    assert sealed["parents"] == [{"name": "parent", "weights": sealed["weights"]}]
    assert "as sealed" in run_tool(SCRIPT, "verify", folder).stdout
    shown = run_tool(SCRIPT, "show", folder).stdout
    assert sealed["weights"] in shown
    assert "matches these weights" in shown
    first = (folder / "checkpoint.json").read_bytes()
    run_tool(SCRIPT, "seal", folder, "--parents", f"{parent},")
    assert (folder / "checkpoint.json").read_bytes() == first


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


READERS = {
    "make_diff": (DIFF, "make_diff", "--path_raw", "{base}", "--path_tuned", "{sealed}", "--path_diff"),
    "merge": (DIFF, "merge", "--path_zhixi", "{sealed}", "--path_lora", "{lora}", "--path_sfted"),
    "export": ("tools/export_hf_checkpoint.py", "--base_model", "{sealed}", "--lora_model", "{lora}", "--output_dir"),
    "template": ("tools/set_template.py", "--model_path", "{sealed}", "--template_path", "{jinja}", "--output_dir"),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_tools_refuse_folder_that_differs_from_its_seal(
    tiny_checkpoint: Path, adapter: Path, folder: Path, tmp_path: Path, run_tool: RunTool, reader: str
) -> None:
    run_tool(SCRIPT, "seal", folder)
    places = {
        "base": tiny_checkpoint, "sealed": folder, "lora": adapter,
        "jinja": REPOSITORY / "finetune/templates/alpaca.jinja",
    }  # fmt: skip
    command = [part.format(**places) for part in READERS[reader]]
    run_tool(*command, tmp_path / "good")
    flip(folder / "tokenizer.model")
    refused = run_tool(*command, tmp_path / "bad", status=2)
    assert f"error: {folder / 'tokenizer.model'} differs from its seal" in refused.stderr
    assert not list(tmp_path.glob("bad*"))


def test_seal_refuses_truncated_shard_and_keeps_old_seal_and_signature(folder: Path, run_tool: RunTool) -> None:
    run_tool(SCRIPT, "seal", folder)
    (folder / "model.sig").write_text("a signature")
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused = run_tool(SCRIPT, "seal", folder, status=2)
    assert refused.stderr.startswith(f"error: {shard} is cut off or damaged") and refused.stderr.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "one bit of the weights": (lambda f: flip(f / "model.safetensors"), ["model.safetensors differs from its seal"]),
    "one bit of the tokenizer": (lambda f: flip(f / "tokenizer.model"), ["tokenizer.model differs from its seal"]),
    "cut off": (lambda f: (f / "config.json").write_text("{"), ["config.json has 1 bytes, the seal says"]),
    "missing": (lambda f: (f / "tokenizer.json").unlink(), ["tokenizer.json, which the seal lists, is missing"]),
    "unlisted file": (lambda f: (f / "chat_template.jinja").write_text(""), ["chat_template.jinja is not in the seal"]),
    "no seal": (lambda f: (f / "checkpoint.json").unlink(), ["has no checkpoint.json", "tools/checkpoint.py seal"]),
    "seal damaged": (lambda f: (f / "checkpoint.json").write_text("{"), ["checkpoint.json is damaged"]),
    "seal empty": (lambda f: (f / "checkpoint.json").write_text("{}"), ["checkpoint.json has no list of files"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_verify_names_changed_missing_and_unsealed_files(folder: Path, run_tool: RunTool, change: str) -> None:
    write_seal(folder, [])
    spoil, expected = CHANGES[change]
    spoil(folder)
    done = run_tool(SCRIPT, "verify", folder, status=2)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for part in expected:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("files", 7), ("files", {"config.json": 7}), ("files", {"config.json": {"blake3": "x"}}),
        ("files", {"config.json": {"blake3": 1, "size": 2}}), ("parents", {}), ("parents", [7]), ("tensors", [1]),
    ],
)  # fmt: skip
def test_damaged_seal_is_refused_in_one_line(folder: Path, run_tool: RunTool, key: str, value: object) -> None:
    write_seal(folder, [])
    seal = folder / "checkpoint.json"
    seal.write_text(json.dumps(json.loads(seal.read_text()) | {key: value}))
    for command in ("verify", "show"):
        done = run_tool(SCRIPT, command, folder, status=2)
        assert done.stderr.count("\n") == 1 and "checkpoint.json" in done.stderr


def test_kind_is_inferred_from_files(folder: Path, tmp_path: Path) -> None:
    assert kind_of(folder) == "full"
    (folder / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    assert kind_of(folder) == "quantised"
    (folder / "adapter_config.json").write_text("{}")
    assert kind_of(folder) == "adapter"
    (folder / "diff.json").write_text("{}")
    assert kind_of(folder) == "diff"


def test_resharded_weights_compare_equal(folder: Path, tmp_path: Path, run_tool: RunTool) -> None:
    other = shard(folder, tmp_path / "shards")
    assert hashed_weights(folder)[1] == hashed_weights(other)[1]
    assert run_tool(SCRIPT, "compare", folder, other).stdout.startswith("equal: ")


def test_compare_reports_distance_of_different_weights(folder: Path, tmp_path: Path, run_tool: RunTool) -> None:
    state = load_file(folder / "model.safetensors")
    other = shutil.copytree(folder, tmp_path / "other")
    changed = {name: value.clone() for name, value in state.items()}
    changed["model.norm.weight"][5] += 0.25
    changed["model.layers.0.self_attn.q_proj.weight"][1, 2] += 0.125
    save_file(changed, other / "model.safetensors")
    done = run_tool(SCRIPT, "compare", folder, other, status=1)
    assert done.stdout.startswith("different: 2 of ")
    assert "in 2 of " in done.stdout
    assert "largest difference 0.25 in model.norm.weight" in done.stdout
    changed["model.norm.weight"][5] = float("nan")
    changed.pop("lm_head.weight")
    changed["model.embed_tokens.weight"] = changed["model.embed_tokens.weight"].half()
    changed["model.layers.0.self_attn.q_proj.weight"] = torch.ones(3)
    save_file(changed, other / "model.safetensors")
    done = run_tool(SCRIPT, "compare", folder, other, status=1)
    assert "largest difference inf in model.norm.weight" in done.stdout
    assert f"lm_head.weight is only in {folder}" in done.stdout
    assert "model.embed_tokens.weight is F32 [800, 64] and F16 [800, 64]" in done.stdout
    assert "q_proj.weight is F32 [64, 64] and F32 [3]" in done.stdout


def test_compare_counts_signed_zeros_as_different_and_equal_nan_as_equal(
    folder: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    """Weights are compared bit by bit."""
    for name, zero in (("a", 0.0), ("b", -0.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.tensor([float("nan"), zero])}, tmp_path / name / "model.safetensors")
    done = run_tool(SCRIPT, "compare", tmp_path / "a", tmp_path / "b", status=1)
    assert done.stdout.startswith("different: 1 of 2 parameters")
    assert run_tool(SCRIPT, "compare", tmp_path / "a", tmp_path / "a").stdout.startswith("equal")


@pytest.mark.parametrize("command", ["seal", "verify", "show"])
def test_checkpoint_refuses_missing_folder_missing_weights_and_unknown_option(
    tmp_path: Path, run_tool: RunTool, command: str
) -> None:
    done = run_tool(SCRIPT, command, tmp_path / "none", status=2)
    taken = "seal takes a local checkpoint folder\n" if command == "seal" else ""
    assert f"{tmp_path / 'none'} is not a folder; {taken}" in done.stderr
    done = run_tool(SCRIPT, command, tmp_path, status=2)
    assert str(tmp_path) in done.stderr
    done = run_tool(SCRIPT, command, tmp_path, "--quick", status=2)
    assert "unknown option --quick" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_verify_names_tensor_of_flipped_bit(tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    run_tool("tools/checkpoint.py", "seal", folder)
    sealed = json.loads((folder / "checkpoint.json").read_text())
    assert sealed["files"]["model.safetensors"].keys() == {"size", "blake3"}
    assert "model.norm.weight" in sealed["tensors"]
    tensor = read_weights(folder)["model.norm.weight"]
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[tensor.offset + 5] ^= 64
    (folder / "model.safetensors").write_bytes(content)
    done = run_tool("tools/checkpoint.py", "verify", folder, status=2)
    assert "model.safetensors differs from its seal (tensor model.norm.weight); download it again" in done.stderr
