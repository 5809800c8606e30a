"""Clean text: drop what is of poor quality, repetitive or harmful, and exact and near duplicates; report what and why.

    python pretrain/clean.py --file_path en.jsonl more/*.txt.gz --output_dir data/cleaned --num_workers 2
    python pretrain/clean.py --file_path src/*.jsonl --language code --output_dir data/code
    python pretrain/clean.py … --num_workers 200 --executor slurm --slurm_partition cpu     # or --executor ray

Input: JSONL with a text key (.jsonl, .json) or one document a line (.txt), each also as .gz or .zst, and .parquet.
The output folder gets 00000.jsonl … ({"text"} and the row's other fields, in the order of the input), and the
folder report: report.md and report.json (counts and samples by reason), dropped.jsonl (each document that was dropped).
Of duplicates the first is kept. The result does not depend on where it ran or with how many workers. A run that was
stopped goes on from its finished tasks, in DIR.partial/, with the same command.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from cluster_jobs import executors
from cluster_jobs.job_commands import Parser, add_executor_options, executor_options, number_from, run_main
from corpus_building import documents
from corpus_building.documents import FIELD, TextSource
from datatrove.executor.base import PipelineExecutor
from text_cleaning.cleaning_io import CleaningPlan, divided
from text_cleaning.cleaning_report import REPORT, WriteReport, settings
from text_cleaning.cleaning_rules import LANGUAGES, read_lists
from text_cleaning.cleaning_stages import SKIPPABLE, CleaningStage, stages
from text_language.language_detection import language_code

SHARD_BYTES = 8_000_000  # of input: some ten seconds of work, which is what a killed worker loses
WORD_LISTS = Path(__file__).resolve().parent / "word_lists"


def parser() -> Parser:
    """The command line."""
    about, _, lines = (__doc__ or "").partition("\n")
    p = Parser(
        description=about, epilog=lines, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    p.add_argument("--file_path", nargs="+", required=True, metavar="IN", help="text files and globs")
    p.add_argument("--output_dir", required=True, metavar="DIR", help="the folder to write")
    p.add_argument(
        "--language", type=language_code, choices=LANGUAGES, default="auto", help="whose rules; auto: by each text"
    )
    p.add_argument("--text_key", default="text", metavar="KEY", help="where rows have their text (default: text)")
    p.add_argument("--text_template", default="", metavar="T", help="text of several fields: '{title}\\n{content}'")
    p.add_argument(
        "--on_error", choices=["stop", "skip"], default="stop", help="what cannot be read: stop there, or drop it"
    )
    p.add_argument("--word_lists", default=str(WORD_LISTS), metavar="DIR", help="a folder with en.txt, zh.txt or both")
    p.add_argument("--skip", default="", metavar="A,B", help=f"leave out: {', '.join(SKIPPABLE)}")
    p.add_argument("--samples", type=number_from(0), default=3, metavar="K", help="shown of each reason (default: 3)")
    p.add_argument("--num_workers", type=number_from(1), default=1, metavar="N", help="tasks at a time (default: 1)")
    p.add_argument(
        "--task_megabytes", type=number_from(1), default=SHARD_BYTES // 1_000_000, metavar="N",
        help="input of a task; a stopped run goes on from there (default: 8)",
    )  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote there")
    add_executor_options(p)
    return p


def make_plan(options: argparse.Namespace, folder: Path) -> CleaningPlan:
    """What the command line asks for; raises ValueError or FileNotFoundError on what cannot be done."""
    skip = frozenset(part for part in options.skip.split(",") if part)
    if unknown := sorted(skip - set(SKIPPABLE)):
        raise ValueError(f"--skip {unknown[0]}: there is no such part; there are {', '.join(SKIPPABLE)}")
    template = options.text_template.replace("\\n", "\n").replace("\\t", "\t")
    if template and not FIELD.search(template):
        raise ValueError(f"--text_template {options.text_template!r} names no field; write '{{title}} {{content}}'")
    paths = [str(Path(path).resolve()) for path in documents.find_files(options.file_path)]
    shards = documents.plan_shards(list(dict.fromkeys(paths)), options.task_megabytes * 1_000_000)
    if not shards:
        raise ValueError(f"{', '.join(options.file_path)}: nothing in there; name files with text")
    lists = {} if "harm" in skip else read_lists(Path(options.word_lists))
    tasks = divided(shards, options.task_megabytes * 1_000_000)
    source = TextSource(options.text_key, template)
    return CleaningPlan(folder, shards, tasks, source, options.language, options.on_error, skip, lists)


def open_folder(folder: Path, plan: CleaningPlan, samples: int) -> None:
    """Make the folder of what lies between the stages, or take what a stopped run of the same left there."""
    inputs = {shard.path: [shard.file_bytes, shard.modified] for shard in plan.shards}
    record = {"inputs": inputs, "tasks": plan.tasks, "settings": settings(plan), "samples": samples}
    of = json.loads(json.dumps(record))
    run = folder / "run.json"
    try:
        if json.loads(run.read_text(encoding="utf-8")) == of:
            return
    except (OSError, ValueError):
        if folder.exists() and not run.exists() and not (folder / "logs").is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} was not made by this script, which needs the name; move it away") from None
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("hashes", "exact", "signatures", "matches", "clusters", "logs"):
        (folder / name).mkdir(parents=True)
    run.write_text(json.dumps(of), encoding="utf-8")


def free_target(target: Path, overwrite: bool) -> None:
    """Raise ValueError where the output folder is there already and may not be replaced."""
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; name another --output_dir, or replace it with --overwrite")
    if target.exists() and not (target / REPORT / "report.json").is_file():
        raise ValueError(f"{target} has no {REPORT}/report.json, so it is not of an earlier run; remove it by hand")


def run(options: argparse.Namespace) -> None:
    """Do what the command line says; raises ValueError or OSError."""
    executors.be_quiet()
    where = executor_options(options)
    target = Path(options.output_dir).resolve()
    free_target(target, options.overwrite)
    folder = target.with_name(f"{target.name}.partial")
    plan = make_plan(options, folder)
    open_folder(folder, plan, options.samples)
    last: PipelineExecutor | None = None
    for stage in [*stages(plan), CleaningStage("report", [WriteReport(plan, target, options.samples)], 1)]:
        last = executors.make(
            where, stage.steps, stage.tasks, options.num_workers, folder / "logs" / stage.name,
            depends=last if where.executor == "slurm" else None, job_name=f"clean-{stage.name}",
        )  # fmt: skip
        if where.executor != "slurm":
            executors.run(last)
    if where.executor == "slurm":
        assert last is not None
        executors.run(last)
        print(f"submitted; {target} is there when the last job, clean-report, has ended; logs: {folder / 'logs'}")
        return
    shutil.rmtree(folder, ignore_errors=True)
    print(summary(target))


def summary(target: Path) -> str:
    """A line on what came of it."""
    totals: dict[str, Any] = json.loads((target / REPORT / "report.json").read_text(encoding="utf-8"))["totals"]
    return (
        f"{target}: {totals['kept']:,} of {totals['read']:,} documents kept, {totals['bytes_kept'] / 1e6:,.1f} of "
        f"{totals['bytes_read'] / 1e6:,.1f} MB; {target / REPORT / 'report.md'} shows what was dropped"
    )


def main() -> None:
    run_main(lambda: run(parser().parse_args()), "finished tasks are kept: the same command goes on")


if __name__ == "__main__":
    main()
