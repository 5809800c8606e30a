"""Training runs that a signal stops, for the tests of both trainers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


def stop_by_signal(
    script: str, *options: object, after: str = "step ", group: bool = False, number: int = signal.SIGTERM
) -> tuple[int, str]:  # fmt: skip
    """Run a script and send it a signal after a line that begins with `after`; return exit status and stderr.

    group: send it to all processes of its group, as systemd, `timeout` and Slurm do.
    """
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *map(str, options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=REPOSITORY, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout
    for line in process.stdout:
        if line.startswith(after):
            (os.killpg if group else os.kill)(process.pid, number)
            break
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def only_checkpoint(output: Path) -> Path:
    """Return the only checkpoint of a stopped run; fail if a final model was written."""
    assert not list(output.glob("*.safetensors"))
    (checkpoint,) = output.glob("checkpoint-*")
    return checkpoint
