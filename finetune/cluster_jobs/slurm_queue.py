"""Record the Slurm jobs of a run, and refuse another run while one of them is in Slurm's queue.

The command that submits the jobs ends before the jobs, so it cannot hold a lock for them; Slurm knows which remain.
"""

import os
import subprocess
from pathlib import Path

JOB_ID = "slurm_job_id"  # a file in the log folder of a stage


def record_job(stage_logs: Path, job_id: str) -> None:
    """Record the job that runs a stage in the log folder of the stage."""
    (stage_logs / JOB_ID).write_text(job_id, encoding="utf-8")


def recorded_jobs(logs: Path) -> list[str]:
    """Return the ids of the recorded jobs. logs: the folder that contains a log folder for each stage."""
    return sorted(path.read_text(encoding="utf-8") for path in logs.glob(f"*/{JOB_ID}"))


def check_no_jobs(logs: Path, target: str | Path) -> None:
    """Raise ValueError if a recorded job is in the queue, or if squeue does not answer; else remove the records.

    target: the output of the jobs, for the message. Does nothing in a job of the run itself.
    """
    jobs = recorded_jobs(logs)
    if not jobs or os.environ.get("DATATROVE_EXECUTOR") == "SLURM":
        return
    try:
        command = ["squeue", "--all", "--noheader", "--format=%F"]  # %F: the id of the job, also for a task of an array
        queue = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join((getattr(error, "stderr", "") or str(error)).split())
        raise ValueError(
            f"{target} may be in use by the Slurm jobs {' '.join(jobs)} of another run, and squeue does not answer "
            f"({reason}); repeat the command where squeue works, or remove {logs} if the jobs have ended"
        ) from None
    if waiting := [job for job in jobs if job in queue]:
        raise ValueError(
            f"{target} is in use by the Slurm jobs {' '.join(waiting)} of another run; wait for them, cancel them "
            f"(scancel {' '.join(waiting)}), or write elsewhere"
        )
    for path in logs.glob(f"*/{JOB_ID}"):
        path.unlink()
