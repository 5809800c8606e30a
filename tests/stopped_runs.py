"""Training runs that a signal stops, for the tests of both trainers."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import REPOSITORY


def start_signalled(
    script: str, *options: object, after: str = "step ", group: bool = False, number: int = signal.SIGTERM
) -> "subprocess.Popen[str]":  # fmt: skip
    """Start a script that gets a signal directly after it prints a line that begins with `after`.

    group: all processes of its group get the signal, as from systemd, `timeout` and Slurm.
    """
    launcher = [REPOSITORY / "tests/signal_after_line.py", after, -number if group else int(number)]
    return subprocess.Popen(
        [sys.executable, *map(str, launcher), str(REPOSITORY / script), *map(str, options)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=REPOSITORY, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def stop_by_signal(script: str, *options: object, **more: Any) -> tuple[int, str]:
    """Run `start_signalled`; return exit status and stderr."""
    process = start_signalled(script, *options, **more)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def only_checkpoint(output: Path) -> Path:
    """Return the only checkpoint of a stopped run; fail if a final model was written."""
    assert not list(output.glob("*.safetensors"))
    (checkpoint,) = output.glob("checkpoint-*")
    return checkpoint
