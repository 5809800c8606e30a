"""Functions for all benchmarks: order of the contenders in a round, median and range, resources of a process."""

import contextlib
import json
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY.parent / "shared/data"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def rotated(names: list[str], number: int) -> list[str]:
    """Return the names in the order of a round, so that each contender is first in some rounds."""
    return names[number % len(names) :] + names[: number % len(names)]


def spread(values: Sequence[float], digits: int = 4) -> list[float]:
    """Return median, minimum and maximum."""
    return [round(value, digits) for value in (median(values), min(values), max(values))]


class ProcessUsage(NamedTuple):
    """Resources that a process and its children used. peaks: maximum of each sampled amount of memory, in bytes."""

    seconds: float
    cpu_seconds: float
    peaks: list[int]


def run_measured(
    command: Sequence[object], folder: Path, interval: float, memory: Callable[[psutil.Process], Sequence[int]]
) -> ProcessUsage:
    """Run a command in a folder and sample its memory every `interval` seconds.

    Raises ValueError with the end of the output if the command fails.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = psutil.Popen(
        list(map(str, command)), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    peaks: list[int] = []
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # a process has just ended
            sizes = memory(process)
            peaks = [max(pair) for pair in zip(sizes, peaks or sizes, strict=True)]
        time.sleep(interval)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    output = process.communicate()[0]
    if process.returncode:
        raise ValueError(f"{' '.join(map(str, command))} failed: {output[-3000:]}")
    return ProcessUsage(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peaks)
