"""Clean text: drop documents of poor quality, repetitive text, harmful offers, and exact and near duplicates.

    python pretrain/clean.py --file_path en.jsonl more/*.txt.gz --output_dir data/cleaned --num_workers 2
    python pretrain/clean.py --file_path src/*.jsonl --language code --output_dir data/code
    python pretrain/clean.py … --num_workers 200 --executor slurm --slurm_partition cpu     # or --executor ray

Input: JSONL with a text field (.jsonl, .json), text with one document per line (.txt), both also as .gz or .zst, or
.parquet. Output: 00000.jsonl, … with the kept documents in input order ("text" and the other fields of the input row),
and the folder report/ with report.md and report.json (counts and examples by reason) and dropped.jsonl (every dropped
document). Of several duplicates, the first is kept. The result does not depend on the executor or the number of
workers. An interrupted run keeps its finished tasks in DIR.partial/; the same command resumes it.
"""

from command_line.command_errors import run_command
from command_line.option_values import parse_list
from command_line.strict_parsers import StrictParser, at_least

import argparse
import logging
from pathlib import Path

from cluster_jobs.job_commands import add_executor_options
from corpus_building.documents import add_input_options
from text_language.language_detection import language_code

LANGUAGES = ("auto", "en", "zh", "code")
SKIPPABLE = ("quality", "repetition", "harm", "exact", "minhash")
TASK_MEGABYTES = 8  # MB of input per task, about ten seconds of work; a killed worker loses the work of its task
WORD_LISTS = Path(__file__).resolve().parent / "word_lists"


def filter_names(text: str) -> frozenset[str]:
    """argparse type of --skip: return the filters to skip; raises ArgumentTypeError on an unknown filter."""
    found = frozenset(parse_list(text))
    if unknown := sorted(found - set(SKIPPABLE)):
        raise argparse.ArgumentTypeError(f"{unknown[0]} is not one of {', '.join(SKIPPABLE)}")
    return found


def parser() -> StrictParser:
    """Return the parser of the command line."""
    p = StrictParser(__doc__ or "")
    add_input_options(p, required=True)
    p.add_argument("--output_dir", required=True, metavar="DIR", help="the folder to write")
    p.add_argument(
        "--language", type=language_code, choices=LANGUAGES, default="auto",
        help="rules to apply; auto: en or zh for each text",
    )  # fmt: skip
    p.add_argument(
        "--skip", type=filter_names, default=(), metavar="A,B", help=f"filters to skip: {', '.join(SKIPPABLE)}"
    )
    p.add_argument(
        "--word_lists", default=str(WORD_LISTS), metavar="DIR",
        help="a folder with lists of harmful phrases: en.txt, zh.txt or both",
    )  # fmt: skip
    p.add_argument(
        "--samples", type=at_least(0), default=3, metavar="K",
        help="dropped documents shown for each reason in report.md (default: 3)",
    )  # fmt: skip
    p.add_argument(
        "--task_megabytes", type=at_least(1), default=TASK_MEGABYTES, metavar="N",
        help="MB of input per task; a resumed run skips finished tasks (default: 8)",
    )  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="replace the output of an earlier run")
    add_executor_options(p)
    return p


def main() -> None:
    def work() -> None:
        options = parser().parse_args()
        from text_cleaning.cleaning_run import run  # imports datatrove

        print(run(options))

    logging.basicConfig(format="%(levelname)s: %(message)s")
    run_command(work)


if __name__ == "__main__":
    main()
