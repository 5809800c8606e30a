"""Many short runs of the repository's scripts: forked off one process that has imported their libraries.

To import torch and transformers is most of what a script takes with a tiny checkpoint. All else is as a user has it: a
process for each run, with its arguments, its exit status and the script as its main module.
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
    """Like run_script, for what exits with 0; what the scripts print is kept in `place`."""
    several = multiprocessing.get_context("forkserver")
    several.set_forkserver_preload(LIBRARIES)
    numbers = count()

    def run(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        printed = place / f"printed-{next(numbers)}"
        command = [str(REPOSITORY / script), *map(str, arguments)]
        process = several.Process(target=become, args=(command, printed))
        process.start()
        process.join(300)
        process.kill()  # where it still runs
        process.join()
        text = printed.read_text()
        if process.exitcode != 0:
            pytest.fail(f"{' '.join(command)}: exit {process.exitcode}\n{text}")
        return subprocess.CompletedProcess(command, 0, text, "")

    return run


def become(command: list[str], printed: Path) -> None:
    """Be the script from here on; what it prints goes to a file."""
    with printed.open("wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(REPOSITORY)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")
