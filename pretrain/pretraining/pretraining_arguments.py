"""The options of train.py: ours on top of every option of Trainer and DeepSpeed, published spellings translated.

`parse(argv)` gives the options with their defaults resolved and the notices to print.
"""

import difflib
import os
import sys
from dataclasses import dataclass, fields
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

import torch
from rank_group.ranks import join_ranks
from transformers import HfArgumentParser, TrainingArguments

# Options of published command lines that transformers 5 no longer has: the new spelling, or why none is needed.
NEW_SPELLING = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "warmup_ratio": "warmup_steps",  # values below 1 are a share of all steps
    "model_max_length": "block_size",
    "no_cuda": "use_cpu",
}
NO_EFFECT = {
    "overwrite_output_dir": "a folder that holds a finished model is never overwritten",
    "save_safetensors": "weights are always written as safetensors",
    "use_fast_tokenizer": "there is one tokenizer, and it is exact",
    "use_legacy_prediction_loop": "transformers dropped it",
    "half_precision_backend": "transformers dropped it",
    "fp16_backend": "transformers dropped it",
    "fp16_opt_level": "transformers dropped it",
    "sharded_ddp": "use --deepspeed",
    "group_by_length": "samples are packed into rows, and nothing is padded",
}


def option(default: Any, help: str, **metadata: Any) -> Any:
    return dataclass_field(default=default, metadata={"help": help, **metadata})


@dataclass
class PretrainingArguments(TrainingArguments):
    """Options of continued pretraining; what is not listed here is Trainer's and keeps its meaning."""

    model_name_or_path: str = option("", "checkpoint folder to continue from")
    data_path: str = option("", "prefix of the corpus: the path without .bin")
    block_size: int = option(0, "tokens of a row; 0: the model's context, at most 4096")
    no_packing: bool = option(False, "one sample a row, padded to the longest of its micro batch")
    source_weights: str = option("size", 'shares of the rows: zh=0.6,en=0.4 (names or types), "size", temperature=0.7')
    global_batch_distributed: str = option("", "the older way to say it: [424,80], rows of each type in proportion")
    eval_fraction: float = option(0.0, "share of each source's documents that is held out for evaluation")
    accept_changes: bool = option(False, "resume though corpus, batch, seed or weights are not those of the checkpoint")
    max_nan_steps: int = option(3, "end the run after so many steps in a row whose loss is no number")
    attn_implementation: str = option(
        "", "attention backend; empty: flash_attention_2 if it is installed, else by sample"
    )
    peak_tflops: float = option(0.0, "of one GPU, for MFU in the log; 0: what is known of it")

    # Trainer's own, with defaults that suit the job.
    num_train_epochs: float = option(1.0, "passes over the corpus")
    learning_rate: float = option(2e-5, "peak learning rate")
    lr_scheduler_type: str = option("cosine", "shape of the learning rate over the run")
    warmup_steps: float = option(0.03, "steps of linear warm-up; below 1: a share of all steps")
    adam_beta2: float = option(0.95, "decay of Adam's second moment")
    weight_decay: float = option(0.1, "decoupled weight decay")
    logging_steps: float = option(10, "log every so many steps; below 1: a share of all steps")
    save_steps: float = option(500, "keep a checkpoint to resume from every so many steps; below 1: a share")
    save_total_limit: int | None = option(3, "checkpoints to keep")
    logging_nan_inf_filter: bool = option(False, "replace NaN in the logged loss (off: NaN ends the run)")
    remove_unused_columns: bool = option(False, "samples hold what the model needs and nothing else")
    report_to: str = option("tensorboard", "where the log goes, too: tensorboard, wandb, none")

    def __post_init__(self) -> None:
        for name in ("model_name_or_path", "data_path", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing; --help lists the options")
        if self.block_size < 0 or self.block_size == 1:
            raise ValueError(f"--block_size {self.block_size} must be 0 or at least 2")
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"--eval_fraction {self.eval_fraction} is not from 0 to below 1")
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"--train_sampling_strategy {self.train_sampling_strategy}: the order is that of --source_weights"
            )
        if self.max_nan_steps < 1:
            raise ValueError(f"--max_nan_steps {self.max_nan_steps} must be at least 1")
        if self.eval_fraction and str(self.eval_strategy) in ("no", "IntervalStrategy.NO"):
            self.eval_strategy, self.eval_steps = "steps", self.save_steps
        self.ignore_data_skip = True  # the sampler continues at its row; no data needs to be skipped
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        if (
            self.deepspeed
            and not str(self.deepspeed).lstrip().startswith("{")
            and not Path(str(self.deepspeed)).exists()
        ):
            raise FileNotFoundError(
                f"{self.deepspeed} does not exist; --deepspeed takes a file such as pretrain/configs/*"
            )
        join_ranks(self.deepspeed)
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise Trainer trains each CPU rank by itself, without averaging gradients
        super().__post_init__()


def translate(argv: list[str]) -> tuple[list[str], list[str]]:
    """The command line in the words of transformers 5, and one notice for each option that was translated."""
    result: list[str] = []
    notices: list[str] = []
    words = iter(argv)
    pending = next(words, None)
    while pending is not None:
        word, pending = pending, next(words, None)
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or name not in {*NEW_SPELLING, *NO_EFFECT, "logging_dir"}:
            result.append(word)
            continue
        values = [value] if equals else []
        if not equals and pending is not None and not pending.startswith("--"):
            values, pending = [pending], next(words, None)
        new = translated(name, values)
        notices.append(f"--{name}: {NO_EFFECT[name]}" if name in NO_EFFECT else f"--{name} is now {' '.join(new)}")
        result += new if name != "logging_dir" else []
    return result, notices


def translated(name: str, values: list[str]) -> list[str]:
    """The words that stand for one dropped option; none where it has no effect."""
    if name in NO_EFFECT:
        return []
    if name == "logging_dir":
        os.environ["TENSORBOARD_LOGGING_DIR"] = values[0] if values else ""
        return [f"the environment variable TENSORBOARD_LOGGING_DIR={''.join(values)}"]
    return [f"--{NEW_SPELLING[name]}", *values]


class _Parser(HfArgumentParser):
    def error(self, message: str) -> Any:  # argparse would print every option of Trainer and leave
        raise ValueError(f"{message}; --help lists the options")


def parse(argv: list[str], description: str) -> tuple[PretrainingArguments, list[str]]:
    """Options and notices of a command line; ValueError on what is unknown, abbreviated or out of range."""
    words, notices = translate(argv)
    options: Any = PretrainingArguments
    parser = _Parser(options, allow_abbrev=False, description=description, prog="train.py")
    namespace, unknown = parser.parse_known_args(words)
    if unknown:
        close = difflib.get_close_matches(unknown[0], [f"--{each.name}" for each in fields(PretrainingArguments)], n=1)
        hint = f"did you mean {close[0]}?" if close else "--help lists the options"
        raise ValueError(f"unknown option {unknown[0]}; {hint}")
    return PretrainingArguments(**vars(namespace)), notices
