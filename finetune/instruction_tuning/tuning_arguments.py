"""Parse and check the options of finetune.py: TuningOptions and all options of Trainer."""

from command_line.option_values import parse_value

import importlib.util
import sys
from dataclasses import dataclass, replace

import torch
from rank_group.ranks import join_ranks, launched_ranks
from training_loop import trainer_options
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from instruction_tuning.tuning_options import TuningOptions

PUBLISHED = trainer_options.DeprecatedOptions(
    without_effect={
        "overwrite_output_dir": "an output folder is never overwritten",
        "save_safetensors": "weights are always written as safetensors",
        "group_by_length": "examples are packed, so there is no padding to reduce",
        "packing": "examples are packed if the attention of the model keeps them apart",
        "wandb_project": "set WANDB_PROJECT in the environment, and give --report_to wandb",
        "wandb_watch": "set WANDB_WATCH in the environment",
        "wandb_log_model": "set WANDB_LOG_MODEL in the environment",
    },
    renamed={"wandb_run_name": "run_name"},
    flags={"adafactor": ("optim", "adafactor")},
    held_out=("val_set_size", "eval_data_path"),
)
# Used without --report_to: published commands give --wandb_run_name even if they do not report to Weights & Biases.
PUBLISHED_WITHOUT_TRACKER = replace(
    PUBLISHED,
    renamed={},
    without_effect={**PUBLISHED.without_effect, "wandb_run_name": "give --run_name and --report_to wandb"},
)
DEFAULT_OUTPUT = "checkpoint"
MAX_PROPOSED_MICRO_BATCH = 10_000  # limit of the search for the --micro_batch_size that an error message proposes


@dataclass
class TuningArguments(TuningOptions, TrainingArguments):
    """TuningOptions and TrainingArguments with every default resolved; raises ValueError on impossible options."""

    def __post_init__(self) -> None:
        self.data_path = [word for word in self.data_path if word]
        for name in ("lora_target_modules", "lora_modules_to_save"):
            setattr(self, name, parse_value(f"--{name}", getattr(self, name), list[str]))
        for name in ("base_model", "data_path", "output_dir", "lora_target_modules"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing; --help lists the options")
        self._check_method()
        if self.logging_nan_inf_filter:
            raise ValueError(
                "--logging_nan_inf_filter has no effect here, as a loss that is not finite ends the run; remove it"
            )
        ranks = launched_ranks()
        self.gradient_accumulation_steps = accumulation_steps(
            self.batch_size, self.per_device_train_batch_size, self.gradient_accumulation_steps, ranks
        )
        self.batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps * ranks
        # For Trainer, an item of the data loader is a whole step; see StepDataset.
        self.accumulation, self.gradient_accumulation_steps = self.gradient_accumulation_steps, 1
        self._plan_evaluation()
        self.logging_first_step &= self.logging_strategy != "no"
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        join_ranks(self.deepspeed, self.ddp_backend, self.ddp_timeout)
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise Trainer does not average the gradients of CPU ranks
        super().__post_init__()
        if is_deepspeed_zero3_enabled() and (self.load_in or self.lora_init != "default"):
            option = f"--load_in {self.load_in}" if self.load_in else f"--lora_init {self.lora_init}"
            raise ValueError(
                f"{option} needs whole weights, but ZeRO-3 partitions them; use ZeRO-2, or remove --deepspeed"
            )
        if self.world_size != ranks:
            raise ValueError(f"{ranks} ranks were launched, but Trainer sees {self.world_size}; launch with torchrun")

    def _check_method(self) -> None:
        if self.method == "qlora":
            self.load_in = self.load_in or "4bit"
        if self.method == "full" and self.load_in:
            raise ValueError(f"--method full cannot train a base in --load_in {self.load_in}; use --method qlora")
        if self.load_in and importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(f"--load_in {self.load_in} needs bitsandbytes, which is not installed; pip install it")
        if self.val_set_size and self.eval_data_path:
            raise ValueError("--val_set_size and --eval_data_path exclude each other; give one of the two")

    def _plan_evaluation(self) -> None:
        """Set defaults: with held-out examples, evaluate every --eval_steps, or once per epoch if it is not given.

        With --metric_for_best_model, or --eval_generate (F1), the result has the weights of the best checkpoint.
        """
        if (self.val_set_size or self.eval_data_path) and self.eval_strategy == "no":
            self.eval_strategy = "steps" if self.eval_steps else "epoch"
        if self.eval_generate and self.metric_for_best_model is None:
            self.metric_for_best_model = "f1"
        if self.metric_for_best_model is not None and self.eval_strategy != "no":
            self.load_best_model_at_end = True
            if self.save_strategy != "best":
                self.save_strategy, self.save_steps = self.eval_strategy, self.eval_steps or self.save_steps


def accumulation_steps(batch: int | None, micro: int, given: int, ranks: int) -> int:
    """Return the micro batches per rank and step: the global batch / (micro batch x ranks).

    batch: --batch_size. micro: --micro_batch_size. given: --gradient_accumulation_steps, 0 if not given. Raises
    ValueError if a size is below 1, if both `batch` and `given` are set, or if the global batch is not divisible; the
    message then proposes sizes.
    """
    for option, size in (("batch_size", batch), ("micro_batch_size", micro)):
        if size is not None and size < 1:
            raise ValueError(f"--{option} {size} must be at least 1")
    if batch and given:
        raise ValueError("--batch_size and --gradient_accumulation_steps exclude each other; give one of the two")
    per_forward_pass = micro * ranks
    if batch is None:
        batch = (given or max(128 // per_forward_pass, 1)) * per_forward_pass
    if batch % per_forward_pass:
        below, above = batch // per_forward_pass * per_forward_pass, -(-batch // per_forward_pass) * per_forward_pass
        sizes = " or ".join(str(size) for size in (below, above) if size)
        largest = min(micro, batch, MAX_PROPOSED_MICRO_BATCH)
        dividing = next((size for size in range(largest, 0, -1) if batch % (size * ranks) == 0), 0)
        other = f", or --micro_batch_size {dividing}" if dividing else ""
        raise ValueError(
            f"--batch_size {batch} is not divisible by --micro_batch_size {micro} x {ranks} rank{'s' * (ranks > 1)}; "
            f"take --batch_size {sizes}{other}"
        )
    return batch // per_forward_pass


def parse(argv: list[str], description: str) -> tuple[TuningArguments, list[str]]:
    """Return (options, notices to print); raises ValueError on unknown, abbreviated or invalid options.

    The default of --output_dir is `checkpoint`, as in the published script.
    """
    given = {word.partition("=")[0].replace("-", "_") for word in argv}
    published = PUBLISHED if "__report_to" in given else PUBLISHED_WITHOUT_TRACKER
    if "__output_dir" in given:
        return trainer_options.parse(TuningArguments, argv, description, "finetune.py", published)
    argv = [*argv, "--output_dir", DEFAULT_OUTPUT]
    args, notices = trainer_options.parse(TuningArguments, argv, description, "finetune.py", published)
    return args, [*notices, f"--output_dir is not given; the result is written to {DEFAULT_OUTPUT}"]
