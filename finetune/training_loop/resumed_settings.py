"""Apply the command line's optimizer options to a resumed run, in place of the values in the checkpoint."""

from collections.abc import Sequence
from typing import Any

# setting of a parameter group -> options that set it
OPTIONS = {
    "initial_lr": "--learning_rate",
    "weight_decay": "--weight_decay",
    "betas": "--adam_beta1 and --adam_beta2",
    "eps": "--adam_epsilon",
}


def check_steps(max_steps: int, steps_done: int) -> None:
    """Raise ValueError if the checkpoint to resume from has more steps than the run."""
    if max_steps < steps_done:
        raise ValueError(
            f"the checkpoint has {steps_done} steps, but the run has only {max_steps}; give a larger --max_steps or "
            "--num_train_epochs, or name an earlier checkpoint with --resume_from_checkpoint"
        )


def group_settings(optimizer: Any) -> list[dict[str, Any]]:
    """Return, for each parameter group, its settings that are keys of OPTIONS."""
    return [{name: group[name] for name in OPTIONS if name in group} for group in optimizer.param_groups]


def apply_settings(optimizer: Any, schedule: Any, wanted: Sequence[dict[str, Any]]) -> list[str]:
    """Replace the settings that a checkpoint restored; return a notice for each setting that has changed.

    With a LambdaLR, the next step has the learning rate of the new schedule. Other schedules continue with the learning
    rate of the checkpoint, and a notice says so. wanted: the result of `group_settings` before the checkpoint was
    loaded.
    """
    notices: dict[str, str] = {}
    for group, settings in zip(optimizer.param_groups, wanted, strict=True):
        for name, value in settings.items():
            before = group.get(name)
            if before is not None and _values(before) != _values(value):
                notices.setdefault(name, f"{OPTIONS[name]}: {value} from this step on, {before} until now")
            group[name] = value
    if hasattr(schedule, "lr_lambdas"):
        schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        rates = [
            rate * factor(schedule.last_epoch)
            for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates
    else:
        notices.pop("initial_lr", None)
        notices["lr"] = (
            f"--learning_rate has no effect on this resumed run: {type(schedule).__name__} continues with the learning "
            "rate of the checkpoint"
        )
    return list(notices.values())


def _values(setting: Any) -> list[float]:
    """Return the numbers of a setting, which some optimizers store as tensors or lists."""
    return [float(value) for value in (setting if isinstance(setting, list | tuple) else [setting])]
