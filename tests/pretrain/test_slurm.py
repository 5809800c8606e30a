"""clean.py, preprocess.py and train.slurm on a real Slurm of two nodes on this machine (slurm_cluster.py)."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, RunScript, free_port, small_texts
from corpora import files_of, rows
from resumable_checkpoints.complete_checkpoints import list_complete, step_of
from slurm_cluster import SlurmCluster, require_slurm, running_slurm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ON_SLURM = ("--executor", "slurm", "--slurm_partition", "cpu", "--slurm_memory_gb", 1, "--num_workers", 2)
TEXTS = [f"Of all that was said in the year {year}, this is the part that I have kept." for year in range(40)]
Environment = dict[str, str]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    require_slurm()
    with running_slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(run_script: RunScript, slurm: SlurmCluster, folder: Path, *command: object) -> list[str]:
    """Run a command in `folder`, which submits jobs; return the ids of the jobs in the order of submission."""
    before = set(slurm.jobs())
    printed = run_script(*command, *ON_SLURM, cwd=folder, env=slurm.env).stdout
    assert "submitted; " in printed
    return sorted(set(slurm.jobs()) - before, key=int)


def test_cleaning_on_slurm_gives_the_local_result(tmp_path: Path, run_script: RunScript, slurm: SlurmCluster) -> None:
    for name in ("a", "b", "c"):
        rows(tmp_path / f"{name}.jsonl", [*small_texts(40), *TEXTS[:3]])
    command = ["pretrain/clean.py", "--file_path", "a.jsonl", "b.jsonl", "c.jsonl", "--output_dir"]
    run_script(*command, "local", cwd=tmp_path)
    jobs = submit(run_script, slurm, tmp_path, *command, "out")
    slurm.wait_for(jobs[-1], "COMPLETED")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "local").iterdir()
    }
    for path in (tmp_path / "local").rglob("*.jsonl"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "local")).read_bytes() == path.read_bytes()
    reports = [json.loads((tmp_path / name / "report/report.json").read_text()) for name in ("out", "local")]
    assert reports[0]["totals"] == reports[1]["totals"]


def test_corpus_built_on_slurm_equals_the_local_one(
    tmp_path: Path, run_script: RunScript, slurm: SlurmCluster, tiny_tokenizer: Path
) -> None:
    rows(tmp_path / "a.jsonl", [f"{text} " * 100 for text in TEXTS * 10])
    command = [
        "pretrain/preprocess.py", "--mode", "write", "--file_path", "a.jsonl", "--tokenizer_path", tiny_tokenizer,
        "--seq_length", 64, "--shard_megabytes", 1, "--save_prefix",
    ]  # fmt: skip
    run_script(*command, "local/corpus", cwd=tmp_path)
    jobs = submit(run_script, slurm, tmp_path, *command, "out/corpus")
    slurm.wait_for(jobs[-1], "COMPLETED")
    shutil.rmtree(tmp_path / "out/corpus.logs")
    assert files_of(tmp_path / "out", "corpus") == files_of(tmp_path / "local", "corpus")


def test_failed_task_cancels_the_later_jobs_and_the_same_command_resumes(
    tmp_path: Path, run_script: RunScript, slurm: SlurmCluster
) -> None:
    rows(tmp_path / "a.jsonl", TEXTS)
    rows(tmp_path / "b.jsonl", TEXTS[:3])
    right = (tmp_path / "b.jsonl").read_text()
    (tmp_path / "b.jsonl").write_text(right[:-3] + "\n")
    command = ["pretrain/clean.py", "--file_path", "a.jsonl", "b.jsonl", "--skip", "minhash", "--output_dir", "out"]
    jobs = submit(run_script, slurm, tmp_path, *command)
    slurm.wait_for(jobs[-1], "CANCELLED")
    assert not (tmp_path / "out").exists()
    logs = "".join(path.read_text() for path in (tmp_path / "out.partial").rglob("*.log"))
    assert "b.jsonl:3 is not JSON" in logs
    (tmp_path / "b.jsonl").write_text(right)
    slurm.wait_for(submit(run_script, slurm, tmp_path, *command)[-1], "COMPLETED")
    assert json.loads((tmp_path / "out/report/report.json").read_text())["totals"]["kept"] == 40


class TrainingJob:
    """A job of train.slurm: two ranks that would train 100,000 steps, with a constant learning rate."""

    def __init__(self, slurm: SlurmCluster, folder: Path, base: Path, corpus: Path, extensions: Path) -> None:
        self.slurm, self.output, self.printed = slurm, folder / "trained", folder / "printed"
        self.settings = {
            "MODEL": str(base), "DATA": str(corpus), "OUT": str(self.output), "TORCH_EXTENSIONS_DIR": str(extensions),
            "VENV": str(Path(sys.executable).parent.parent), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()), "MICRO_BATCH": "2", "ACCUMULATION": "1", "BLOCK_SIZE": "64",
            "MAX_STEPS": "100000", "WARMUP": "0", "SAVE_STEPS": "100000", "LOG_STEPS": "1", "REPORT_TO": "none",
            "PRECISION": "fp32",
        }  # fmt: skip

    def submit(self, nodes: int, *more: object) -> None:
        """Submit the job with two ranks on `nodes` nodes. more: arguments of train.py."""
        tasks = 2 // nodes
        self.job = self.slurm.command(
            "sbatch", "--parsable", f"--nodes={nodes}", f"--ntasks-per-node={tasks}", f"--gpus-per-node={tasks}",
            "--cpus-per-task=1", f"--output={self.printed}", f"--chdir={REPOSITORY}", "pretrain/scripts/train.slurm",
            "--lr_scheduler_type", "constant", *more, **self.settings,
        )  # fmt: skip

    def text(self) -> str:
        return self.printed.read_text() if self.printed.exists() else ""

    def wait_for_text(self, text: str) -> None:
        until = time.monotonic() + 300
        while text not in self.text():
            assert time.monotonic() < until, self.text()
            state = self.slurm.fields(self.job)["JobState"]
            assert state in ("PENDING", "RUNNING", "SIGNALING", "COMPLETING"), self.text()
            time.sleep(0.2)

    def wait_for_restart(self, restarts: int) -> int:
        """Wait until a requeued job has trained two more steps; return the step of the checkpoint it resumed from."""
        while self.slurm.wait_for(self.job, "RUNNING")["Restarts"] != str(restarts):
            time.sleep(0.2)
        step = self.newest()
        self.wait_for_text(f"100,000 steps from {self.output}/checkpoint-{step}\n")
        self.wait_for_text(f"\nstep {step + 2}/")
        return step

    def newest(self) -> int:
        return max(step_of(path) for path in list_complete(self.output))


def test_job_that_is_signalled_requeued_and_cancelled_ends_with_the_weights_of_one_run(
    tmp_path: Path, slurm: SlurmCluster, tiny_checkpoint: Path, two_sources: Path, extensions: Path
) -> None:
    job = TrainingJob(slurm, tmp_path, tiny_checkpoint, two_sources, extensions)
    job.submit(2)
    job.wait_for_text("\nstep 2/")
    elapsed = int(slurm.command("squeue", "--noheader", "--format=%M", f"--jobs={job.job}").split(":")[-2])
    slurm.command("scontrol", "update", f"JobId={job.job}", f"TimeLimit={elapsed + 4}")  # the signal comes 5 min before
    job.wait_for_text("time limit or preemption: the job is requeued and will resume from")
    assert "stopped by SIGTERM after step" in job.text()
    slurm.command("scontrol", "update", f"JobId={job.job}", "TimeLimit=60")
    first = job.wait_for_restart(1)
    slurm.command("scontrol", "requeue", job.job)
    second = job.wait_for_restart(2)
    slurm.command("scancel", job.job)
    slurm.wait_for(job.job, "CANCELLED")
    third = job.newest()
    assert first >= 2 and second >= first + 2 and third >= second + 2
    assert job.text().count("the job is requeued") == 1
    job.submit(1, "--max_steps", third + 2)
    slurm.wait_for(job.job, "COMPLETED")
    assert f"{third + 2} steps from {job.output}/checkpoint-{third}\n" in job.text()

    job.settings["OUT"] = str(tmp_path / "at once")
    job.submit(1, "--max_steps", third + 2)
    slurm.wait_for(job.job, "COMPLETED")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("trained", "at once")]
    assert weights[0] == weights[1]


def kill_ranks(pid: int) -> None:
    """Kill a rank and the other ranks on its node at the same time, as the kernel does for lack of memory.

    Otherwise a surviving rank may take over the lock of the killed rank, and remove it at Slurm's SIGTERM.
    """
    step = psutil.Process(pid).parent()
    assert step
    ranks = step.children()
    for rank in ranks:
        rank.suspend()
    for rank in ranks:
        rank.kill()


def test_killed_compilation_does_not_block_the_next_runs(
    tmp_path: Path, slurm: SlurmCluster, tiny_checkpoint: Path, two_sources: Path
) -> None:
    """DeepSpeed compiles its Adam in a new folder. SIGTERM leaves no lock; a lock that SIGKILL leaves is taken over."""
    compiled = tmp_path / "extensions"
    lock = compiled / "cpu_adam/lock"
    job = TrainingJob(slurm, tmp_path, tiny_checkpoint, two_sources, compiled)
    job.settings |= {"CONFIG": "pretrain/configs/zero3-offload-optimizer.json", "MAX_STEPS": "2"}
    for kill in (False, True):
        job.submit(1)
        while not lock.exists() or len(owner := lock.read_text().split()) < 3:  # host, process, start time
            assert slurm.fields(job.job)["JobState"] in ("PENDING", "RUNNING"), job.text()
            time.sleep(0.05)
        if kill:
            kill_ranks(int(owner[1]))
        else:
            slurm.command("scancel", job.job)
        slurm.wait_for(job.job, "CANCELLED", "FAILED")
        assert lock.exists() == kill
        assert kill or "stopped by SIGTERM before the first step, without a checkpoint" in job.text()
        assert "Traceback" not in job.text()

    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": f"Say {i}.", "output": f"{i}"} for i in range(8)]))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", f"--master_port={free_port()}",
         "finetune/finetune.py", "--base_model", tiny_checkpoint, "--data_path", tmp_path / "rows.json",
         "--output_dir", tmp_path / "adapter", "--deepspeed", job.settings["CONFIG"], "--max_steps", "2",
         "--val_set_size", "0", "--report_to", "none"],
        env=os.environ | {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(compiled), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"notice: {lock} is from a build that ended, or is too old; it is removed" in done.stderr
    assert (compiled / "cpu_adam/cpu_adam.so").is_file() and not lock.exists()
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()

    job.submit(1)
    slurm.wait_for(job.job, "COMPLETED")
    assert (job.output / "config.json").is_file()
