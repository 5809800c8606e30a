"""A training run that gets SIGTERM while it trains, for the tests of both trainers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


def stop_by_sigterm(script: str, *options: object) -> tuple[int, str]:
    """Run a script, send it SIGTERM when it has logged a step, and return its exit status and stderr."""
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *map(str, options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def only_checkpoint(output: Path) -> Path:
    """The checkpoint of a run that was stopped; nothing else of its result is there."""
    assert not list(output.glob("*.safetensors"))
    (checkpoint,) = output.glob("checkpoint-*")
    return checkpoint
