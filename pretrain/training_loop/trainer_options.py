"""Parse the options of a training script, declared as a subclass of transformers' TrainingArguments.

Options of the original release that transformers renamed or removed are translated with a notice. Unknown and
abbreviated options are errors.
"""

from command_line.option_values import parse_value
from command_line.strict_parsers import OneLineErrorMixin

import argparse
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, get_origin

from training_loop.option_checks import check_held_out, check_requirements, check_values

Options = TypeVar("Options")
TRANSFORMERS_RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # values below 1 are a share of all steps
    "no_cuda": "use_cpu",
}
TRANSFORMERS_REMOVED = {"logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR"}


@dataclass(frozen=True)
class DeprecatedOptions:
    """Options of a command's original release that this repository, not transformers, renamed or removed.

    renamed: old name -> new name. without_effect: option -> reason. flags: former flag -> (new option, its value).
    held_out: options of the command that name held-out data.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    held_out: Sequence[str] = ()


def option(default: Any, help: str, *aliases: str, **more: Any) -> Any:
    """Return a dataclass field for HfArgumentParser with a default, a help line and alternative names.

    default: a list is copied for each instance. more: further arguments of argparse, such as choices.
    """
    defaults = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(**defaults, metadata={"help": help, "aliases": list(aliases), **more})


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Prints the description without reformatting it, and the default of every option."""


def translate(argv: Sequence[str], deprecated: DeprecatedOptions) -> tuple[list[str], list[str]]:
    """Return the command line with deprecated options replaced or removed, and a notice for each of them."""
    renamed = TRANSFORMERS_RENAMED | dict(deprecated.renamed)
    without_effect = TRANSFORMERS_REMOVED | dict(deprecated.without_effect)
    result: list[str] = []
    notices: list[str] = []
    pending = deque(argv)
    while pending:
        word = pending.popleft()
        written, equals, value = word.partition("=")
        name = written.removeprefix("--").replace("-", "_")
        if not written.startswith("--") or name not in {*renamed, *without_effect, *deprecated.flags}:
            result.append(word)
            continue
        values = [value] if equals else []
        if not equals and pending and not pending[0].startswith("--"):
            values = [pending.popleft()]
        if name in without_effect:
            notices.append(f"--{name} has no effect: {without_effect[name]}")
            continue
        if name in renamed:
            new = [f"--{renamed[name]}", *values]
        else:
            option_name, value = deprecated.flags[name]
            given = "".join(values).lower()
            value = value if given in ("", "true", "1", "yes") else given  # the parser refuses other values
            new = [] if given in ("false", "0", "no") else [f"--{option_name}", value]
        result += new
        notices.append(f"--{name} is now {' '.join(new) or 'the default'}")
    return result, notices


def parse(
    options: type[Options], argv: Sequence[str], description: str, prog: str, deprecated: DeprecatedOptions
) -> tuple[Options, list[str]]:
    """Return the parsed options and the notices to print; raises ValueError on unknown, abbreviated or invalid ones."""
    translated, notices = translate(argv, deprecated)
    parser = _parser(options, description, prog)
    defaults, given = vars(parser.parse_args([])), vars(parser.parse_args(translated))
    check_values(defaults, given)
    notices += check_held_out(defaults, given, deprecated.held_out)
    args = options(**given)
    check_requirements(args)
    return args, notices


def count_epochs_in_steps(args: Any, steps: int) -> None:
    """Replace the strategy `epoch` of logging, evaluation and saving by `steps`, as Trainer sees the run as one epoch.

    steps: number of steps of an epoch. args.max_steps must be set: a run shorter than an epoch logs, evaluates and
    saves at its end.
    """
    from transformers.trainer_utils import IntervalStrategy

    for event in ("logging", "eval", "save"):
        if getattr(args, f"{event}_strategy") == IntervalStrategy.EPOCH:
            setattr(args, f"{event}_strategy", IntervalStrategy.STEPS)
            setattr(args, f"{event}_steps", min(steps, args.max_steps))
            if event == "eval":
                args.eval_delay *= steps


def help_text(argv: Sequence[str], own: type, load_all: Callable[[], type], description: str, prog: str) -> str:
    """Return the help text if argv contains `--help`, `-h` or `--help=all`, else "".

    own: the dataclass of the command's own options; its module does not import torch. load_all: imports and returns the
    subclass of TrainingArguments, which takes seconds.
    """
    if "--help=all" in argv:
        return _parser(load_all(), description, prog).format_help()
    if "--help" not in argv and "-h" not in argv:
        return ""
    own_options = _parser(own, description, prog).format_help()
    return f"{own_options}\n--help=all adds the options of Trainer, such as --bf16, --seed and --deepspeed."


def _number(kind: type, text: str) -> Any:
    """Parse an int or a finite float, as an argparse type; raises ArgumentTypeError."""
    try:
        return parse_value("", text, kind)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).strip()) from None


def _json_object(text: str) -> dict[str, Any]:
    """Parse an option that takes a dictionary, such as --liger_kernel_config; raises ArgumentTypeError."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"takes a JSON object, not {text!r}")
    return found


def _parser(options: type, description: str, prog: str) -> argparse.ArgumentParser:
    from transformers import HfArgumentParser

    class Parser(OneLineErrorMixin, HfArgumentParser):
        def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
            kind = settings.get("type")
            if kind in (int, float):  # these take `1_0` and other digits than 0 to 9, and float also nan and inf
                settings["type"] = partial(_number, kind)
            if get_origin(kind) is dict:  # dict(text) fails
                settings["type"] = _json_object
            return super().add_argument(*names, **settings)

    any_dataclass: Any = options
    texts = {"description": description, "usage": f"{prog} [options]"}
    return Parser(any_dataclass, allow_abbrev=False, formatter_class=_HelpFormatter, **texts)
