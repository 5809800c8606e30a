"""Build a memory-mapped corpus of token ids from text; merge, read, verify, prune and import corpora.

    python pretrain/preprocess.py --mode write --file_path en.jsonl more/*.txt.gz --save_prefix data/en \\
        --tokenizer_path checkpoints/base --seq_length 1024
    python pretrain/preprocess.py --mode write … --num_workers 32        # a larger machine; the result is the same
    python pretrain/preprocess.py --mode merge --merge_path_prefix data/en,data/zh --merge_path_type 0,1 \\
        --new_path_prefix data/all
    python pretrain/preprocess.py --mode read|verify --read_path_prefix data/all
    python pretrain/preprocess.py --mode prune --read_path_prefix data/all --sample_ids seen.txt \\
        --new_path_prefix data/rest
    python pretrain/preprocess.py --mode import --read_path_prefix theirs/all --tokenizer_path checkpoints/base \\
        --new_path_prefix data/theirs

Input: JSONL with a text field (.jsonl, .json), text with one document per line (.txt), both also as .gz or .zst, or
.parquet. A document becomes BOS, its ids and EOS. It is cut at sentence ends into as few samples of at most
--seq_length tokens as possible; a sentence of more tokens is cut between clauses, words or characters. Without
--num_per_doc, every token of a kept document is in exactly one sample. With --save_prefix P, P.dropped.jsonl lists
dropped documents and samples with the reason. An interrupted run keeps its finished shards in P.shards/; the same
command resumes it.
"""

from command_line.command_errors import resumable, run_command
from command_line.option_values import parse_value
from command_line.strict_parsers import StrictParser, at_least

import argparse
import logging
import os
import sys
from dataclasses import fields
from pathlib import Path

from cluster_jobs.job_commands import add_executor_options, executor_options
from corpus_building.corpus_build import SHARD_BYTES, build_corpus
from corpus_building.documents import add_input_options
from corpus_building.samples import CorpusSettings
from corpus_files.corpus import Corpus, verify_corpus
from corpus_files.corpus_import import import_corpus
from corpus_files.corpus_inspection import corpus_summary, decoded_samples
from corpus_files.corpus_merging import merge_corpora
from corpus_files.corpus_pruning import prune
from corpus_tokenizer.document_encoder import ENGINES
from partial_folders.output_paths import check_place
from sentence_ends.sentence_boundaries import LANGUAGES
from text_language.language_detection import language_code

REQUIRED_OPTIONS = {  # required options by mode
    "write": ["file_path", "save_prefix", "tokenizer_path"],
    "merge": ["merge_path_prefix", "new_path_prefix"],
    "read": ["read_path_prefix"],
    "verify": ["read_path_prefix"],
    "prune": ["read_path_prefix", "sample_ids", "new_path_prefix"],
    "import": ["read_path_prefix", "tokenizer_path", "new_path_prefix"],
}
OPTIONAL_OPTIONS = {  # further options with an effect, by mode; in mode write, all except NOT_IN_WRITE
    "merge": ["merge_path_type", "overwrite"],
    "read": ["tokenizer_path", "show"],
    "prune": ["overwrite"],
    "import": ["overwrite"],
}
NOT_IN_WRITE = ["merge_path_prefix", "merge_path_type", "new_path_prefix", "read_path_prefix", "show", "sample_ids"]
PUBLISHED_TOKENIZER = "tokenizer.model"  # the published default of --tokenizer_path, in the current folder


def parser() -> StrictParser:
    """Return the parser of the command line."""
    p = StrictParser(__doc__ or "")
    p.add_argument("--mode", required=True, choices=list(REQUIRED_OPTIONS))
    w = p.add_argument_group("write")
    add_input_options(w, required=False)
    w.add_argument("--save_prefix", metavar="P", help="the corpus to write: P.bin, P.idx, P.json")
    w.add_argument("--save_path", metavar="DIR", help="folder of a relative --save_prefix")
    w.add_argument(
        "--tokenizer_path",
        metavar="T",
        help="tokenizer or checkpoint folder, or its tokenizer.model (default with --mode read: the path in P.json)",
    )
    w.add_argument(
        "--language", type=language_code, choices=LANGUAGES, default="auto",
        help="rules for sentence ends (default: auto)",
    )  # fmt: skip
    w.add_argument(
        "--seq_length",
        type=at_least(8),
        default=1024,
        metavar="N",
        help="longest sample in tokens (default: 1024)",
    )
    w.add_argument(
        "--min_length", type=at_least(0), default=0, metavar="K", help="drop documents of fewer than K tokens"
    )
    w.add_argument(
        "--num_per_doc", type=at_least(1), default=None, metavar="K",
        help="keep at most K samples of each document: the first, the last, and random ones between (default: all)",
    )  # fmt: skip
    w.add_argument("--seed", type=at_least(0), default=0, help="seed of --num_per_doc (default: 0)")
    w.add_argument(
        "--engine", choices=ENGINES, default="auto",
        help="tokenizer engine (auto: gigatoken if it gives the same ids as the reference)",
    )  # fmt: skip
    w.add_argument(
        "--shard_megabytes", type=at_least(1), default=SHARD_BYTES // 1_000_000, metavar="N",
        help="MB of input per shard; a resumed run skips finished shards (default: 16)",
    )  # fmt: skip
    w.add_argument("--do_split_sentences", action="store_true", help="no effect: text is always cut at sentence ends")
    w.add_argument("--do_keep_newlines", action="store_true", help="keep the newline of each line of a .txt file")
    m = p.add_argument_group("merge")
    m.add_argument("--merge_path_prefix", nargs="+", metavar="A,B", help="corpora, in order: A,B or \"['A','B']\"")
    m.add_argument("--merge_path_type", nargs="+", metavar="0,1", help="type of each corpus (default: unchanged)")
    m.add_argument("--new_path_prefix", metavar="M", help="the corpus to write (merge, prune, import)")
    r = p.add_argument_group("read, verify, prune and import")
    r.add_argument("--read_path_prefix", metavar="P", help="the corpus to read")
    r.add_argument("--show", type=at_least(0), default=1, metavar="K", help="samples shown per source (default: 1)")
    r.add_argument(
        "--sample_ids", metavar="F", help="prune: file of the samples to remove, one id per line or a JSON list"
    )
    p.add_argument("--overwrite", action="store_true", help="replace an existing corpus")
    add_executor_options(p)
    return p


def check_mode_options(options: argparse.Namespace) -> None:
    """Raise ValueError if a required option of the mode is missing, or if a given option has no effect in this mode."""
    mode = options.mode
    for name in REQUIRED_OPTIONS[mode]:
        if not getattr(options, name):
            raise ValueError(f"--mode {mode} needs --{name}; see --help")
    used = {"mode", *REQUIRED_OPTIONS[mode], *OPTIONAL_OPTIONS.get(mode, [])}
    for name, default in vars(parser().parse_args(["--mode", mode])).items():
        without_effect = name in NOT_IN_WRITE if mode == "write" else name not in used
        if without_effect and getattr(options, name) != default:
            raise ValueError(f"--{name} has no effect with --mode {mode}; remove it")


def run(options: argparse.Namespace) -> None:
    """Run the mode of a parsed command line; raises ValueError or OSError."""
    if options.mode == "write" and not options.tokenizer_path and Path(PUBLISHED_TOKENIZER).is_file():
        print(f"notice: --tokenizer_path is not given; {PUBLISHED_TOKENIZER} in this folder is used", file=sys.stderr)
        options.tokenizer_path = PUBLISHED_TOKENIZER
    check_mode_options(options)
    new_prefix, prefix = options.new_path_prefix, options.read_path_prefix
    if options.mode == "write":
        new_prefix = str(Path(options.save_path or "", options.save_prefix))
    if new_prefix:
        check_place(Path(new_prefix), new_prefix)
    if options.mode == "write":
        execution = executor_options(options)
        with resumable("finished shards are kept, and the same command resumes"):
            build_corpus(
                options.file_path, new_prefix, options.tokenizer_path,
                CorpusSettings(**{field.name: getattr(options, field.name) for field in fields(CorpusSettings)}),
                options.num_workers, options.overwrite, options.shard_megabytes * 1_000_000, execution,
            )  # fmt: skip
        if execution.executor == "slurm":
            done = f"{new_prefix} is complete when the last job, corpus-join, has ended"
            print(f"submitted; {done}; logs: {new_prefix}.logs")
            return
    elif options.mode == "merge":
        prefixes = parse_value("--merge_path_prefix", options.merge_path_prefix, list[str])
        types = parse_value("--merge_path_type", options.merge_path_type or [], list[int]) or None
        merge_corpora(prefixes, types, new_prefix, options.overwrite)
    elif options.mode == "prune":
        prune(prefix, options.sample_ids, new_prefix, options.overwrite)
    elif options.mode == "import":
        import_corpus(prefix, options.tokenizer_path, new_prefix, options.overwrite)
    elif options.mode == "verify":
        print(f"{corpus_summary(verify_corpus(prefix))}\nfiles, index and ids agree with the sidecar")
        return
    else:
        shown = decoded_samples(Corpus(prefix), options.tokenizer_path, options.show) if options.show else ()
        print("\n".join([corpus_summary(Corpus(prefix)), *shown]))
        return
    print(corpus_summary(Corpus(new_prefix)))


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    run_command(lambda: run(parser().parse_args()))


if __name__ == "__main__":
    main()
