"""The command line of a trainer: a subclass of transformers' TrainingArguments, read by HfArgumentParser.

Options of published command lines that current transformers no longer has are translated with a notice; unknown and
abbreviated options are errors.
"""

from command_line.strict_parsers import ParserErrors

import argparse
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Options = TypeVar("Options")
TRANSFORMERS_RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "warmup_ratio": "warmup_steps",  # values below 1 are a share of all steps
    "no_cuda": "use_cpu",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "torchdynamo": "torch_compile_backend",
}
TRANSFORMERS_DROPPED = dict.fromkeys(
    ("dispatch_batches", "fp16_backend", "fp16_opt_level", "half_precision_backend", "include_inputs_for_metrics",
     "include_tokens_per_second", "jit_mode_eval", "mp_parameters", "past_index", "ray_scope", "sharded_ddp",
     "split_batches", "tpu_metrics_debug", "tpu_num_cores", "use_ipex", "use_legacy_prediction_loop", "use_mps_device",
     "xpu_backend"),
    "Trainer no longer has it",
)  # fmt: skip
ENVIRONMENT = {"logging_dir": "TENSORBOARD_LOGGING_DIR"}


@dataclass(frozen=True)
class PublishedOptions:
    """Options of published command lines by name, beside those that transformers itself dropped."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)  # option -> why
    switches: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)  # option -> new option, on, off


def option(default: Any, help: str, *aliases: str) -> Any:
    """A field of a dataclass that HfArgumentParser reads: its default, its line of help and more names of it."""
    return field(default=default, metadata={"help": help} | ({"aliases": list(aliases)} if aliases else {}))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it is written, and every default."""


def translate(argv: Sequence[str], published: PublishedOptions) -> tuple[list[str], list[str]]:
    """The command line with published options in the words of current transformers, and a notice for each of them.

    An option that became an environment variable is set there.
    """
    renamed = TRANSFORMERS_RENAMED | dict(published.renamed)
    without_effect = TRANSFORMERS_DROPPED | dict(published.without_effect)
    result: list[str] = []
    notices: list[str] = []
    pending = deque(argv)
    while pending:
        word = pending.popleft()
        written, equals, value = word.partition("=")
        name = written.removeprefix("--").replace("-", "_")
        if not written.startswith("--") or name not in {*renamed, *without_effect, *published.switches, *ENVIRONMENT}:
            result.append(word)
            continue
        values = [value] if equals else []
        if not equals and pending and not pending[0].startswith("--"):
            values = [pending.popleft()]
        if name in published.switches:
            new = _switch(published.switches[name], values)
        else:
            new = [f"--{renamed[name]}", *values] if name in renamed else []
        result += new
        if name in ENVIRONMENT:
            os.environ[ENVIRONMENT[name]] = "".join(values)
            notices.append(f"--{name} is now the environment variable {ENVIRONMENT[name]}={''.join(values)}")
        elif name in without_effect:
            notices.append(f"--{name} has no effect: {without_effect[name]}")
        elif new[:1] != [f"--{name}"]:
            notices.append(f"--{name} is now {' '.join(new) or 'the default'}")
    return result, notices


def _switch(target: tuple[str, str, str], values: list[str]) -> list[str]:
    """The words for a switch that became a value of another option; no words where that is the default."""
    option, on, off = target
    spelled = "".join(values)
    value = {"": on, "true": on, "1": on, "yes": on, "false": off, "0": off, "no": off}.get(spelled.lower(), spelled)
    return [f"--{option}", value] if value else []


def parse(
    options: type[Options], argv: Sequence[str], description: str, prog: str, published: PublishedOptions
) -> tuple[Options, list[str]]:
    """Options of a command line, and the notices to print; ValueError on what is unknown, abbreviated or wrong."""
    translated, notices = translate(argv, published)
    namespace = _parser(options, description, prog).parse_args(translated)
    return options(**vars(namespace)), notices


def help_text(argv: Sequence[str], own: type, load_all: Callable[[], type], description: str, prog: str) -> str:
    """What `--help` or `--help=all` in argv asks for, else "".

    own: the dataclass of the command's own options, which imports no torch. load_all: imports the subclass of
    TrainingArguments, which takes seconds.
    """
    if "--help=all" in argv:
        return _parser(load_all(), description, prog).format_help()
    if "--help" not in argv and "-h" not in argv:
        return ""
    own_options = _parser(own, description, prog).format_help()
    return f"{own_options}\n--help=all adds the options of Trainer, such as --bf16, --seed and --deepspeed."


def _parser(options: type, description: str, prog: str) -> argparse.ArgumentParser:
    from transformers import HfArgumentParser

    class Parser(ParserErrors, HfArgumentParser):
        pass

    any_dataclass: Any = options
    words = {"description": description, "usage": f"{prog} [options]"}
    return Parser(any_dataclass, allow_abbrev=False, formatter_class=_HelpFormatter, **words)
