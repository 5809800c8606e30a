"""Make encoded examples and trainers from instruction rows, for the tests of tuning."""

from pathlib import Path
from typing import Any

import torch
from chat_prompts.prompt_encoding import PromptEncoder
from instruction_data.data_sources import Source
from instruction_data.tokenized_examples import (
    CachedExamples,
    EncodedRow,
    EncodingSettings,
    encode_rows,
    open_examples,
)
from instruction_tuning.adapters import load_model_to_tune
from instruction_tuning.instruction_trainer import InstructionTrainer, make_trainer
from instruction_tuning.tuning_arguments import parse
from instruction_tuning.tuning_data import encode_sources, split_and_order
from json_rows.row_files import Row

SMALL = ["--lora_r", "4", "--lora_alpha", "8", "--learning_rate", "1e-2", "--logging_steps", "1", "--seed", "1",
         "--report_to", "none"]  # fmt: skip


def encoded(tokenizer: Any, rows: list[dict[str, Any]], *settings: Any) -> list[EncodedRow]:
    """Return the encoded rows, dropped ones included. settings: arguments of EncodingSettings."""
    chunks = encode_rows(PromptEncoder(tokenizer), [Row("row", row) for row in rows], EncodingSettings(*settings))
    return [row for chunk in chunks for row in chunk]


def opened(tokenizer: Any, file: Path, cache: Path, cutoff: int = 512, name: str = "") -> CachedExamples:
    """Return a file's examples through the cache."""
    return open_examples(PromptEncoder(tokenizer), Source(name or file.stem, file), EncodingSettings(cutoff), cache)


def command(base: Path, data: Path | str, output: Path, *more: object) -> list[str]:
    """Return finetune.py's arguments for a small adapter."""
    given = ["--base_model", base, "--data_path", data, "--output_dir", output, "--cache_dir", output.parent / "cache"]
    return [*map(str, given), *SMALL, *map(str, more)]


def trainer_of(base: Path, tokenizer: Any, data: Path, output: Path, *more: object) -> InstructionTrainer:
    """Return finetune.py's trainer with these options, without dropout and without saved checkpoints."""
    args, _ = parse(command(base, data, output, "--lora_dropout", "0", "--save_strategy", "no", *more), "")
    torch.manual_seed(args.seed)
    parts = encode_sources(args, PromptEncoder(tokenizer), [Source(data.stem, data)])
    return make_trainer(args, load_model_to_tune(args), tokenizer, split_and_order(args, parts, []), {})
