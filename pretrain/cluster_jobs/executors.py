"""Run the tasks of a pipeline in local processes, as Slurm jobs, or on Ray, through datatrove's executors.

executor = make_executor(options, pipeline, tasks, workers, logging_dir)
run_tasks(executor)    # skips tasks that an earlier run finished
"""

import logging
import multiprocessing
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from pathlib import Path
from typing import Any

from cluster_jobs.job_commands import ExecutorOptions
from cluster_jobs.slurm_queue import record_job, recorded_jobs

os.environ.setdefault("TQDM_DISABLE", "1")  # datatrove shows progress bars even without a terminal

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.utils.logging import logger
from tqdm import tqdm

PACKAGES_FOLDER = Path(__file__).resolve().parent.parent  # the stage, on the PYTHONPATH of workers on other machines


def disable_datatrove_log() -> None:
    """Disable datatrove's log on the terminal: errors are raised, and each task has a log file."""
    logger.disable("datatrove")


def make_executor(
    options: ExecutorOptions,
    pipeline: Sequence[Any],
    tasks: int,
    workers: int,
    logging_dir: str | Path,
    depends: PipelineExecutor | None = None,
    job_name: str = "pretrain",
) -> PipelineExecutor:
    """Return a datatrove executor of `tasks` tasks, at most `workers` in parallel.

    pipeline: datatrove steps, or functions of (data, rank, world_size); task r of n gets rank r and world_size n.
    logging_dir: folder of logs and completion markers, on a disk shared by all machines. depends: the executor whose
    tasks must finish first (Slurm only). Raises ConnectionError if Ray does not answer.
    """
    disable_datatrove_log()
    folder, steps = str(Path(logging_dir).resolve()), list(pipeline)
    if options.executor == "slurm":
        return SlurmExecutor(
            steps, tasks=tasks, workers=min(workers, tasks), logging_dir=folder, depends=depends, job_name=job_name,
            time=options.slurm_time, partition=options.slurm_partition, mem_per_cpu_gb=options.slurm_memory_gb,
            # without kill-on-invalid-dep, a job waits forever if the job that it depends on has failed
            sbatch_args={"kill-on-invalid-dep": "yes"} | dict(o.split("=", 1) for o in options.slurm_option),
            qos=None, env_command=_environment(), with_srun=False, max_array_size=1000,
            tasks_per_job=-(-tasks // 1000),  # all tasks in one array: datatrove lets a job depend on one array only
        )  # fmt: skip
    if options.executor == "ray":
        _start_ray(options.ray_address, workers)
        return RayPipelineExecutor(
            steps, tasks=tasks, workers=min(workers, tasks), logging_dir=folder, mem_per_cpu_gb=1
        )
    return LocalExecutor(steps, tasks, min(workers, tasks), folder, job_name)


def run_tasks(executor: PipelineExecutor) -> None:
    """Run the unfinished tasks of an executor; on Slurm, submit the jobs of the executors it depends on, then its own.

    If a task fails, the local executor raises the exception of the task. With Ray, the error has the message of the
    task's exception and is a ValueError if the exception was one, else a ChildProcessError. Raises ChildProcessError if
    a worker process was killed.
    """
    executor.run()
    if isinstance(executor, SlurmPipelineExecutor):
        return
    if unfinished := executor.get_incomplete_ranks(skip_completed=True):
        log = Path(executor.logging_dir.resolve_paths(f"logs/task_{unfinished[0]:05d}.log"))
        lines = log.read_text(encoding="utf-8").strip().splitlines() if log.is_file() else []
        kind, _, reason = lines[-1].partition("Error: ") if lines else ("", "", "")
        raise (ValueError if kind == "Value" else ChildProcessError)(
            reason or f"tasks that did not finish: {len(unfinished)}; read {log}, then repeat the command to resume"
        )


def _environment() -> str:
    """Return the shell line of a Slurm job that puts this Python first on PATH and this stage on PYTHONPATH."""
    path = f"{shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    return f"export PATH={path} PYTHONPATH={shlex.quote(str(PACKAGES_FOLDER))}${{PYTHONPATH:+:$PYTHONPATH}}"


def _start_ray(address: str, workers: int) -> None:
    """Connect to a running Ray, or start Ray on this machine if neither `address` nor RAY_ADDRESS is set.

    address: HOST:PORT; "": the address in RAY_ADDRESS. Raises ConnectionError if Ray does not answer there.
    """
    import ray

    if ray.is_initialized():
        return
    option = "--ray_address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS", "")
    local_options: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
    environment = {
        "env_vars": {"PYTHONPATH": str(PACKAGES_FOLDER), "TQDM_DISABLE": "1"},
        "worker_process_setup_hook": f"{__name__}.{_unblock_sigterm.__name__}",
    }
    sigterm = signal.getsignal(signal.SIGTERM)
    # Ray's processes inherit the blocked signal, so SIGTERM to the process group does not end them; this process does.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        host, colon, port = address.rpartition(":")
        if colon and port.isdecimal() and "/" not in host:  # ray.init waits for minutes if no server is there
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(
            address or "local", runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR,
            **local_options,
        )  # fmt: skip
    except (OSError, OverflowError) as error:
        if not address:
            raise
        raise ConnectionError(
            f"{option} {address}: Ray does not answer ({error}); if it is not running: ray start --head; if it was "
            "started with a token: export RAY_AUTH_MODE=token"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, sigterm)  # instead of Ray's handler, which aborts the process
        _unblock_sigterm()


def _unblock_sigterm() -> None:
    """Unblock SIGTERM in this process. Ray's workers call this, too: their process pools end processes with SIGTERM."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


class SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's Slurm executor without the job that merges statistics after each stage; records its jobs."""

    def launch_job(self) -> None:
        """Submit the job after the jobs that it depends on; raises ValueError if sbatch refuses it."""
        logs, refusal = Path(self.logging_dir.resolve_paths("")), None
        try:
            super().launch_job()
        except subprocess.CalledProcessError as error:
            refusal = error
        if self.job_id not in (None, -1):  # -1: an earlier run has finished all tasks
            record_job(logs, self.job_id)
        if refusal:
            jobs = " ".join(recorded_jobs(logs.parent))
            raise ValueError(
                f"sbatch refused the job {self.job_name} (exit status {refusal.returncode}; its message is above); "
                "correct the Slurm options" + (f", and cancel the submitted jobs: scancel {jobs}" if jobs else "")
            )

    def launch_merge_stats(self) -> None:
        """Do nothing; the last stage reads the counts of all tasks."""


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's executor for one machine, with another process pool.

    datatrove's pool waits forever for a task whose process was killed (usually for lack of memory), and its processes
    outlive a killed parent. Here a killed worker raises an error, and workers exit with their parent process.
    """

    def __init__(self, steps: list[Any], tasks: int, workers: int, logging_dir: str, job_name: str) -> None:
        super().__init__(steps, tasks, workers, logging_dir)
        self.job_name = job_name

    def run(self) -> None:
        """Run the unfinished tasks; raises the exception of a failed task, ChildProcessError if a worker was killed."""
        unfinished = self.get_incomplete_ranks()
        # forked processes share the memory of the steps
        pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("fork"), _init_worker, (self,))
        try:
            futures = as_completed([pool.submit(_run_task, rank) for rank in unfinished])
            done = self.tasks - len(unfinished)
            for future in tqdm(
                futures, self.job_name, self.tasks, initial=done, unit="task", disable=None, leave=False
            ):
                future.result()
        except BrokenProcessPool:
            remedy = f"use fewer than {self.workers} workers" if self.workers > 1 else "free memory"
            raise ChildProcessError(
                f"a worker process was killed, perhaps for lack of memory; {remedy} (finished tasks are kept for the "
                "next run)"
            ) from None
        finally:
            for process in multiprocessing.active_children():
                process.kill()  # idle, or running a task whose result is no longer needed
            pool.shutdown(cancel_futures=True)


_executor: LocalExecutor | None = None  # set in worker processes


def _init_worker(executor: LocalExecutor) -> None:
    global _executor
    _executor = executor
    disable_datatrove_log()
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent process handles them and ends its workers
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_task(rank: int) -> None:
    """Run one task in a worker process, with a copy of the steps, since steps hold counters and open files."""
    executor = deepcopy(_executor)
    assert executor is not None
    executor._run_for_rank(rank, local_rank=1)
