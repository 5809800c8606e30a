"""The executor options of commands that run tasks of a pipeline."""

from command_line.strict_parsers import at_least

import argparse
import importlib.util
import shutil
from dataclasses import dataclass, fields

RAY = "ray==2.60.0"
EXECUTORS = ("local", "slurm", "ray")


@dataclass(frozen=True)
class ExecutorOptions:
    """The executor options of a command line; the fields are named like the options."""

    executor: str = "local"
    slurm_partition: str = ""
    slurm_time: str = "24:00:00"
    slurm_memory_gb: int = 4
    slurm_option: tuple[str, ...] = ()  # options of sbatch, each KEY=VALUE
    ray_address: str = ""


def add_executor_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ExecutorOptions` to a command line."""
    group = parser.add_argument_group("executor")
    group.add_argument(
        "--executor", choices=EXECUTORS, default="local", help="where tasks run (default: local, this machine)"
    )
    group.add_argument("--slurm_partition", default="", metavar="P", help="partition of the jobs; required with slurm")
    group.add_argument("--slurm_time", default="24:00:00", metavar="T", help="time limit of a job (default: 24:00:00)")
    group.add_argument(
        "--slurm_memory_gb", type=at_least(1), default=4, metavar="N", help="memory of a job, in GB (default: 4)"
    )
    group.add_argument(
        "--slurm_option", nargs="+", default=[], metavar="KEY=VALUE", help="options of sbatch: account=a qos=long"
    )
    group.add_argument(
        "--ray_address", default="", metavar="HOST:PORT",
        help="address of a running Ray (default: RAY_ADDRESS if set, else start Ray on this machine)",
    )  # fmt: skip


def executor_options(arguments: argparse.Namespace) -> ExecutorOptions:
    """Return the executor options of a parsed command line.

    Raises ValueError if an option is invalid, is missing or has no effect with the executor, or if the executor's
    program (sbatch, Ray) is not installed.
    """
    values = {field.name: getattr(arguments, field.name) for field in fields(ExecutorOptions)}
    values["slurm_option"] = tuple(values["slurm_option"])
    for option in values["slurm_option"]:
        if not option.partition("=")[0] or "=" not in option:
            raise ValueError(f"--slurm_option {option} is not KEY=VALUE; write, for example, account=name")
    options = ExecutorOptions(**values)
    for field in fields(ExecutorOptions):
        executor = field.name.partition("_")[0]
        if executor in EXECUTORS and executor != options.executor and values[field.name] != field.default:
            fact = f"--{field.name} has no effect with --executor {options.executor}"
            raise ValueError(f"{fact}; give --executor {executor} or remove it")
    if options.executor == "slurm" and not options.slurm_partition:
        raise ValueError("--executor slurm needs --slurm_partition; `sinfo` lists the partitions")
    if options.executor == "slurm" and not shutil.which("sbatch"):
        raise ValueError("--executor slurm: sbatch was not found; submit from a login node, or use --executor local")
    if options.executor == "ray" and importlib.util.find_spec("ray") is None:
        raise ValueError(f"--executor ray: Ray is not installed; pip install {RAY}")
    return options
