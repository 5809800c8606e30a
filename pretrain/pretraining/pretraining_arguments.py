"""Parse and check the options of train.py: PretrainingOptions and all options of Trainer.

Published option names that are no longer valid are translated.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rank_group.ranks import join_ranks
from training_loop import trainer_options
from transformers import TrainingArguments

from pretraining.pretraining_options import PretrainingOptions

PUBLISHED = trainer_options.DeprecatedOptions(
    renamed={"model_max_length": "block_size"},
    without_effect={
        "overwrite_output_dir": "a folder that holds a finished model is never overwritten",
        "save_safetensors": "weights are always written as safetensors",
        "use_fast_tokenizer": "the exact tokenizer is always used",
        "sharded_ddp": "use --deepspeed",
        "group_by_length": "samples are packed, so there is no padding to reduce",
    },
    held_out=("eval_fraction",),
)


@dataclass
class PretrainingArguments(PretrainingOptions, TrainingArguments):
    """Options of continued pretraining: PretrainingOptions and all options of Trainer."""

    def __post_init__(self) -> None:
        for name in ("model_name_or_path", "data_path", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing; --help lists the options")
        if self.block_size < 0 or self.block_size == 1:
            raise ValueError(f"--block_size {self.block_size} must be 0 or at least 2")
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"--eval_fraction {self.eval_fraction} must be at least 0 and below 1")
        if self.train_sampling_strategy != "random":
            raise ValueError(
                "--train_sampling_strategy has no effect here, as --source_weights decides the order; remove it"
            )
        if self.auto_find_batch_size:
            raise ValueError(
                "--auto_find_batch_size has no effect here, as the global batch is fixed; lower "
                "--per_device_train_batch_size, and raise --gradient_accumulation_steps by the same factor"
            )
        if self.eval_fraction and str(self.eval_strategy) in ("no", "IntervalStrategy.NO"):
            self.eval_strategy, self.eval_steps = "steps", self.eval_steps or self.save_steps
        self.ignore_data_skip = True  # the batch sampler starts at the index to resume from
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        config = str(self.deepspeed or "")
        if config and not config.lstrip().startswith("{") and not Path(config).exists():
            raise FileNotFoundError(
                f"{config} does not exist; --deepspeed takes a file, such as pretrain/configs/zero3.json"
            )
        join_ranks(self.deepspeed, self.ddp_backend, self.ddp_timeout)
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise Trainer does not average the gradients of CPU ranks
        super().__post_init__()


def parse(argv: list[str], description: str) -> tuple[PretrainingArguments, list[str]]:
    """Return options and notices; raises ValueError if an option is unknown, abbreviated or out of range."""
    return trainer_options.parse(PretrainingArguments, argv, description, "train.py", PUBLISHED)
