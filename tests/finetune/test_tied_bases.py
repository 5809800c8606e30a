"""Tuning a base whose embedding and output matrices are tied: notices, next commands, results of full tuning."""

import json
import shlex
import shutil
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from in_process import run_in_process
from instruction_tuning.run_messages import next_commands
from lora_adapters import other_model
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from tuning_runs import command

import finetune

IDS = torch.arange(10, 40)[None]
STEPS = ("--batch_size", 4, "--max_steps", 3, "--save_strategy", "no", "--show_rows", "False", "--warmup_steps", 0)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def tied_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return other_model(tiny_checkpoint, tmp_path_factory.mktemp("tied") / "base", tie_word_embeddings=True)


@pytest.fixture
def two_matrices(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A base that is marked as tied and stores an output matrix of its own."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "two")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_printed_commands(printed: str, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run the demo and the merge that a run prints; return the words of all its next commands."""
    monkeypatch.setattr("sys.stdin", StringIO())  # no typed instructions, so the demo ends at once
    lines = [
        line.partition(" it: ")[2] for line in printed.splitlines() if line.startswith(("try it", "merge", "serve"))
    ]
    commands = [shlex.split(part) for line in lines for part in line.split(" && ")]
    for _, script, *words in commands:
        if script != "inference/launch_vllm.py":
            run_in_process(script, *words)
    return commands


CHANGES = {
    "attention": ([], ""),
    "output": (["--lora_target_modules", "[q_proj,lm_head]"], "lm_head"),
    "embedding": (["--lora_target_modules", "[q_proj,embed_tokens]"], "embed_tokens"),
    "saved output": (["--lora_modules_to_save", "lm_head"], "lm_head"),
    "saved embedding and output": (["--lora_modules_to_save", "embed_tokens,lm_head"], "embed_tokens and lm_head"),
}


@pytest.mark.parametrize(
    ("base", "change"), [*(("tied", change) for change in CHANGES), ("untied", "output"), ("untied", "embedding")]
)
@pytest.mark.integration
def test_next_commands_work_and_untying_is_announced_before_training(
    tmp_path: Path,
    tied_checkpoint: Path,
    tiny_checkpoint: Path,
    rows_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    change: str,
) -> None:
    """The merged checkpoint, which the printed command serves, has the logits of base and adapter."""
    options, names = CHANGES[change]
    folder, adapter = tied_checkpoint if base == "tied" else tiny_checkpoint, tmp_path / "my adapter"
    finetune.main(command(folder, rows_file, adapter, *STEPS, *options))
    out, err = capsys.readouterr()
    notice = f"notice: {folder} has one matrix for embed_tokens and lm_head (tie_word_embeddings), and the adapter "
    announced = base == "tied" and bool(names)
    assert (f"{notice}changes {names}; merging it writes two matrices" in err) == announced
    assert ("notice: " in err) == announced
    *_, (_, server, *words) = run_printed_commands(out, monkeypatch)
    merged = Path(f"{adapter}-merged")
    assert (server, words) == ("inference/launch_vllm.py", ["--port", "8090", "--model", str(merged)])
    expected = logits(PeftModel.from_pretrained(load(folder), adapter))
    assert (expected - logits(load(folder))).abs().max() > 0.01
    torch.testing.assert_close(logits(load(merged)), expected, rtol=1e-4, atol=1e-5)
    tied = json.loads((merged / "config.json").read_text())["tie_word_embeddings"]
    assert tied == (base == "tied" and not names)
    assert ("lm_head.weight" in load_file(merged / "model.safetensors")) != tied


def test_full_tuning_keeps_one_tied_matrix_and_prints_a_demo_with_template(
    tmp_path: Path,
    tied_checkpoint: Path,
    rows_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finetune.main(command(tied_checkpoint, rows_file, tmp_path / "full", *STEPS, "--method", "full"))
    (_, demo, *_), (_, server, *words) = run_printed_commands(capsys.readouterr().out, monkeypatch)
    assert (demo, server, words[-1]) == (
        "examples/generate_lora.py", "inference/launch_vllm.py", str(tmp_path / "full"),
    )  # fmt: skip
    assert "lm_head.weight" not in load_file(tmp_path / "full/model.safetensors")
    assert load(tmp_path / "full").config.tie_word_embeddings


def test_full_tuning_keeps_the_own_output_matrix_of_a_base_marked_as_tied(
    tmp_path: Path, two_matrices: Path, rows_file: Path
) -> None:
    finetune.main(command(two_matrices, rows_file, tmp_path / "full", *STEPS, "--method", "full"))
    before, after = (load_file(folder / "model.safetensors") for folder in (two_matrices, tmp_path / "full"))
    assert after.keys() == before.keys()
    change = (after["lm_head.weight"] - before["lm_head.weight"]).abs().max()
    assert 0 < change < 0.1 < (after["lm_head.weight"] - after["model.embed_tokens.weight"]).abs().max()
    assert json.loads((tmp_path / "full/config.json").read_text())["tie_word_embeddings"] is False


def test_next_commands_of_a_quantised_base_merge_into_the_original(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    args: Any = SimpleNamespace(base_model=str(tmp_path), output_dir="lora", method="lora", trust_remote_code=False)
    demo, merge = next_commands(args).splitlines()
    assert demo.endswith(f"generate_lora.py --base_model {tmp_path} --lora_weights lora --interactive")
    assert merge.startswith("merge it into ORIGINAL, the base before quantisation: python tools/weight_diff.py merge ")
    assert "--path_zhixi ORIGINAL --path_lora lora" in merge and "launch_vllm" not in merge
