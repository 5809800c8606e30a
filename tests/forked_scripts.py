"""Many short runs of the repository's scripts, forked from one process that has imported their libraries.

With a tiny checkpoint, importing torch and transformers takes most of a script's time. Otherwise the runs are like a
user's: one process per run, with its arguments, its exit status, and the script as the main module.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from conftest import REPOSITORY, RunScript

LIBRARIES = ["torch", "transformers", "peft", "datasets", "accelerate"]


def forked_scripts(place: Path) -> RunScript:
    """Return a function like run_script that requires exit status 0 and keeps the scripts' output in `place`."""
    several = multiprocessing.get_context("forkserver")
    several.set_forkserver_preload(LIBRARIES)
    numbers = count()

    def run(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        printed = place / f"printed-{next(numbers)}"
        command = [str(REPOSITORY / script), *map(str, arguments)]
        process = several.Process(target=become, args=(command, printed))
        process.start()
        process.join(300)
        process.kill()  # if it exceeded the timeout
        process.join()
        text = printed.read_text()
        if process.exitcode != 0:
            pytest.fail(f"{' '.join(command)}: exit {process.exitcode}\n{text}")
        return subprocess.CompletedProcess(command, 0, text, "")

    return run


def become(command: list[str], printed: Path) -> None:
    """Run the script as the main module of this process; redirect its output to a file."""
    with printed.open("wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(REPOSITORY)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
