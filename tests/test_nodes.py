"""Both trainers on two nodes without a shared disk; each node has one rank and its own output folder."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, free_port, small_texts
from pretraining_runs import options
from resumable_checkpoints.complete_checkpoints import list_complete, step_of
from tuning_runs import command

RUNNING = "***** Running training *****"
RunNodes = Callable[..., list["subprocess.CompletedProcess[str]"]]


@pytest.fixture(params=["pretrain/train.py", "finetune/finetune.py"])
def script(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run_nodes(tmp_path: Path, script: str, tiny_checkpoint: Path, two_sources: Path) -> RunNodes:
    """run_nodes(option, …) runs one process for each node to its end and returns both."""
    rows = [{"instruction": "Repeat it.", "input": text, "output": text} for text in small_texts(10)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    def run(*more: object) -> list["subprocess.CompletedProcess[str]"]:
        port, processes = free_port(), []
        for node in range(2):
            output = tmp_path / f"node{node}" / "out"
            if script.startswith("pretrain"):
                words = [*map(str, options(tiny_checkpoint, two_sources, output, *more))]
            else:
                words = command(
                    tiny_checkpoint, tmp_path / "rows.json", output, "--batch_size", 4, "--micro_batch_size", 1, *more
                )
            ranks = {"RANK": node, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "OMP_NUM_THREADS": 1,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
            given: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": REPOSITORY}
            given["env"] = os.environ | {name: str(value) for name, value in ranks.items()}
            processes.append(subprocess.Popen([sys.executable, script, *words], **given))
        done = [(process, *process.communicate(timeout=500)) for process in processes]
        return [subprocess.CompletedProcess(process.args, process.returncode, *texts) for process, *texts in done]

    return run


@pytest.mark.slow
def test_each_node_saves_and_resumes_its_own_copy_and_logs_at_its_level(tmp_path: Path, run_nodes: RunNodes) -> None:
    folders = [tmp_path / f"node{node}" / "out" for node in range(2)]
    more = ("--max_steps", 4, "--save_steps", 2, "--save_on_each_node", "True", "--ddp_backend", "gloo")
    done = run_nodes(*more, "--log_on_each_node", "False", "--log_level_replica", "info", "--ddp_timeout", 1000)
    assert [each.returncode for each in done] == [0, 0], done
    assert [RUNNING in each.stderr for each in done] == [False, True]
    weights = [weights_of(folder) for folder in folders]
    assert weights[0] == weights[1]
    for folder in folders:
        assert [step_of(checkpoint) for checkpoint in list_complete(folder)] == [2, 4]
        shutil.rmtree(folder / "checkpoint-4")
        for file in folder.iterdir():
            if file.is_file():
                file.unlink()
    done = run_nodes(*more, "--resume_from_checkpoint", "True", "--log_level", "info")
    assert [each.returncode for each in done] == [0, 0], done
    assert [RUNNING in each.stderr for each in done] == [True, True]
    assert [weights_of(folder) for folder in folders] == weights


def weights_of(folder: Path) -> bytes:
    (file,) = folder.glob("*.safetensors")
    return file.read_bytes()
