"""Check Trainer's options before a model is loaded: options without effect, missing packages, unusable schedules."""

from command_line.command_errors import one_line

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

# Options of Trainer that both trainers refuse, with the reason. The others work as in Trainer.
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
}


def check_effects(options: type, given: Mapping[str, Any]) -> None:
    """Raise ValueError if a refused option is not its default. options: the dataclass. given: values by name."""
    for field in fields(options):
        default = field.default_factory() if callable(field.default_factory) else field.default
        if field.name in REFUSED and given[field.name] != default:
            raise ValueError(f"--{field.name} has no effect here, as {REFUSED[field.name]}; remove it")


def check_requirements(args: Any) -> None:
    """Raise ValueError if an option needs a package that is not installed, or other options than those given.

    args: an instance of a subclass of TrainingArguments.
    """
    import torch
    from transformers import Trainer, get_scheduler
    from transformers.integrations import get_reporting_integration_callbacks
    from transformers.utils import is_liger_kernel_available

    if args.load_best_model_at_end and args.save_strategy == "steps" and args.save_steps != args.eval_steps:
        raise ValueError(
            f"--load_best_model_at_end with --eval_steps {args.eval_steps:g} and --save_steps {args.save_steps:g}: the "
            "best step may have no checkpoint; give the same number for both"
        )
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError("--use_liger_kernel needs liger-kernel, which is not installed: pip install liger-kernel")
    try:
        option = f"--report_to {' '.join(args.report_to)}"
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
        option = f"--optim {args.optim.value}"
        with suppress(ValueError):  # about modules of the model, which is not loaded yet
            Trainer.get_optimizer_cls_and_kwargs(args)
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
