"""tools/weight_diff.py merge: the result equals PEFT's, rounded once; unsupported adapters are refused by name."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import weight_diff
from conftest import RunScript
from in_process import RunTool
from merged_adapters import CONFIGURATIONS, MakeAdapter
from safetensors.torch import load_file, save_file
from weight_diffs import exact_diff

SCRIPT = "tools/weight_diff.py"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@pytest.fixture(scope="module")
def adapter(make_adapter: MakeAdapter) -> Path:
    return make_adapter()[0]


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_merged_weights_equal_those_of_peft(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_adapter: MakeAdapter, case: str
) -> None:
    adapter, expected = make_adapter(**CONFIGURATIONS[case])
    out = tmp_path / "merged"
    run_tool(SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--path_sfted", out)
    merged, base = load_file(out / "model.safetensors"), load_file(tiny_checkpoint / "model.safetensors")
    assert merged.keys() == expected.keys() == base.keys()
    changed = [name for name in base if not torch.equal(expected[name], base[name])]
    assert len(changed) >= 4
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value, rtol=2e-6, atol=2e-7)
        assert torch.equal(merged[name], base[name]) == (name not in changed)


def test_merge_rounds_half_precision_once(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_adapter: MakeAdapter
) -> None:
    """The result is the float32 sum, rounded; not a rounded change added in half precision."""
    adapter, _ = make_adapter()
    base = load_file(tiny_checkpoint / "model.safetensors")
    raw = shutil.copytree(tiny_checkpoint, tmp_path / "raw")
    save_file({name: value.bfloat16() for name, value in base.items()}, raw / "model.safetensors", {"format": "pt"})
    run_tool(SCRIPT, "merge", "--path_zhixi", raw, "--path_lora", adapter, "--path_sfted", tmp_path / "bfloat16")
    run_tool(
        SCRIPT, "merge", "--path_zhixi", raw, "--path_lora", adapter, "--path_sfted", tmp_path / "float16", "--is_fp16"
    )
    weights = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (weights[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    exact = base[f"{name}.weight"].bfloat16().double() + 3 * b @ a
    for dtype in (torch.bfloat16, torch.float16):
        folder = tmp_path / str(dtype).removeprefix("torch.")
        merged = load_file(folder / "model.safetensors")[f"{name}.weight"]
        assert merged.dtype == dtype
        assert (merged != exact.to(dtype)).float().mean() < 0.002  # the float32 sum is itself rounded
    assert json.loads((tmp_path / "float16/config.json").read_text())["dtype"] == "float16"


def test_merged_folder_has_template_and_tokenizer_of_adapter(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_adapter: MakeAdapter
) -> None:
    adapter, _ = make_adapter()
    adapter = shutil.copytree(adapter, tmp_path / "adapter")
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    (base / "chat_template.jinja").write_text("base")
    merge = (SCRIPT, "merge", "--path_zhixi", base, "--path_lora", adapter, "--path_sfted")
    run_tool(*merge, tmp_path / "first")
    for name in (*TOKENIZER, "chat_template.jinja", "config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (base / name).read_bytes()
    (adapter / "chat_template.jinja").write_text("adapter")
    (adapter / "extraction.json").write_text("{}")
    shutil.copyfile(base / "tokenizer.json", adapter / "tokenizer.json")
    (adapter / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "model_max_length": 77}\n'
    )
    (adapter / "run.json").write_text('{"script": "finetune/finetune.py"}')
    run_tool(*merge, tmp_path / "second")
    for name in ("chat_template.jinja", "extraction.json", "tokenizer_config.json"):
        assert (tmp_path / "second" / name).read_bytes() == (adapter / name).read_bytes()
    assert (tmp_path / "second/tokenizer.model").is_file()  # the base's, since its pieces are those of the adapter
    run = json.loads((tmp_path / "second/run.json").read_text())
    assert run["parents"]["adapter"] == {"script": "finetune/finetune.py"}


def test_adapter_with_added_rows_enlarges_model(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_adapter: MakeAdapter
) -> None:
    adapter, _ = make_adapter(modules_to_save=["lm_head", "embed_tokens"])
    adapter = shutil.copytree(adapter, tmp_path / "adapter")
    state = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in state if "lm_head" in name or "embed_tokens" in name]:
        state[name] = torch.cat([state[name], torch.ones(5, 64)])
    save_file(state, adapter / "adapter_model.safetensors")
    out = tmp_path / "out"
    run_tool(SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--path_sfted", out)
    rows = json.loads((tiny_checkpoint / "config.json").read_text())["vocab_size"] + 5
    assert json.loads((out / "config.json").read_text())["vocab_size"] == rows
    assert load_file(out / "model.safetensors")["lm_head.weight"].shape == (rows, 64)
    state["base_model.model.lm_head.weight"] = state["base_model.model.lm_head.weight"][:-1].clone()
    save_file(state, adapter / "adapter_model.safetensors")
    done = run_tool(
        SCRIPT,
        "merge",
        "--path_zhixi",
        tiny_checkpoint,
        "--path_lora",
        adapter,
        "--path_sfted",
        tmp_path / "no",
        status=2,
    )
    assert f"{adapter} has {rows} rows for model.embed_tokens.weight, but lm_head.weight would have {rows - 1}" in (
        done.stderr
    )


def test_later_adapter_may_have_more_rows_but_not_fewer(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_adapter: MakeAdapter
) -> None:
    """As with Chinese-LLaMA-Plus and Chinese-Alpaca-Plus: each replaces embedding and output with more rows."""
    first, _ = make_adapter(modules_to_save=["lm_head", "embed_tokens"])
    state = load_file(first / "adapter_model.safetensors")
    folders, states = [], []
    for more in (3, 5):
        folders.append(shutil.copytree(first, tmp_path / f"adapter{more}"))
        states.append({
            name: torch.cat([value, torch.full((more, 64), float(more))]) if value.shape[0] == 800 else value
            for name, value in state.items()
        })  # fmt: skip
        save_file(states[-1], folders[-1] / "adapter_model.safetensors")
    merge = (SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_lora")
    run_tool(*merge, f"{folders[0]},{folders[1]}", "--path_sfted", tmp_path / "whole")
    merged = load_file(tmp_path / "whole/model.safetensors")["lm_head.weight"]
    assert torch.equal(merged, states[1]["base_model.model.lm_head.weight"])
    run_tool(*merge, f"{folders[0]},{folders[1]}", "--path_sfted", tmp_path / "half", "--weights", "1,0.5")
    merged = load_file(tmp_path / "half/model.safetensors")["lm_head.weight"]
    base = load_file(tiny_checkpoint / "model.safetensors")["lm_head.weight"]
    one, two = (each["base_model.model.lm_head.weight"] for each in states)
    torch.testing.assert_close(merged[:800], one[:800] + 0.5 * (two[:800] - base))
    torch.testing.assert_close(merged[800:803], one[800:] + 0.5 * (two[800:803] - one[800:]))  # not in the base
    assert torch.equal(merged[803:], two[803:])
    done = run_tool(*merge, f"{folders[1]},{folders[0]}", "--path_sfted", tmp_path / "no", status=2)
    message = "the base or an earlier adapter has 805; give the adapters in the order in which they were trained"
    assert message in done.stderr


@pytest.mark.parametrize(
    ("options", "lost"),
    [
        ({}, ".layers.1."), ({}, ".down_proj."), ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"layers_to_transform": [1]}, ".layers.1.self_attn."),
        ({"exclude_modules": ["layers.0.mlp.down_proj"]}, "q_proj"),
        ({"layers_to_transform": 0, "layers_pattern": "layers"}, "q_proj"),
    ],
)  # fmt: skip
def test_merge_refuses_an_adapter_that_lacks_tensors(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_adapter: MakeAdapter, options: dict[str, Any],
    lost: str,
) -> None:  # fmt: skip
    whole, _ = make_adapter(**options)
    adapter = shutil.copytree(whole, tmp_path / "adapter")
    merge = (SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--path_sfted")
    run_tool(*merge, tmp_path / "whole")
    state = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value for name, value in state.items() if lost not in name}, adapter / "adapter_model.safetensors")
    done = run_tool(*merge, tmp_path / "no", status=2)
    assert "has no tensors for " in done.stderr
    assert "which its adapter_config.json names; copy the adapter again" in done.stderr


def test_merge_counts_an_untrained_matrix_as_unchanged(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_adapter: MakeAdapter
) -> None:
    whole, _ = make_adapter()
    adapter = shutil.copytree(whole, tmp_path / "adapter")
    state = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in state if "layers.0" in name and "lora_B" in name]:
        state[name] = torch.zeros_like(state[name])
    save_file(state, adapter / "adapter_model.safetensors")
    merge = (SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--path_sfted")
    done = run_tool(*merge, tmp_path / "merged")
    assert "21 tensors, 2 of them changed by the adapter (2 updates are zero)" in done.stdout


UNMERGEABLE: dict[str, tuple[dict[str, object], dict[str, tuple[int, int] | None], str]] = {
    "fan_in_fan_out": ({"fan_in_fan_out": True}, {}, "fan_in_fan_out=True is not supported"),
    "biases": ({"bias": "all"}, {}, "bias='all' is not supported"),
    "other method": ({"peft_type": "LOHA"}, {}, "of type LOHA"),
    "changed base": ({"init_lora_weights": "pissa"}, {}, "init_lora_weights='pissa'"),
    "parameters": ({"target_parameters": ["experts"]}, {}, "target_parameters=['experts'] is not supported"),
    "rank": ({"r": 8}, {}, "its adapter_config.json says 8"),
    "half a pair": ({}, {"model.layers.0.self_attn.q_proj.lora_A.weight": None}, "has only one of lora_A and lora_B"),
    "bias of the pair": ({"lora_bias": True}, {}, "lora_bias=True cannot be merged here; use the adapter unmerged"),
    "unknown tensor": ({}, {"model.layers.0.self_attn.q_proj.lora_C.weight": (2, 2)}, "is not a tensor of a LoRA"),
    "not in the base": ({}, {"model.layers.7.mlp.weight": (2, 2)}, "changes model.layers.7.mlp, which"),
    "shape": ({}, {"model.layers.0.self_attn.q_proj.lora_A.weight": (4, 63)}, "has the shape 64 by 63 for "),
}  # fmt: skip


@pytest.mark.parametrize("case", UNMERGEABLE)
def test_merge_refuses_unsupported_adapter_and_names_reason(
    tiny_checkpoint: Path, tmp_path: Path, adapter: Path, case: str
) -> None:
    settings, changes, message = UNMERGEABLE[case]
    spoilt = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((spoilt / "adapter_config.json").read_text())
    (spoilt / "adapter_config.json").write_text(json.dumps(config | settings))
    state = load_file(spoilt / "adapter_model.safetensors")
    for name, shape in changes.items():
        state.pop(f"base_model.model.{name}", None)
        if shape is not None:
            state[f"base_model.model.{name}"] = torch.ones(shape)
    save_file(state, spoilt / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=re.escape(message)):
        weight_diff.merge(str(tiny_checkpoint), [str(spoilt)], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_merge_refuses_magnitudes_of_other_length(
    tiny_checkpoint: Path, tmp_path: Path, make_adapter: MakeAdapter, run_tool: RunTool
) -> None:
    """numpy would apply a single magnitude to all rows."""
    spoilt = shutil.copytree(make_adapter(use_dora=True)[0], tmp_path / "adapter")
    state = load_file(spoilt / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_magnitude_vector"
    state[name] = state[name][:1].clone()
    save_file(state, spoilt / "adapter_model.safetensors")
    out = ("--path_lora", spoilt, "--path_sfted", tmp_path / "out")
    done = run_tool(SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, *out, status=2)
    assert done.stderr.endswith(f"tensor {name} has length 1, but the matrix has 64 rows; copy it again\n")


def test_merge_refuses_swapped_folders(tiny_checkpoint: Path, tmp_path: Path, adapter: Path, run_tool: RunTool) -> None:
    done = run_tool(
        SCRIPT,
        "merge",
        "--path_zhixi",
        adapter,
        "--path_lora",
        tiny_checkpoint,
        "--path_sfted",
        tmp_path / "o",
        status=2,
    )
    assert f"{adapter} has no config.json; --path_zhixi" in done.stderr


@pytest.mark.integration
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_merge_on_any_number_of_threads_gives_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path, make_adapter: MakeAdapter, threads: int, run_script: RunScript
) -> None:
    adapter, _ = make_adapter(use_dora=True, target_modules=["q_proj", "down_proj", "up_proj"])
    hashes = set()
    for count in (threads, 3):
        run_script(
            SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--path_sfted",
            tmp_path / str(count), env={"KNOWLM_THREADS": count, "OPENBLAS_NUM_THREADS": count},
        )  # fmt: skip
        hashes.add((tmp_path / str(count) / "model.safetensors").read_bytes())
    assert len(hashes) == 1


@pytest.mark.parametrize("case", [*CONFIGURATIONS, "published peft"])
def test_diff_to_merged_model_uses_given_adapter(
    tiny_checkpoint: Path, tmp_path: Path, run_tool: RunTool, make_adapter: MakeAdapter, case: str
) -> None:
    """With --adapter, the diff has little more than the factors and restores every bit, also after merging by PEFT."""
    adapter, expected = make_adapter(**CONFIGURATIONS.get(case, {}))
    tuned = tmp_path / "tuned"
    if case == "published peft":
        shutil.copytree(tiny_checkpoint, tuned)
        save_file(expected, tuned / "model.safetensors", {"format": "pt"})
    else:
        run_tool(SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", adapter, "--path_sfted", tuned)
    diff, back = tmp_path / "diff", tmp_path / "back"
    pair = ("--path_raw", tiny_checkpoint, "--path_tuned", tuned)
    done = run_tool(SCRIPT, "make_diff", *pair, "--path_diff", diff, "--adapter", adapter)
    assert "matrices as low-rank changes" in done.stdout
    run_tool(SCRIPT, "recover", "--path_raw", tiny_checkpoint, "--path_diff", diff, "--path_tuned", back)
    ours, theirs = load_file(back / "model.safetensors"), load_file(tuned / "model.safetensors")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    if case in ("plain", "rslora", "patterns", "embedding"):
        size = sum(payload.nbytes for payload in exact_diff.read_diff(diff).payloads.values())
        assert size < 1.3 * (adapter / "adapter_model.safetensors").stat().st_size


def test_merge_refuses_adapter_that_gives_nan(tiny_checkpoint: Path, tmp_path: Path, adapter: Path) -> None:
    spoilt = shutil.copytree(adapter, tmp_path / "adapter")
    state = load_file(spoilt / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    state[name][2, 1] = float("inf")
    save_file(state, spoilt / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"tensor model\.layers\.0\.self_attn\.q_proj\.weight .*NaN or infinity"):
        weight_diff.merge(str(tiny_checkpoint), [str(spoilt)], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_merge_refuses_dora_after_other_adapter(
    tiny_checkpoint: Path, tmp_path: Path, make_adapter: MakeAdapter, run_tool: RunTool
) -> None:
    """DoRA's row lengths belong to the weights that it was trained on, so it is merged only as the first adapter."""
    plain, dora = make_adapter()[0], make_adapter(use_dora=True)[0]
    merge = (SCRIPT, "merge", "--path_zhixi", tiny_checkpoint, "--path_sfted", tmp_path / "out", "--path_lora")
    done = run_tool(*merge, f"{plain},{dora}", status=2)
    assert "(DoRA) after another adapter changed them; merge the other one alone" in done.stderr
    assert not (tmp_path / "out").exists()
    run_tool(*merge, f"{dora},{plain}")
