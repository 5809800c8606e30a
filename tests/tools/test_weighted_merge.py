"""tools/weight_diff.py merge --weights: base + the weighted sum of the changes of several adapters."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from in_process import RunTool
from merged_adapters import CONFIGURATIONS, MakeAdapter
from safetensors.torch import load_file, save_file

SCRIPT = "tools/weight_diff.py"


def test_several_adapters_are_merged_with_their_weights(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_adapter: MakeAdapter
) -> None:
    """The result is base + 0.5 of one adapter's change + 2 times the other's; each change comes from a merge alone."""
    first, second = make_adapter()[0], make_adapter(r=2, target_modules=["q_proj", "o_proj"])[0]
    base = load_file(tiny_checkpoint / "model.safetensors")
    changes = {}
    for folder in (first, second):
        run_tool(
            SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", folder, "--path_sfted", tmp_path / "one"
        )
        changes[folder] = load_file(tmp_path / "one/model.safetensors")
        shutil.rmtree(tmp_path / "one")
    run_tool(
        SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", f"{first},{second}", "--weights", "0.5,2",
        "--path_sfted", tmp_path / "both",
    )  # fmt: skip
    merged = load_file(tmp_path / "both/model.safetensors")
    for name, value in base.items():
        expected = value + 0.5 * (changes[first][name] - value) + 2 * (changes[second][name] - value)
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(merged[name], changes[first][name]) for name in base)
    run = json.loads((tmp_path / "both/run.json").read_text())
    assert run["parents"].keys() == {"base", "adapter", "adapter1"}


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7), (1.0, 1.0)])
def test_weighted_adapters_are_added_to_base(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_adapter: MakeAdapter, weights: tuple[float, float]
) -> None:
    """Whole matrices, plain LoRA and DoRA; lm_head is whole in one adapter and has DoRA in the other."""
    one, first = make_adapter(modules_to_save=["lm_head", "embed_tokens"])
    dora = {"target_modules": ["lm_head", "q_proj"], "use_dora": True}
    original, second = make_adapter(**dora, modules_to_save=["embed_tokens", "norm"])
    two, embedding = shutil.copytree(original, tmp_path / "two"), "model.embed_tokens.weight"
    second = second | {embedding: second[embedding] + 0.1}  # differs from the first adapter's embedding
    state = load_file(two / "adapter_model.safetensors")
    save_file(state | {f"base_model.model.{embedding}": second[embedding]}, two / "adapter_model.safetensors")
    base = load_file(tiny_checkpoint / "model.safetensors")
    merge = (SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_sfted", tmp_path / "out", "--path_lora")
    run_tool(*merge, f"{one},{two}", "--weights", ",".join(map(str, weights)))
    merged = load_file(tmp_path / "out/model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert not torch.equal(base[name], second[name]), name
    for name, value in base.items():
        exact = value.double()
        for weight, adapted in zip(weights, (first, second), strict=True):
            exact = exact + weight * (adapted[name].double() - value.double())
        torch.testing.assert_close(merged[name].double(), exact, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_weight_of_one_equals_merge_without_weight(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_adapter: MakeAdapter, case: str
) -> None:
    adapter, _ = make_adapter(**CONFIGURATIONS[case])
    merge = (SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--path_sfted")
    run_tool(*merge, tmp_path / "plain")
    run_tool(*merge, tmp_path / "weighted", "--weights", 1)
    plain, weighted = (tmp_path / name / "model.safetensors" for name in ("plain", "weighted"))
    assert plain.read_bytes() == weighted.read_bytes()


@pytest.mark.parametrize("case", ["dora", "modules_to_save"])
def test_weight_scales_replaced_tensors_and_dora(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_adapter: MakeAdapter, case: str
) -> None:
    """The result lies between base and merged model, with DoRA and with whole matrices, too."""
    adapter, expected = make_adapter(**CONFIGURATIONS[case])
    base = load_file(tiny_checkpoint / "model.safetensors")
    merge = (SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--weights", 0.25)
    run_tool(*merge, "--path_sfted", tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    for name, value in base.items():
        torch.testing.assert_close(merged[name], value + 0.25 * (expected[name] - value), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "weights", ["0.5", "0.5,1,2", "half,1", "nan,1"], ids=["one for two", "too many", "no number", "not finite"]
)
def test_merge_accepts_one_weight_for_all_and_refuses_wrong_weights(
    tiny_checkpoint: Path, tmp_path: Path, adapter: Path, run_tool: RunTool, weights: str
) -> None:
    arguments = ("--path_zhixi", tiny_checkpoint, "--path_lora", f"{adapter},{adapter}", "--path_sfted", tmp_path / "o")
    if weights == "0.5":
        run_tool(SCRIPT, "merge", *arguments, "--weights", weights)  # one number applies to all adapters
        return
    done = run_tool(SCRIPT, "merge", *arguments, "--weights", weights, status=2)
    numbers = "one number, or one for each of the 2 adapters" if weights == "0.5,1,2" else "a list of numbers"
    assert f"--weights takes {numbers}" in done.stderr


def test_too_large_weight_is_refused_and_zero_is_no_change(
    tiny_checkpoint: Path, tmp_path: Path, adapter: Path, run_tool: RunTool
) -> None:
    merge = (SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--path_sfted", tmp_path / "o")
    done = run_tool(*merge, "--weights", "1e42", status=2)
    assert done.stderr.startswith("error: --weights are too large: model.layers.0.self_attn.")
    assert done.stderr.endswith(", which F32 cannot store; give smaller weights\n")
    assert done.stderr.count("\n") == 1
    done = run_tool(*merge, "--weights", "0")
    assert "21 tensors, 0 of them changed by the adapter (4 updates are zero)" in done.stdout
    base, merged = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tmp_path / "o"))
    assert all(torch.equal(base[name], value) for name, value in merged.items())


def test_adapter_that_is_given_twice_is_added_twice_with_a_notice(
    tiny_checkpoint: Path, tmp_path: Path, adapter: Path, run_tool: RunTool
) -> None:
    merge = (SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_sfted")
    done = run_tool(*merge, tmp_path / "two", "--path_lora", f"{adapter},{adapter}/../{adapter.name}")
    assert f"notice: the adapter {adapter} is given 2 times" in done.stderr
    done = run_tool(*merge, tmp_path / "one", "--path_lora", adapter)
    assert done.stderr == ""
    base, one, two = (
        load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tmp_path / "one", tmp_path / "two")
    )
    for name, value in base.items():
        torch.testing.assert_close(two[name], value + 2 * (one[name] - value), rtol=1e-5, atol=1e-6)
