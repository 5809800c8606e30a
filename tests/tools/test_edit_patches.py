"""tools/edit_knowledge.py: patches are applied, stacked and taken out again to the bit; faulty ones are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from changed_weights import bytes_of, left_behind, variant
from checkpoint_seals.seal_writer import hashed_weights
from edit_patches.edited_folders import open_model
from edit_patches.patch_files import write_patch_files
from in_process import RunTool
from knowledge_editing.matrix_updates import LowRank
from safetensors.torch import load_file

SCRIPT = "tools/edit_knowledge.py"
EDIT = {"prompt": "{} was born in", "subject": "Ann", "target_new": "Oslo", "before": "Rome.", "after": "Oslo."}
MakePatch = Callable[..., Path]


@pytest.fixture
def make_patch(tmp_path: Path) -> MakePatch:
    """Return a function that writes a patch with random factors of ranks 1 and 3 for a model."""

    def make(model: Path, name: str, size: float = 0.05) -> Path:
        base = open_model(model, "--base")
        random = np.random.default_rng(len(name))

        def factor(*shape: int) -> np.ndarray:
            return (random.standard_normal(shape) * size).astype(np.float32)

        shapes = {f"model.layers.{layer}.mlp.down_proj.weight": layer * 2 + 1 for layer in (0, 1)}
        updates = {each: LowRank(factor(64, rank), factor(rank, 128)) for each, rank in shapes.items()}
        folder = tmp_path / "patches" / name
        folder.mkdir(parents=True)
        record = {"name": name, "method": "rome", "options": {}, "layers": [0, 1], "base": base.base}
        write_patch_files(folder, record | {"below": base.below()}, updates, [EDIT], model)
        return folder

    return make


def weights_of(folder: Path) -> str:
    return hashed_weights(folder)[2]


def apply(run_tool: RunTool, base: Path, patch: Path, out: Path) -> Path:
    run_tool(SCRIPT, "apply", "--base", base, "--patch", patch, "--out", out)
    return out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_patches_are_taken_out_to_the_bit_in_any_order(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_patch: MakePatch, dtype: str
) -> None:
    import torch

    state = load_file(tiny_checkpoint / "model.safetensors")
    base = variant(
        tiny_checkpoint, tmp_path / "base", {name: each.to(getattr(torch, dtype)) for name, each in state.items()}
    )
    one, two, three = (make_patch(base, name) for name in ("a", "bb", "ccc"))
    first = apply(run_tool, base, one, tmp_path / "1")
    stacked = apply(run_tool, apply(run_tool, first, two, tmp_path / "12"), three, tmp_path / "123")
    run_tool(SCRIPT, "remove", "--base", stacked, "--patch", "bb", "--out", tmp_path / "13")
    assert bytes_of(tmp_path / "13") == bytes_of(apply(run_tool, first, three, tmp_path / "expected"))
    assert weights_of(tmp_path / "13") != weights_of(base)
    run_tool(SCRIPT, "remove", "--base", tmp_path / "13", "--patch", "a", "--out", tmp_path / "3")
    run_tool(SCRIPT, "remove", "--base", tmp_path / "3", "--patch", "ccc", "--out", tmp_path / "0")
    assert weights_of(tmp_path / "0") == weights_of(base)
    assert not (tmp_path / "0/patches").exists()
    assert left_behind(tmp_path) == []


def test_edited_weights_equal_those_of_merging_the_patch_as_an_adapter(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_patch: MakePatch
) -> None:
    patch = make_patch(tiny_checkpoint, "a")
    edited = apply(run_tool, tiny_checkpoint, patch, tmp_path / "edited")
    options = ("--path_zhixi", tiny_checkpoint, "--path_lora", patch, "--path_sfted", tmp_path / "merged")
    run_tool("tools/weight_diff.py", "merge", *options)
    assert bytes_of(edited) == bytes_of(tmp_path / "merged")


def test_peft_reads_a_patch_as_an_adapter(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_patch: MakePatch
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    patch = make_patch(tiny_checkpoint, "a")
    edited = AutoModelForCausalLM.from_pretrained(apply(run_tool, tiny_checkpoint, patch, tmp_path / "edited"))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), patch)
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(model(input_ids=ids).logits, edited(input_ids=ids).logits, rtol=1e-2, atol=1e-2)


def test_list_prints_patches_with_answers_before_and_after(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_patch: MakePatch
) -> None:
    patch = make_patch(tiny_checkpoint, "a")
    edited = apply(run_tool, tiny_checkpoint, patch, tmp_path / "edited")
    for path in (edited, patch):
        printed = run_tool(SCRIPT, "list", path).stdout
        assert "a: 1 edits by rome in the layers 0, 1; base " in printed
        assert "'Ann was born in' -> 'Oslo'; before: 'Rome.'; after: 'Oslo.'" in printed


def test_patch_of_another_base_or_of_a_model_with_other_patches_is_refused(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool, make_patch: MakePatch
) -> None:
    patch = make_patch(tiny_checkpoint, "a")
    out = ("--out", tmp_path / "out")
    refused = run_tool(SCRIPT, "apply", "--base", tuned, "--patch", patch, *out, status=2)
    assert "belongs to the model with the weights" in refused.stderr
    edited = apply(run_tool, tiny_checkpoint, patch, tmp_path / "edited")
    refused = run_tool(SCRIPT, "apply", "--base", edited, "--patch", patch, *out, status=2)
    assert "is already in" in refused.stderr
    above = make_patch(edited, "bb")
    refused = run_tool(SCRIPT, "apply", "--base", tiny_checkpoint, "--patch", above, *out, status=2)
    assert "was made on top of a patch" in refused.stderr
    assert "apply that one first" in refused.stderr
    refused = run_tool(SCRIPT, "remove", "--base", edited, "--patch", "b", *out, status=2)
    assert "has no patch b; its patches: a" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["factors", "record", "name", "format"])
def test_damaged_patch_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_patch: MakePatch, damage: str
) -> None:
    patch = make_patch(tiny_checkpoint, "a")
    record = json.loads((patch / "patch.json").read_text())
    if damage == "factors":
        factors = bytearray((patch / "adapter_model.safetensors").read_bytes())
        factors[-5] ^= 1
        (patch / "adapter_model.safetensors").write_bytes(factors)
    else:
        record |= {"record": {"below": [3]}, "name": {"name": "../a"}, "format": {"format": "x"}}[damage]
        (patch / "patch.json").write_text(json.dumps(record))
    refused = run_tool(SCRIPT, "apply", "--base", tiny_checkpoint, "--patch", patch, "--out", tmp_path / "o", status=2)
    assert "has the format 'x'" in refused.stderr if damage == "format" else "is damaged" in refused.stderr


def test_edited_matrix_that_was_changed_afterwards_is_found_before_a_patch_is_removed(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_patch: MakePatch
) -> None:
    edited = apply(run_tool, tiny_checkpoint, make_patch(tiny_checkpoint, "a"), tmp_path / "edited")
    state = load_file(edited / "model.safetensors")
    state["model.layers.1.mlp.down_proj.weight"][0, 0] += 1
    changed = variant(edited, tmp_path / "changed", state)
    shutil.copytree(edited / "patches", changed / "patches", dirs_exist_ok=True)
    refused = run_tool(SCRIPT, "remove", "--base", changed, "--patch", "a", "--out", tmp_path / "out", status=2)
    assert "tensor model.layers.1.mlp.down_proj.weight was changed since the patches were applied" in refused.stderr
