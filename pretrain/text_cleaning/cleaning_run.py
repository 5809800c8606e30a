"""Run the cleaning: make the plan, prepare the folder of intermediate files, and run the stages in order."""

from command_line.command_errors import resumable

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster_jobs import executors
from cluster_jobs.job_commands import ExecutorOptions, executor_options
from cluster_jobs.slurm_queue import check_no_jobs, recorded_jobs
from corpus_building import documents
from corpus_building.documents import TextSource
from datatrove.executor.base import PipelineExecutor
from partial_folders import resume_journal
from partial_folders.output_paths import check_place

from text_cleaning.cleaning_io import CleaningPlan, divide_into_tasks
from text_cleaning.cleaning_report import REPORT, WriteReport, cleaning_settings, package_versions
from text_cleaning.cleaning_stages import CleaningStage, stages
from text_cleaning.harm_filter import read_word_lists


def make_cleaning_plan(options: argparse.Namespace, folder: Path) -> CleaningPlan:
    """Return the plan of a parsed command line.

    Raises ValueError or FileNotFoundError if input or options are invalid.
    """
    paths = [str(Path(path).resolve()) for path in documents.find_files(options.file_path)]
    shards = documents.plan_shards(paths, options.task_megabytes * 1_000_000)
    if not shards:
        raise ValueError(f"{', '.join(options.file_path)}: all files are empty; name files with text")
    word_lists = {} if "harm" in options.skip else read_word_lists(Path(options.word_lists))
    tasks = divide_into_tasks(shards, options.task_megabytes * 1_000_000)
    source = TextSource(options.text_key, options.text_template, on_error=options.on_error)
    return CleaningPlan(folder, shards, tasks, source, options.language, frozenset(options.skip), word_lists)


def prepare_folder(folder: Path, plan: CleaningPlan, shown: int) -> None:
    """Empty the locked folder of intermediate files, unless an interrupted run with the same plan wrote it.

    shown: see WriteReport.
    """
    inputs = {shard.path: [shard.file_bytes, shard.modified] for shard in plan.shards}
    record = {
        "inputs": inputs,
        "tasks": plan.tasks,
        "settings": cleaning_settings(plan),
        "versions": package_versions(),
        "samples": shown,
    }
    record = json.loads(json.dumps(record))  # tuples become lists, as in the file
    run = folder / "run.json"
    with suppress(OSError, ValueError):
        if json.loads(run.read_text(encoding="utf-8")) == record:
            return
    resume_journal.empty_folder(folder)
    for name in ("logs", "hashes", "exact", "signatures", "matches", "clusters"):  # logs first: check_partial_folder
        (folder / name).mkdir()
    run.write_text(json.dumps(record), encoding="utf-8")


def check_output_folder(target: Path, overwrite: bool) -> None:
    """Raise ValueError if the output folder may not be replaced, or cannot be written."""
    check_place(target, target)
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; name another --output_dir, or replace it with --overwrite")
    if target.exists() and not (target / REPORT / "report.json").is_file():
        raise ValueError(f"{target} has no {REPORT}/report.json, so clean.py did not write it; remove it yourself")


def check_partial_folder(folder: Path) -> None:
    """Raise ValueError if the folder of intermediate files has entries, but neither run.json nor logs.

    `prepare_folder` creates logs before the other entries.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names - {resume_journal.JOURNAL} and not names & {"run.json", "logs"}:
        raise ValueError(f"{folder} was not written by clean.py, which needs a folder of this name; rename that folder")


def run(options: argparse.Namespace) -> str:
    """Run the stages for a parsed command line; return a summary line. Raises ValueError or OSError.

    This process locks the folder of intermediate files. Submitted Slurm jobs outlive the lock: another run is refused
    while their recorded ids are in Slurm's queue (slurm_queue.py).
    """
    executors.disable_datatrove_log()
    execution = executor_options(options)
    target = Path(options.output_dir).resolve()
    check_output_folder(target, options.overwrite)
    folder = target.with_name(f"{target.name}.partial")
    plan = make_cleaning_plan(options, folder)
    check_partial_folder(folder)
    with resume_journal.locked_journal(folder):
        try:
            run_locked(plan, execution, target, options)
        finally:
            if recorded_jobs(folder / "logs"):
                (folder / resume_journal.JOURNAL).unlink()
        if execution.executor == "slurm":
            logs = folder / "logs"
            return f"submitted; {target} is complete when the last job, clean-report, has ended; logs: {logs}"
        resume_journal.remove_folder(folder)
    return cleaning_summary(target)


def run_locked(plan: CleaningPlan, execution: ExecutorOptions, target: Path, options: argparse.Namespace) -> None:
    """Run or submit the stages in the locked folder of intermediate files.

    Finished tasks are kept for the next run, except after a ValueError: its remedy is usually another input or
    another rule, with which a run starts from the beginning.
    """
    folder = plan.folder
    try:
        check_output_folder(target, options.overwrite)  # another run may have written it before the lock
        check_no_jobs(folder / "logs", target)
        prepare_folder(folder, plan, options.samples)
        with resumable("finished tasks are kept, and the same command resumes"):
            run_stages(plan, execution, target, options)
    except BaseException as error:
        can_resume = any(folder.glob("logs/*/completions/*")) and not isinstance(error, ValueError)
        if not can_resume and not recorded_jobs(folder / "logs"):  # recorded Slurm jobs still use the folder
            resume_journal.remove_folder(folder)
        raise


def run_stages(plan: CleaningPlan, execution: ExecutorOptions, target: Path, options: argparse.Namespace) -> None:
    """Run the stages in order and write the result to `target`; on Slurm, submit them."""
    previous: PipelineExecutor | None = None
    for stage in [*stages(plan), CleaningStage("report", [WriteReport(plan, target, options.samples)], 1)]:
        previous = executors.make_executor(
            execution, stage.steps, stage.tasks, options.num_workers, plan.folder / "logs" / stage.name,
            depends=previous if execution.executor == "slurm" else None, job_name=f"clean-{stage.name}",
        )  # fmt: skip
        if execution.executor != "slurm":
            executors.run_tasks(previous)
    if execution.executor == "slurm":
        assert previous is not None
        executors.run_tasks(previous)  # submits all stages


def cleaning_summary(target: Path) -> str:
    """Return one line with the counts of the result."""
    totals: dict[str, Any] = json.loads((target / REPORT / "report.json").read_text(encoding="utf-8"))["totals"]
    return (
        f"{target}: {totals['kept']:,} of {totals['read']:,} documents kept, {totals['bytes_kept'] / 1e6:,.1f} of "
        f"{totals['bytes_read'] / 1e6:,.1f} MB; report: {target / REPORT / 'report.md'}"
    )
