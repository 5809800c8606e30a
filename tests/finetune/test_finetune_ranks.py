"""finetune.py on two ranks: DDP, ZeRO-2 and ZeRO-3 tune the same adapter as one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, free_port
from safetensors.torch import load_file
from tuning_runs import command

import finetune

# Eight examples make three or four packed sequences of 512 tokens, so each of two ranks accumulates over two.
MORE = ("--batch_size", 8, "--micro_batch_size", 1, "--share_prefixes", "False", "--max_steps", 5, "--lora_dropout", 0,
        "--val_set_size", 7, "--eval_strategy", "steps", "--eval_steps", 5, "--learning_rate", "1e-3",
        "--warmup_steps", 0)  # fmt: skip


def launch(ranks: int, *arguments: object, extensions: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port",
         str(free_port()), finetune.__file__, *map(str, arguments)],
        env=os.environ | {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(extensions), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, cwd=REPOSITORY,
    )  # fmt: skip


@pytest.fixture(scope="module")
def single_rank_run(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, rows_file: Path) -> Path:
    output = tmp_path_factory.mktemp("alone") / "out"
    finetune.main(command(tiny_checkpoint, rows_file, output, *MORE))
    return output


def curves(folder: Path) -> dict[str, list[float]]:
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return {key: [entry[key] for entry in log if key in entry] for key in ("loss", "grad_norm", "eval_loss")}


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("zero2", marks=pytest.mark.slow), "zero3"])
def test_two_ranks_tune_the_same_adapter_as_one(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, single_rank_run: Path, extensions: Path, strategy: str
) -> None:
    """Equal losses, gradients and eval_loss (of seven examples, an odd number), weights within 2e-6."""
    zero = ("--deepspeed", REPOSITORY / f"pretrain/configs/{strategy}.json") if strategy != "ddp" else ()
    done = launch(2, *command(tiny_checkpoint, rows_file, tmp_path / "out", *MORE, *zero), extensions=extensions)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("examples: 60 kept") == 1
    one, two = curves(single_rank_run), curves(tmp_path / "out")
    for key, values in one.items():
        assert two[key] == pytest.approx(values, rel=1e-5), key
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (single_rank_run, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert max((before[name] - after[name]).abs().max() for name in before) < 2e-6


@pytest.mark.slow
def test_fsdp_that_has_no_effect_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, extensions: Path
) -> None:
    more = (*MORE, "--fsdp", "full_shard")
    done = launch(2, *command(tiny_checkpoint, rows_file, tmp_path / "out", *more), extensions=extensions)
    assert done.returncode != 0
    assert "error: --fsdp has no effect here" in done.stderr
