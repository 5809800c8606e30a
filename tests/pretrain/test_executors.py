"""executors.py: tasks that fail or are killed, jobs for Slurm, and Ray where it is installed."""

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
from cluster_jobs.executors import make_executor, run_tasks
from cluster_jobs.job_commands import RAY, ExecutorOptions, add_executor_options, executor_options
from conftest import REPOSITORY, RunScript, free_port
from corpora import files_of, rows

CLEAN = "pretrain/clean.py"
LOCAL = ExecutorOptions()
TEXTS = [f"Of all that was said in the year {year}, this is the part that I have kept." for year in range(40)]


class Task:
    """Appends to a file of its rank. Rank `wrong` ends by a "kill", or by an "error" after rank 0 has finished."""

    def __init__(self, folder: Path, wrong: int = -1, by: str = "") -> None:
        self.folder, self.wrong, self.by = folder, wrong, by

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        if rank == self.wrong and self.by == "error":
            while not (self.folder / "logs/completions/00000").exists():
                time.sleep(0.01)
            raise ValueError("a line is wrong; correct it")
        if rank == self.wrong and self.by == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        with (self.folder / f"{rank} of {world_size}").open("a") as file:
            file.write("x")


def ran(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("* of *")}


@pytest.mark.parametrize("workers", [1, 3])
def test_second_run_skips_finished_tasks(tmp_path: Path, workers: int) -> None:
    for _ in range(2):
        run_tasks(make_executor(LOCAL, [Task(tmp_path)], 5, workers, tmp_path / "logs"))
        assert ran(tmp_path) == {f"{rank} of 5": "x" for rank in range(5)}


@pytest.mark.parametrize("workers", [1, 2])
def test_error_of_a_task_is_raised_and_the_next_run_runs_unfinished_tasks(tmp_path: Path, workers: int) -> None:
    with pytest.raises(ValueError, match="a line is wrong; correct it"):
        run_tasks(make_executor(LOCAL, [Task(tmp_path, 2, "error")], 4, workers, tmp_path / "logs"))
    run_tasks(make_executor(LOCAL, [Task(tmp_path)], 4, workers, tmp_path / "logs"))
    assert set(ran(tmp_path)) == {f"{rank} of 4" for rank in range(4)} and ran(tmp_path)["0 of 4"] == "x"


def test_killed_worker_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(ChildProcessError, match=r"a worker process was killed.* use fewer than 2"):
        run_tasks(make_executor(LOCAL, [Task(tmp_path, 1, "kill")], 6, 2, tmp_path / "logs"))


def test_executor_options_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    parser = argparse.ArgumentParser()
    add_executor_options(parser)
    assert executor_options(parser.parse_args([])) == LOCAL
    line = "--executor slurm --slurm_partition cpu --slurm_memory_gb 8 --slurm_option account=a qos=long"
    options = executor_options(parser.parse_args(shlex.split(line)))
    assert options == ExecutorOptions("slurm", "cpu", "24:00:00", 8, ("account=a", "qos=long"), "")


def test_missing_slurm_or_ray_raises_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    add_executor_options(parser)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="sbatch was not found"):
        executor_options(parser.parse_args(["--executor", "slurm", "--slurm_partition", "cpu"]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"pip install {RAY}"):
        executor_options(parser.parse_args(["--executor", "ray"]))


STAND_IN = r"""#!/bin/bash
# Replaces Slurm's sbatch: runs the script at once, one index of the array after another. The order is right, since a
# job is submitted after the jobs that it depends on.
set -e
echo "$@" >> "$JOBS/submitted"
script=${!#}
[[ "$*" =~ RUN_OFFSET=([0-9]+) ]] && export RUN_OFFSET=${BASH_REMATCH[1]}
last=$(grep -oP '(?<=--array=0-)\d+' "$script")
number=$(wc -l < "$JOBS/submitted")
cp "$script" "$JOBS/$number.sh"
for index in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$index SLURM_JOB_ID=$number SLURM_NODELIST=node1 bash "$script" >> "$JOBS/$number.out" 2>&1
done
echo "Submitted batch job $number"
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, object]:
    """Return environment variables for a stand-in for Slurm, which runs the scripts but does not schedule them."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"sbatch": STAND_IN, "scontrol": "#!/bin/bash\necho node1\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "JOBS": tmp_path}


@pytest.mark.integration
def test_slurm_jobs_run_in_order_and_give_the_local_result(
    tmp_path: Path, run_script: RunScript, stand_in: dict[str, object]
) -> None:
    source = rows(tmp_path / "a.jsonl", [*TEXTS, TEXTS[3]])
    arguments = ["--file_path", source, "--skip", "minhash"]
    run_script(
        CLEAN, *arguments, "--output_dir", tmp_path / "out", "--num_workers", 3, "--executor", "slurm",
        "--slurm_partition", "cpu", "--slurm_option", "account=mine",
        env=stand_in, cwd=tmp_path,
    )  # fmt: skip
    run_script(CLEAN, *arguments, "--output_dir", tmp_path / "local")
    assert (tmp_path / "out/00000.jsonl").read_bytes() == (tmp_path / "local/00000.jsonl").read_bytes()
    assert json.loads((tmp_path / "out/report/report.json").read_text())["totals"]["kept"] == 40
    submitted = (tmp_path / "submitted").read_text().splitlines()
    depends = [line.partition("afterok:")[2].partition(" ")[0] for line in submitted]
    assert depends == ["", "1", "2", "3"]
    script = (tmp_path / "1.sh").read_text()
    for option in ("partition=cpu", "mem-per-cpu=4G", "array=0-0%1", "account=mine", "kill-on-invalid-dep=yes"):
        assert f"#SBATCH --{option}\n" in script
    assert [path.name for path in (tmp_path / "out.partial").iterdir()] == ["logs"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_gives_the_local_result_and_the_error_of_a_task(tmp_path: Path, run_script: RunScript) -> None:
    source = rows(tmp_path / "a.jsonl", [*TEXTS, TEXTS[3]])
    arguments = ["--file_path", source, "--skip", "minhash,exact"]
    run_script(CLEAN, *arguments, "--output_dir", tmp_path / "out", "--executor", "ray")
    run_script(CLEAN, *arguments, "--output_dir", tmp_path / "local")
    assert (tmp_path / "out/00000.jsonl").read_bytes() == (tmp_path / "local/00000.jsonl").read_bytes()
    with source.open("a") as file:
        file.write("{\n")
    done = run_script(CLEAN, *arguments, "--output_dir", tmp_path / "bad", "--executor", "ray", status=2)
    assert done.stderr.startswith(f"error: {source}:42 is not JSON") and done.stderr.count("\n") == 1


def build(run_script: RunScript, name: str, tokenizer: Path, *options: object, **more: Any) -> str:
    """Build the corpus `name` from a.jsonl in the working folder; return the printed text."""
    done = run_script(
        "pretrain/preprocess.py", "--mode", "write", "--file_path", "a.jsonl", "--save_prefix", f"{name}/corpus",
        "--tokenizer_path", tokenizer, "--seq_length", 64, "--shard_megabytes", 1, *options, **more,
    )  # fmt: skip
    return str(done.stdout + done.stderr)


@pytest.mark.integration
def test_corpus_built_by_slurm_jobs_equals_the_local_one(
    tmp_path: Path, run_script: RunScript, stand_in: dict[str, object], tiny_tokenizer: Path
) -> None:
    rows(tmp_path / "a.jsonl", [f"{text} " * 100 for text in TEXTS * 10])
    build(run_script, "local", tiny_tokenizer, cwd=tmp_path)
    slurm = ("--executor", "slurm", "--slurm_partition", "cpu", "--num_workers", 2)
    printed = build(run_script, "slurm", tiny_tokenizer, *slurm, cwd=tmp_path, env=stand_in)
    assert "submitted; slurm/corpus is complete when the last job, corpus-join, has ended" in printed
    shutil.rmtree(tmp_path / "slurm/corpus.logs")
    assert files_of(tmp_path / "slurm", "corpus") == files_of(tmp_path / "local", "corpus")
    submitted = (tmp_path / "submitted").read_text().splitlines()
    assert [line.partition("afterok:")[2].partition(" ")[0] for line in submitted] == ["", "1"]
    assert "#SBATCH --array=0-2%2\n" in (tmp_path / "1.sh").read_text()  # 3 MB: three shards
    refused = build(run_script, "slurm", tiny_tokenizer, *slurm, cwd=tmp_path, env=stand_in, status=2)
    assert "exists already" in refused and len((tmp_path / "submitted").read_text().splitlines()) == 2


@pytest.fixture
def ray_head() -> Iterator[dict[str, object]]:
    """Start Ray with a token; yield the environment variables with which a command connects to it."""
    port = free_port()
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}
    with TemporaryDirectory(prefix="ray-") as folder:  # the paths of Ray's sockets must be short
        process = subprocess.Popen(
            [Path(sys.executable).parent / "ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
             "--node-ip-address=127.0.0.1", "--object-store-memory=80000000", "--include-dashboard=false",
             "--disable-usage-stats", f"--temp-dir={folder}"],
            env=os.environ | token, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout and any("Ray runtime started" in line for line in process.stdout)
            yield {**token, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.slow
def test_corpus_built_on_a_running_ray_equals_the_local_one_and_an_error_is_raised(
    tmp_path: Path, run_script: RunScript, tiny_tokenizer: Path, ray_head: dict[str, object]
) -> None:
    source = rows(tmp_path / "a.jsonl", [f"{text} " * 100 for text in TEXTS * 10])
    build(run_script, "local", tiny_tokenizer, cwd=tmp_path)
    ray = ("--executor", "ray", "--num_workers", 2, "--ray_address", ray_head.pop("RAY_ADDRESS"))
    build(run_script, "ray", tiny_tokenizer, *ray, cwd=tmp_path, env=ray_head)
    assert files_of(tmp_path / "ray", "corpus") == files_of(tmp_path / "local", "corpus")
    with source.open("a") as file:
        file.write("{\n")
    printed = build(run_script, "bad", tiny_tokenizer, *ray, cwd=tmp_path, env=ray_head, status=2)
    assert printed.startswith("error: a.jsonl:401 is not JSON") and printed.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_address_without_ray_raises_an_error_at_once(tmp_path: Path) -> None:
    options = ExecutorOptions("ray", ray_address=f"127.0.0.1:{free_port()}")
    with pytest.raises(ConnectionError, match=rf"--ray_address {options.ray_address}: Ray does not answer \(.*refused"):
        make_executor(options, [Task(tmp_path)], 1, 1, tmp_path / "logs")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.slow
def test_sigterm_to_the_group_of_a_ray_run_gives_one_line_and_ends_all_processes(tmp_path: Path) -> None:
    """Ray's own processes are in the group, too."""
    for name in "abcdef":
        rows(tmp_path / f"{name}.jsonl", [f"{text} {name} " * 1000 for text in TEXTS * 3])
    command = [
        sys.executable, REPOSITORY / CLEAN, "--file_path", *sorted(tmp_path.glob("*.jsonl")), "--task_megabytes", "1",
        "--output_dir", tmp_path / "out", "--executor", "ray", "--num_workers", "2",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not any((tmp_path / "out.partial").glob("logs/filter/completions/*")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (
        143, "interrupted; finished tasks are kept, and the same command resumes\n"
    )  # fmt: skip
    for each in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):  # the process has ended
            assert os.getsid(each.pid) != process.pid, each.cmdline()
    assert not (tmp_path / "out").exists()
