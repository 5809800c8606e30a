"""Check Trainer's options before a model is loaded: options without effect, missing packages, unusable schedules."""

from command_line.command_errors import one_line

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

# Options of Trainer that both trainers refuse, with the reason.
REFUSED = {
    "label_smoothing_factor": "the loss is the cross entropy of each token without smoothing",
    "average_tokens_across_devices": "the loss is always the mean over the tokens of all ranks",
    "dataloader_drop_last": "every sequence or example is used",
    "dataloader_persistent_workers": "the data loader runs once from the first step to the last",
    "dataloader_multiprocessing_context": "workers are forked, so that they share the data",
    "dataloader_in_order": "batches keep their order, so that a run can be resumed",
    "accelerator_config": "each rank reads its own part of the batches",
    "prediction_loss_only": "evaluation measures the loss of each source",
    "eval_do_concat_batches": "evaluation keeps no predictions",
    "eval_use_gather_object": "evaluation keeps no predictions",
    "eval_accumulation_steps": "evaluation keeps no predictions",
    "include_for_metrics": "evaluation keeps no predictions",
    "batch_eval_metrics": "evaluation keeps no predictions",
    "label_names": "the labels are known",
    "length_column_name": "lengths are known",
    "save_only_model": "such checkpoints could not be resumed",
    "enable_jit_checkpoint": "SIGTERM always ends a run with a checkpoint",
    "restore_callback_states_from_checkpoint": "log and checkpoint callbacks keep no state",
    "do_train": "this command always trains",
    "do_eval": "held-out data is evaluated if there is some",
    "do_predict": "this command only trains",
    "bf16_full_eval": "held-out losses are computed in the precision of training",
    "fp16_full_eval": "held-out losses are computed in the precision of training",
    "use_cache": "training needs no key-value cache; config.json keeps the value of the base",
    "include_num_input_tokens_seen": "the log always has the number of tokens",
    "ignore_data_skip": "a resumed run always begins with its next batch",
    "remove_unused_columns": "the items of the data loader have no columns",
}  # fmt: skip
# Options for uploads during a run, which are refused, since a result is complete only after the run.
HUB_OPTIONS = (
    "push_to_hub",
    *(f"hub_{end}" for end in ["model_id", "strategy", "token", "private_repo", "always_push", "revision"]),
)
# Options that have an effect only together with another option.
NEEDED = {
    "gradient_checkpointing_kwargs": "gradient_checkpointing",
    "liger_kernel_config": "use_liger_kernel",
    "fsdp_config": "fsdp",
    "eval_max_new_tokens": "eval_generate",
}
# Options that need one of these programs in --report_to.
TRACKERS = {
    "run_name": ("wandb", "comet_ml", "dagshub", "mlflow", "swanlab", "trackio"),
    **dict.fromkeys(("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), ("trackio",)),
}
# Options of evaluation, besides those whose names begin with `eval_`.
EVALUATION = ("per_device_eval_batch_size", "load_best_model_at_end", "metric_for_best_model", "greater_is_better")
# Options of evaluation that published commands give without held-out data; alone, they request no evaluation.
EVALUATION_SIZES = ("per_device_eval_batch_size", "eval_steps")

# Lowest allowed values of options. A default below the lowest value is also allowed; it has a special meaning.
LOWEST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "batch_size": 1, "num_train_epochs": 0, "learning_rate": 0, "weight_decay": 0, "warmup_steps": 0,
    "adam_beta1": 0, "adam_beta2": 0, "adam_epsilon": 0, "max_grad_norm": 0, "neftune_noise_alpha": 0, "eval_delay": 0,
    "logging_steps": 0, "eval_steps": 0, "save_steps": 0, "save_total_limit": 1, "torch_empty_cache_steps": 1,
    "seed": 0, "data_seed": 0, "dataloader_num_workers": 0, "dataloader_prefetch_factor": 1, "ddp_bucket_cap_mb": 1,
    "ddp_timeout": 1, "cutoff_len": 2, "val_set_size": 0, "eval_max_new_tokens": 1, "lora_r": 1, "lora_alpha": 1,
    "lora_dropout": 0, "loraplus_lr_ratio": 0, "max_nan_steps": 1, "peak_tflops": 0,
}  # fmt: skip
BELOW_ONE = ("adam_beta1", "adam_beta2", "lora_dropout")


def check_values(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise ValueError if an option has no effect, or if a number or the output folder is unusable.

    defaults: option -> value, parsed from an empty command line. given: the same from the user's command line.
    """
    reported = {given["report_to"]} if isinstance(given["report_to"], str) else {*(given["report_to"] or ())}
    for name, value in given.items():
        if value in (None, "", defaults[name]):
            continue
        if name in REFUSED:
            raise ValueError(f"--{name} has no effect here, as {REFUSED[name]}; remove it")
        if name in HUB_OPTIONS:
            upload = f"upload the result after the run: hf upload OWNER/NAME {given['output_dir']}"
            raise ValueError(f"--{name}: nothing is uploaded during a run; remove the option, and {upload}")
        if name in NEEDED and not given[NEEDED[name]]:
            raise ValueError(f"--{name} has no effect without --{NEEDED[name]}; add it, or remove --{name}")
        if name in TRACKERS and not reported & {*TRACKERS[name], "all"}:
            programs = " or ".join(TRACKERS[name])
            raise ValueError(f"--{name} has no effect without --report_to {programs}; remove it")
        if name == "debug" and "tpu_metrics_debug" in value:
            raise ValueError("--debug tpu_metrics_debug has no effect here, as TPUs are not supported; remove it")
        if name in LOWEST and value < LOWEST[name]:
            raise ValueError(f"--{name} {value} is too small; it must be at least {LOWEST[name]}")
        if name in BELOW_ONE and value >= 1:
            raise ValueError(f"--{name} {value} is too large; it must be below 1")
    for event, done in (("logging", "logged"), ("eval", "evaluated"), ("save", "saved")):
        if given[f"{event}_strategy"] == "steps" and given[f"{event}_steps"] == 0 != defaults[f"{event}_steps"]:
            raise ValueError(
                f"--{event}_steps must be above 0; for a run in which nothing is {done}, give --{event}_strategy no"
            )
    output = Path(given["output_dir"] or "")
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output_dir {output} is a file; name a new folder")


def check_held_out(defaults: Mapping[str, Any], given: Mapping[str, Any], held_out: Sequence[str]) -> list[str]:
    """Return a notice for each option of EVALUATION_SIZES that is given without held-out data.

    defaults, given: see `check_values`. held_out: the options that name held-out data. Raises ValueError if another
    option of evaluation is given without such data.
    """
    if any(given[name] for name in held_out):
        return []
    ignored = []
    options = " or ".join(f"--{name}" for name in held_out)
    for name, value in given.items():
        if value in (None, defaults[name]) or not (name in EVALUATION or name.startswith("eval_")):
            continue
        if name not in EVALUATION_SIZES:
            raise ValueError(f"--{name} has no effect without held-out data; give {options}, or remove it")
        ignored.append(f"--{name} has no effect without held-out data; give {options} to evaluate")
    return ignored


def check_requirements(args: Any) -> None:
    """Raise ValueError if an option needs a GPU or a package that is missing, or contradicts another option.

    args: an instance of a subclass of TrainingArguments.
    """
    import torch
    from transformers import get_scheduler
    from transformers.integrations import get_reporting_integration_callbacks
    from transformers.utils import is_liger_kernel_available

    if args.load_best_model_at_end and args.save_strategy == "steps" and args.save_steps != args.eval_steps:
        raise ValueError(
            f"--load_best_model_at_end with --eval_steps {args.eval_steps:g} and --save_steps {args.save_steps:g}: the "
            "best step may have no checkpoint; give the same number for both"
        )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("--fp16 needs a GPU; remove it on a CPU (float32), or use --bf16")
    if args.greater_is_better is not None and args.metric_for_best_model is None:
        raise ValueError("--greater_is_better has no effect without --metric_for_best_model; add it")
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError("--use_liger_kernel needs liger-kernel, which is not installed: pip install liger-kernel")
    try:
        option = f"--report_to {' '.join(args.report_to)}"
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
        option = f"--optim {args.optim.value}"
        check_optimizer(args)
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"{option}: {one_line(error)}") from None
    try:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"--lr_scheduler_type {args.lr_scheduler_type.value} does not fit --lr_scheduler_kwargs "
            f"{json.dumps(args.lr_scheduler_kwargs or {})}: {one_line(error)}"
        ) from None


def check_optimizer(args: Any) -> None:
    """Raise ValueError if an argument of the optimizer has no effect or is invalid; ImportError without its package."""
    from transformers import Trainer

    def optimizer(parts: list[str]) -> Any:
        changed = copy(args)
        changed.optim_args = ",".join(parts) or None
        return Trainer.get_optimizer_cls_and_kwargs(changed)

    if args.optim_target_modules and not args.optim.value.startswith(("galore", "apollo")):
        raise ValueError(
            f"--optim_target_modules is for GaLore and APOLLO, not for --optim {args.optim.value}; remove it"
        )
    if not args.optim_args:
        with suppress(ValueError):  # raised about modules of the model, which is not loaded yet
            optimizer([])
        return
    parts = args.optim_args.replace(" ", "").split(",")
    for part in parts:
        if not re.fullmatch("[^=]+=[^=]+", part):
            raise ValueError(f"--optim_args has {part!r}, which is not KEY=VALUE; write momentum=0.9,nesterov=true")
    try:
        chosen = optimizer(parts)
    except ValueError as error:
        raise ValueError(f"--optim_args {args.optim_args}: {one_line(error)}") from None
    for part in parts:
        if optimizer([other for other in parts if other != part]) == chosen:
            raise ValueError(f"--optim_args {part} changes nothing with --optim {args.optim.value}; remove it")
