"""Runs of pretrain/train.py on a small corpus: their options, and a run in this process."""

from pathlib import Path
from typing import Any

import train
from pretraining.pretraining_arguments import parse


def options(base: Path, corpus: Path, output: Path, *more: object) -> list[object]:
    """Return the options of a run of six steps; `more` follows them."""
    return [
        "--model_name_or_path", base, "--data_path", corpus, "--output_dir", output, "--max_steps", 6,
        "--per_device_train_batch_size", 4, "--learning_rate", "1e-2", "--logging_steps", 1, "--report_to", "none",
        "--block_size", 128, *more,
    ]  # fmt: skip


def train_here(*options: object) -> None:
    """Run train.py in this process, which has already imported torch."""
    assert train.main([*map(str, options), "--use_cpu", "True"]) == 0


def make_trainer(*options: object) -> Any:
    """Return the trainer of train.py with these options, in this process."""
    return train.make_trainer(*parse([*map(str, options)], ""))[0]
