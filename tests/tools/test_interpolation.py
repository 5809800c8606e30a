"""tools/weight_diff.py interpolate: (1 - weight) * base + weight * tuned model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from in_process import RunTool
from safetensors.torch import load_file, save_file

SCRIPT = "tools/weight_diff.py"


@pytest.fixture
def tuned(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """Return a model that differs from the tiny checkpoint in every weight, in bfloat16, with two more words."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "tuned")
    torch.manual_seed(0)
    state = {
        name: (value + torch.randn_like(value)).bfloat16()
        for name, value in load_file(folder / "model.safetensors").items()
    }
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.ones(2, state[name].shape[1], dtype=torch.bfloat16)])
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    rows = len(state["lm_head.weight"])
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows, "dtype": "bfloat16"}))
    return folder


def interpolate(run_tool: RunTool, base: Path, tuned: Path, weight: float, target: Path, status: int = 0) -> str:
    folders = ("--path_raw", base, "--path_tuned", tuned, "--path_interpolated", target)
    done = run_tool(SCRIPT, "interpolate", *folders, "--weight", weight, status=status)
    return done.stderr if status else done.stdout


def test_weights_lie_between_base_and_tuned_model(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    base, other = load_file(tiny_checkpoint / "model.safetensors"), load_file(tuned / "model.safetensors")
    for weight in (0.0, 0.25, 1.0):
        target = tmp_path / f"between-{weight}"
        assert "x base + " in interpolate(run_tool, tiny_checkpoint, tuned, weight, target)
        result = load_file(target / "model.safetensors")
        assert result.keys() == other.keys()
        for name, value in result.items():
            known = len(base[name])
            expected = (1 - weight) * base[name].float() + weight * other[name][:known].float()
            assert value.dtype == torch.bfloat16
            torch.testing.assert_close(value[:known].float(), expected, rtol=2**-8, atol=1e-6)
            assert torch.equal(value[known:], other[name][known:])  # the base has no such rows
        if weight == 1:
            assert all(torch.equal(value, other[name]) for name, value in result.items())
        run = json.loads((target / "run.json").read_text())
        assert run["script"] == "tools/weight_diff.py interpolate"
        assert float(run["arguments"]["weight"]) == weight


def test_unsuitable_weight_or_model_is_refused(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    target = tmp_path / "between"
    for weight in (-0.1, 1.5):
        error = interpolate(run_tool, tiny_checkpoint, tuned, weight, target, 2)
        assert "is not between 0 (base) and 1 (tuned model)" in error
    state = load_file(tuned / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(state | {name: state[name].T.contiguous()}, tuned / "model.safetensors", {"format": "pt"})
    assert name in interpolate(run_tool, tiny_checkpoint, tuned, 0.5, target, 2)
    save_file(state | {name: state[name] * float("inf")}, tuned / "model.safetensors", {"format": "pt"})
    assert f"{name} holds NaN or infinity" in interpolate(run_tool, tiny_checkpoint, tuned, 0.5, target, 2)
    assert not target.exists()


def test_output_matrix_that_the_tuned_model_lacks_is_refused_unless_it_is_tied(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    state = load_file(tuned / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, tuned / "model.safetensors", {"format": "pt"})
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    target = tmp_path / "between"
    error = interpolate(run_tool, tiny_checkpoint, tuned, 0.5, target, 2)
    assert "the tuned model has no tensor lm_head.weight" in error
    assert not target.exists()
    base = shutil.copytree(tiny_checkpoint, tmp_path / "tied")
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    interpolate(run_tool, base, tuned, 0.5, target)
    assert load_file(target / "model.safetensors").keys() == state.keys()


def test_exact_diff_is_refused_as_tuned_model(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    diff = tmp_path / "diff"
    run_tool(SCRIPT, "make_diff", "--path_raw", tiny_checkpoint, "--path_tuned", tuned, "--path_diff", diff)
    error = interpolate(run_tool, tiny_checkpoint, diff, 0.5, tmp_path / "between", 2)
    assert "is an exact diff, not a model; recover the model" in error
