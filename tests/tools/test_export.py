"""tools/export_hf_checkpoint.py: shards of the requested size, which load as the weights that PEFT merges."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import RunTool
from safetensors.torch import load_file

SCRIPT = "tools/export_hf_checkpoint.py"


def test_export_is_sharded_and_loads_as_the_merged_model(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    folders = ("--base_model", tiny_checkpoint, "--lora_model", adapter, "--output_dir", out)
    run_tool(SCRIPT, *folders, "--max_shard_size", "250KB")
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert all(sum(t.nbytes for t in load_file(shard).values()) <= 250_000 for shard in shards)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}

    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    expected = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().state_dict()
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    merged, info = loaded
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert merged.dtype == torch.float32
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=2e-6, atol=2e-7)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert (out / "tokenizer.model").read_bytes() == (tiny_checkpoint / "tokenizer.model").read_bytes()


def test_export_writes_one_file_by_default_and_its_seal_verifies(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    out = tmp_path / "merged"
    run_tool(SCRIPT, "--base_model", tiny_checkpoint, "--lora_model", adapter, "--output_dir", out)
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    run_tool("tools/checkpoint.py", "seal", out, "--parents", f"{tiny_checkpoint},{adapter}")
    assert [parent["name"] for parent in json.loads((out / "checkpoint.json").read_text())["parents"]] == [
        "base",
        "adapter",
    ]
    run_tool("tools/checkpoint.py", "verify", out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--max_shard_size": "big"}, "'big' is not a size"),
        ({"--lora_model": "none"}, "none is not a folder; --lora_model"),
        ({"--base_model": "none"}, "none is not a folder; --base_model"),
        ({"--load_8bit": "True"}, "unknown option --load_8bit"),
    ],
)
def test_export_refuses_invalid_options(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, run_tool: RunTool, options: dict[str, str], message: str
) -> None:
    given = {"--base_model": tiny_checkpoint, "--lora_model": adapter, "--output_dir": tmp_path / "out"} | options
    done = run_tool(SCRIPT, *(part for pair in given.items() for part in pair), status=2)
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_export_names_damaged_adapter(tiny_checkpoint: Path, adapter: Path, tmp_path: Path, run_tool: RunTool) -> None:
    broken = shutil.copytree(adapter, tmp_path / "adapter")
    with (broken / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(5000)
    done = run_tool(
        SCRIPT, "--base_model", tiny_checkpoint, "--lora_model", broken, "--output_dir", tmp_path / "out", status=2
    )
    assert f"{broken / 'adapter_model.safetensors'} is damaged" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
