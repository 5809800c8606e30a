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

from command_line.option_values import read_list
from command_line.strict_parsers import StrictParser, number_from

import argparse
from pathlib import Path

from cluster_jobs.job_commands import add_executor_options, run_job
from text_language.language_detection import language_code

LANGUAGES = ("auto", "en", "zh", "code")
SKIPPABLE = ("quality", "repetition", "harm", "exact", "minhash")
SHARD_BYTES = 8_000_000  # of input: some ten seconds of work, which is what a killed worker loses
WORD_LISTS = Path(__file__).resolve().parent / "word_lists"


def parts(text: str) -> frozenset[str]:
    """The type of --skip."""
    found = frozenset(read_list(text))
    if unknown := sorted(found - set(SKIPPABLE)):
        raise argparse.ArgumentTypeError(f"{unknown[0]} is not one of {', '.join(SKIPPABLE)}")
    return found


def parser() -> StrictParser:
    """The command line."""
    p = StrictParser(__doc__ or "")
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
    p.add_argument("--skip", type=parts, default=(), metavar="A,B", help=f"leave out: {', '.join(SKIPPABLE)}")
    p.add_argument("--word_lists", default=str(WORD_LISTS), metavar="DIR", help="a folder with en.txt, zh.txt or both")
    p.add_argument("--samples", type=number_from(0), default=3, metavar="K", help="shown of each reason (default: 3)")
    p.add_argument("--num_workers", type=number_from(1), default=1, metavar="N", help="tasks at a time (default: 1)")
    p.add_argument(
        "--task_megabytes", type=number_from(1), default=SHARD_BYTES // 1_000_000, metavar="N",
        help="input of a task; a stopped run goes on from there (default: 8)",
    )  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote there")
    add_executor_options(p)
    return p


def main() -> None:
    def work() -> None:
        options = parser().parse_args()
        from text_cleaning.cleaning_run import run  # imports datatrove

        print(run(options))

    run_job(work)


if __name__ == "__main__":
    main()
