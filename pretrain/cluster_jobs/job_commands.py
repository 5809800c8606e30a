"""What `preprocess.py` and `clean.py` share: options that say where the work runs, and an orderly end on SIGTERM."""

from command_line.command_errors import run_command
from command_line.strict_parsers import number_from

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NoReturn

EXECUTORS = ("local", "slurm", "ray")


def run_job(work: Callable[[], None]) -> NoReturn:
    """Do the work of a command as `run_command` does; SIGTERM passes through every `finally` and gives status 143."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run_command(work)


@dataclass(frozen=True)
class ExecutorOptions:
    """What the command line says of where to run; the names are the options'."""

    executor: str = "local"
    slurm_partition: str = ""
    slurm_time: str = "24:00:00"
    slurm_memory_gb: int = 4
    slurm_option: tuple[str, ...] = ()  # key=value of sbatch's own
    ray_address: str = ""


def add_executor_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ExecutorOptions` to a command line."""
    group = parser.add_argument_group("where it runs")
    group.add_argument("--executor", choices=EXECUTORS, default="local", help="this machine (default), or a cluster")
    group.add_argument("--slurm_partition", default="", metavar="P", help="where Slurm's jobs run; needed there")
    group.add_argument("--slurm_time", default="24:00:00", metavar="T", help="limit of a task (default: 24:00:00)")
    group.add_argument(
        "--slurm_memory_gb", type=number_from(1), default=4, metavar="N", help="memory of a task (default: 4)"
    )
    group.add_argument(
        "--slurm_option", nargs="+", default=[], metavar="KEY=VALUE", help="sbatch's own: account=a qos=long"
    )
    group.add_argument("--ray_address", default="", metavar="A", help="a running Ray's (default: start one here)")


def executor_options(arguments: argparse.Namespace) -> ExecutorOptions:
    """The options of a parsed command line; raises ValueError on one that cannot be."""
    values = {field.name: getattr(arguments, field.name) for field in fields(ExecutorOptions)}
    values["slurm_option"] = tuple(values["slurm_option"])
    for option in values["slurm_option"]:
        if not option.partition("=")[0] or "=" not in option:
            raise ValueError(f"--slurm_option {option} is no KEY=VALUE; write account=name")
    options = ExecutorOptions(**values)
    if options.executor == "slurm" and not options.slurm_partition:
        raise ValueError("--executor slurm needs --slurm_partition; `sinfo` lists them")
    return options
