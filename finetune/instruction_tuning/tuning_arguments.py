"""Parse and check the options of finetune.py: TuningOptions and all options of Trainer."""

from command_line import trainer_options
from command_line.option_values import value_of

import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rank_group.ranks import join_ranks, launched_ranks
from transformers import TrainingArguments

from instruction_tuning.tuning_options import TuningOptions

PUBLISHED = trainer_options.PublishedOptions(
    without_effect={
        "overwrite_output_dir": "an output folder is never overwritten",
        "save_safetensors": "weights are always written as safetensors",
    },
    switches={
        "group_by_length": ("train_sampling_strategy", "group_by_length", "random"),
        "adafactor": ("optim", "adafactor", ""),
        "packing": ("packing", "true", "false"),
    },
)


@dataclass
class TuningArguments(TuningOptions, TrainingArguments):
    """TuningOptions and TrainingArguments with every default resolved; raises ValueError on impossible options."""

    def __post_init__(self) -> None:
        self.data_path = [word for word in self.data_path if word]
        for name in ("base_model", "data_path", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing; --help lists the options")
        self._check_method()
        for name, least in (("cutoff_len", 2), ("lora_r", 1), ("val_set_size", 0), ("num_train_epochs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)} is too small; it must be at least {least}")
        ranks = launched_ranks()
        self.gradient_accumulation_steps = accumulation(
            self.batch_size, self.per_device_train_batch_size, self.gradient_accumulation_steps, ranks
        )
        self.batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps * ranks
        # For Trainer, an item of the data loader is a whole step; see StepDataset.
        self.accumulation, self.gradient_accumulation_steps = self.gradient_accumulation_steps, 1
        self.lora_target_modules = module_names("--lora_target_modules", self.lora_target_modules)
        self.lora_modules_to_save = value_of("--lora_modules_to_save", self.lora_modules_to_save, list[str])
        self._plan_evaluation()
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        self._log_to_wandb()
        join_ranks(self.deepspeed)
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise Trainer runs CPU ranks side by side without averaging their gradients
        super().__post_init__()
        if self.world_size != ranks:
            raise ValueError(f"{ranks} ranks were launched, but Trainer sees {self.world_size}; launch with torchrun")
        if self.device.type == "cpu":
            if self.fp16:
                raise ValueError("--fp16 needs a GPU; remove it on a CPU (float32), or use --bf16")
            self.dataloader_pin_memory = False
        if self.n_gpu > 1:
            self._n_gpu = 1  # otherwise Trainer would multiply the batch by the GPUs; ranks come from a launcher

    def _check_method(self) -> None:
        if self.method == "qlora":
            self.load_in = self.load_in or "4bit"
        if self.method == "full" and self.load_in:
            raise ValueError(f"--method full cannot train a base in --load_in {self.load_in}; use --method qlora")
        if self.load_in and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(f"--load_in {self.load_in} needs bitsandbytes, which is not installed; pip install it")
        given = json_of(self.deepspeed)
        stage = given.get("zero_optimization", {}).get("stage", 0)
        if stage == 3 and (self.load_in or self.lora_init != "default"):
            what = f"--load_in {self.load_in}" if self.load_in else f"--lora_init {self.lora_init}"
            raise ValueError(f"ZeRO-3 partitions the weights that {what} needs complete; use ZeRO-2 or no --deepspeed")
        if self.val_set_size and self.eval_data_path:
            raise ValueError("--val_set_size and --eval_data_path exclude each other; give one of the two")
        if self.eval_generate and not (self.val_set_size or self.eval_data_path):
            raise ValueError("--eval_generate has no held-out examples; give --val_set_size or --eval_data_path")

    def _plan_evaluation(self) -> None:
        """Set defaults: evaluate once an epoch if examples are held out; with a metric, use the best checkpoint."""
        if (self.val_set_size or self.eval_data_path) and self.eval_strategy == "no":
            self.eval_strategy = "epoch"
        if self.eval_generate and self.metric_for_best_model is None:
            self.metric_for_best_model = "f1"
        if self.metric_for_best_model is not None and self.eval_strategy != "no":
            self.load_best_model_at_end = True
            self.save_strategy, self.save_steps = self.eval_strategy, self.eval_steps or self.save_steps

    def _log_to_wandb(self) -> None:
        given = {name: getattr(self, f"wandb_{name}") for name in ("project", "watch", "log_model")}
        os.environ.update({f"WANDB_{name.upper()}": value for name, value in given.items() if value})
        self.run_name = self.wandb_run_name or self.run_name
        if self.wandb_project and self.report_to in ("none", "tensorboard"):
            self.report_to = "wandb"
        if "wandb" in (self.report_to or ()) and importlib.util.find_spec("wandb") is None:
            raise ValueError("wandb is not installed; pip install wandb, or remove --wandb_project")


def json_of(config: Any) -> dict[str, Any]:
    """Return DeepSpeed's configuration as a dictionary; raises ValueError if its file is missing or not JSON."""
    if not config or isinstance(config, dict):
        return config or {}
    try:
        return json.loads(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--deepspeed {config} cannot be read ({error}); pretrain/configs has some") from None


def accumulation(batch: int | None, micro: int, given: int, ranks: int) -> int:
    """Return the micro batches per rank and step: the global batch / (micro batch x ranks).

    batch: --batch_size. given: --gradient_accumulation_steps, 0 if not given. Raises ValueError, which proposes sizes,
    if the global batch is not divisible.
    """
    if micro < 1 or (batch is not None and batch < 1):
        raise ValueError(f"--batch_size {batch} and --micro_batch_size {micro} must be at least 1")
    together = micro * ranks
    if batch is None:
        batch = given * together if given else max(128 // together, 1) * together
    if batch % together:
        below, above = batch // together * together, -(-batch // together) * together
        sizes = " or ".join(str(size) for size in (below, above) if size)
        dividing = next((size for size in range(micro, 0, -1) if batch % (size * ranks) == 0), 0)
        other = f", or --micro_batch_size {dividing}" if dividing else ""
        raise ValueError(
            f"--batch_size {batch} is not divisible by --micro_batch_size {micro} x {ranks} ranks; "
            f"take --batch_size {sizes}{other}"
        )
    if given and given != batch // together:
        raise ValueError(
            f"--batch_size {batch} is {batch // together} micro batches of {micro} on {ranks} ranks, not the "
            f"{given} of --gradient_accumulation_steps; give one of the two"
        )
    return batch // together


def module_names(option: str, given: list[str]) -> list[str]:
    """Return module names from `a b`, `a,b`, `[a,b]` or `['a', 'b']`; raises ValueError if there are none."""
    names: list[str] = value_of(option, given, list[str])
    if not names:
        raise ValueError(f"{option} is an empty list; give all-linear or a list such as [q_proj,v_proj]")
    return names


def parse(argv: list[str], description: str) -> tuple[TuningArguments, list[str]]:
    """Return (options, notices to print); raises ValueError on unknown, abbreviated or invalid options."""
    return trainer_options.parse(TuningArguments, argv, description, "finetune.py", PUBLISHED)
