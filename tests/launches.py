"""Run train.py on several ranks with DeepSpeed's launcher, for the tests of pretraining."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from conftest import REPOSITORY, free_port


class Launch:
    """Starts train.py with DeepSpeed's launcher in its own process group."""

    def __init__(self, extensions: Path) -> None:
        self.extensions = extensions

    def __call__(self, *options: object, ranks: int = 2, config: str = "zero3") -> "subprocess.Popen[str]":
        self.port = free_port()
        command = [
            Path(sys.executable).parent / "deepspeed", "-q", "--num_gpus", ranks, "--master_port", self.port,
            "pretrain/train.py", "--deepspeed", f"pretrain/configs/{config}.json", *options,
        ]  # fmt: skip
        return subprocess.Popen(
            list(map(str, command)), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(self.extensions),
                              "DS_ACCELERATOR": "cpu"},
        )  # fmt: skip

    def to_the_end(self, *options: object, status: int = 0, **more: Any) -> str:
        """Run to the end; return stdout and stderr; fail unless the exit status is `status`."""
        process = self(*options, **more)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == status, output
        assert not list(Path("/dev/shm").glob(f"deepspeed_*_{self.port}_*"))
        assert not list(self.extensions.iterdir())  # nothing was compiled, which takes minutes
        return output


def ranks_of(process: "subprocess.Popen[str]") -> list[int]:
    """Return the process ids of the ranks that DeepSpeed's launcher started."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [each.pid for each in found if any(word.endswith("pretrain/train.py") for word in each.cmdline()[:4])]
