"""Where a pipeline runs: in processes of this machine, as Slurm jobs, or on Ray; all through datatrove's executors.

    stage = make(options, steps, tasks, workers, folder)    a stage of work; `depends`: the stage before it
    run(stage)                                              again after a stop, it goes on from its finished tasks

`pretrain/clean.py` and `pretrain/preprocess.py` are the command lines.
"""

import importlib.util
import logging
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from pathlib import Path
from typing import Any

from cluster_jobs.job_commands import ExecutorOptions

os.environ.setdefault("TQDM_DISABLE", "1")  # datatrove's own bars, which are shown without a terminal, too

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.utils.logging import logger
from tqdm import tqdm

STAGE = Path(__file__).resolve().parent.parent  # this folder: workers elsewhere import the steps from it
RAY = "ray==2.60.0"
RAY_MEMORY_GB = 1  # reserved for a task


def be_quiet() -> None:
    """Keep datatrove from telling this terminal of every task; what goes wrong is raised, and a job's log has all."""
    logger.disable("datatrove")


def make(
    options: ExecutorOptions,
    pipeline: Sequence[Any],
    tasks: int,
    workers: int,
    logging_dir: str | Path,
    depends: PipelineExecutor | None = None,
    job_name: str = "pretrain",
) -> PipelineExecutor:
    """A datatrove executor of `tasks` tasks, at most `workers` at a time.

    pipeline: datatrove steps, or functions of (data, rank, world_size); task r of n gets rank r, world_size n. What is
    finished stands in logging_dir, a folder that all machines see. Raises ValueError where the cluster's software is
    not here.
    """
    be_quiet()
    folder, steps = str(Path(logging_dir).resolve()), list(pipeline)
    if options.executor == "slurm":
        if not shutil.which("sbatch"):
            raise ValueError("--executor slurm: there is no sbatch here; submit from a login node, or use local")
        return SlurmExecutor(
            steps, tasks=tasks, workers=min(workers, tasks), logging_dir=folder, depends=depends, job_name=job_name,
            time=options.slurm_time, partition=options.slurm_partition, mem_per_cpu_gb=options.slurm_memory_gb,
            # a job whose predecessor failed would wait for ever
            sbatch_args={"kill-on-invalid-dep": "yes"} | dict(o.split("=", 1) for o in options.slurm_option),
            qos=None, env_command=_environment(), with_srun=False, max_array_size=1000,
            tasks_per_job=-(-tasks // 1000),  # one array: only the last of several is waited for
        )  # fmt: skip
    if options.executor == "ray":
        _start_ray(options.ray_address, workers)
        return RayPipelineExecutor(
            steps, tasks=tasks, workers=min(workers, tasks), logging_dir=folder, mem_per_cpu_gb=RAY_MEMORY_GB
        )
    return LocalExecutor(steps, tasks, min(workers, tasks), folder, job_name)


def run(executor: PipelineExecutor) -> None:
    """Do a stage's unfinished tasks; on Slurm, submit them and those of all stages it depends on.

    Raises what a task raised on this machine, ValueError with its message where it ran on Ray.
    """
    executor.run()
    left = [] if isinstance(executor, SlurmPipelineExecutor) else executor.get_incomplete_ranks(skip_completed=True)
    if left:
        log = Path(executor.logging_dir.resolve_paths(f"logs/task_{left[0]:05d}.log"))
        lines = log.read_text(encoding="utf-8").strip().splitlines() if log.is_file() else []
        said = lines[-1].partition("Error: ")[2] if lines else ""
        raise ValueError(said or f"{len(left)} tasks did not finish; {log} says why, the same command goes on")


def _environment() -> str:
    """The shell line of a job on another machine: this Python, and this folder to import from."""
    path = f"{shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    return f"export PATH={path} PYTHONPATH={shlex.quote(str(STAGE))}${{PYTHONPATH:+:$PYTHONPATH}}"


def _start_ray(address: str, workers: int) -> None:
    if importlib.util.find_spec("ray") is None:
        raise ValueError(f"--executor ray: Ray is not installed; pip install {RAY}")
    import ray

    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    here: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
    environment = {"env_vars": {"PYTHONPATH": str(STAGE), "TQDM_DISABLE": "1"}}
    try:
        ray.init(address or "local", runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR, **here)
    except ConnectionError as error:
        raise ValueError(f"--ray_address {address}: no Ray answers there ({error}); start one: ray start") from None


class SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's executor for Slurm, without the job that adds up statistics after each stage."""

    def launch_merge_stats(self) -> None:
        """The last stage reads each task's."""


# --- this machine -----------------------------------------------------------------------------------------------------


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's executor for one machine on a pool of its own.

    datatrove's waits for ever for a task whose process was killed (for want of memory, mostly), and when it is killed
    itself leaves a process behind. Here the first is an error, and workers end with the process that started them.
    """

    def __init__(self, steps: list[Any], tasks: int, workers: int, logging_dir: str, job_name: str) -> None:
        super().__init__(steps, tasks, workers, logging_dir)
        self.job_name = job_name

    def run(self) -> None:
        """Do the unfinished tasks; raises what a task raised, ValueError where a worker was killed."""
        left = self.get_incomplete_ranks()
        if min(self.workers, len(left)) < 2:
            for rank in self._shown(left, left):
                self.run_rank(rank)
            return
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        pool = ProcessPoolExecutor(min(self.workers, len(left)), context, _begin, (self.run_rank,))
        try:
            for future in self._shown(left, as_completed([pool.submit(_run_rank, rank) for rank in left])):
                future.result()
        except BrokenProcessPool:
            raise ValueError(
                f"a worker process was killed, perhaps for want of memory; use fewer than {self.workers} workers "
                "(finished tasks are kept)"
            ) from None
        finally:
            for process in multiprocessing.active_children():
                process.terminate()  # idle, or at a task whose result nobody waits for
            pool.shutdown(cancel_futures=True)

    def _shown(self, left: list[int], work: Any) -> Any:
        """The work with a progress bar."""
        done = self.tasks - len(left)
        return tqdm(work, self.job_name, self.tasks, initial=done, unit="task", disable=None, leave=False)

    def run_rank(self, rank: int) -> None:
        """Do one task with steps of its own: they count, and hold files."""
        once = deepcopy(self)
        once._run_for_rank(rank, local_rank=1)


_work: Callable[[int], None] | None = None  # of a worker process


def _begin(work: Callable[[int], None]) -> None:
    global _work
    _work = work
    be_quiet()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it, too, and ends this one
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_rank(rank: int) -> None:
    assert _work is not None
    _work(rank)
