"""Turn text into a memory-mapped corpus of token ids; merge corpora, look into them, verify them.

    python pretrain/preprocess.py --mode write --file_path en.jsonl more/*.txt.gz --save_prefix data/en \\
        --tokenizer_path checkpoints/base --seq_length 1024
    python pretrain/preprocess.py --mode write … --num_workers 32        # a larger machine; the result is the same
    python pretrain/preprocess.py --mode merge --merge_path_prefix data/en,data/zh --merge_path_type 0,1 \\
        --new_path_prefix data/all
    python pretrain/preprocess.py --mode read --read_path_prefix data/all
    python pretrain/preprocess.py --mode verify --read_path_prefix data/all

Input: JSONL with a text key (.jsonl, .json) or one document a line (.txt), each also as .gz or .zst, and .parquet. A
document becomes BOS, its ids, EOS, cut into the fewest samples of at most --seq_length tokens made of whole sentences;
every token of the document is in exactly one sample. What has no text, or fewer tokens than --min_length, stands in
P.dropped.jsonl. A run that was stopped goes on from its finished shards, in P.shards/, with the same command.
"""

import argparse
import ast
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import encode
import segment
from building import SHARD_BYTES, Settings, write
from corpus import Corpus, verify
from documents import FIELD
from merging import merge

SHOWN_CHARACTERS = 200  # of a displayed text


def summary(corpus: Corpus) -> str:
    """A table of the sources, with a line over it for the whole."""
    sidecar = corpus.sidecar
    lines = [
        f"{corpus.prefix}: {sidecar['samples']:,} samples of at most {corpus.seq_length:,} tokens, "
        f"{sidecar['documents']:,} documents, {sidecar['tokens']:,} tokens ({sidecar['dtype']}), "
        f"{sidecar['dropped']:,} documents dropped, tokenizer {corpus.fingerprint[:16]}",
        f"{'source':<24} {'type':>4} {'start':>12} {'end':>12} {'documents':>12} {'tokens':>15} {'tokens/sample':>14}",
    ]
    for source in corpus.sources:
        mean = source["tokens"] / max(1, source["end"] - source["start"])
        lines.append(
            f"{source['name']:<24} {source['type']:>4} {source['start']:>12,} {source['end']:>12,} "
            f"{source['documents']:>12,} {source['tokens']:>15,} {mean:>14.1f}"
        )
    return "\n".join(lines)


def read(prefix: str, tokenizer_path: str | None = None, show: int = 1) -> Iterator[str]:
    """Lines for a reader: the summary, then the first samples of each source, decoded.

    tokenizer_path: None takes the folder the corpus was written with. Raises ValueError where it is another tokenizer.
    """
    corpus = Corpus(prefix)
    yield summary(corpus)
    if not show:
        return
    encoder = encode.load(tokenizer_path or corpus.sidecar["tokenizer"].get("path", ""))
    if encoder.fingerprint != corpus.fingerprint:
        raise ValueError(
            f"{encoder.folder} is tokenizer {encoder.fingerprint[:16]}, but {prefix} was written with "
            f"{corpus.fingerprint[:16]}; name that one with --tokenizer_path"
        )
    for source in corpus.sources:
        for index in range(source["start"], min(source["end"], source["start"] + show)):
            text = encoder.engine.decode(corpus[index])
            cut = "…" if len(text) > SHOWN_CHARACTERS else ""
            shown = json.dumps(text[:SHOWN_CHARACTERS], ensure_ascii=False)
            yield f"{source['name']} sample {index}, {len(corpus[index])} tokens: {shown}{cut}"


def literals(values: list[str], wanted: type) -> list[Any]:
    """A list option in either notation, `A,B` or `['A','B']`; read as literals, never evaluated.

    Raises ValueError where the values are not of the wanted type (str or int).
    """
    text = " ".join(values).strip()
    parts: Any = [part for value in values for part in value.split(",") if part]
    try:
        if text[:1] in ("[", "("):
            parts = ast.literal_eval(text)
        elif wanted is int:
            parts = [int(part) for part in parts]
    except (ValueError, SyntaxError):
        parts = None
    if not isinstance(parts, list | tuple) or not all(type(part) is wanted for part in parts):
        raise ValueError(
            f"{text} is no list of {wanted.__name__}; write A,B,C or ['A','B','C'], types 0,0,1 or [0,0,1]"
        )
    return list(parts)


class Parser(argparse.ArgumentParser):
    """An error is one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


def number_from(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no whole number of {least} or more")
        return int(text)

    return number


def parser() -> Parser:
    """The command line."""
    about, _, lines = (__doc__ or "").partition("\n")
    p = Parser(
        description=about, epilog=lines, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    p.add_argument("--mode", required=True, choices=["write", "merge", "read", "verify"])
    w = p.add_argument_group("write")
    w.add_argument("--file_path", nargs="+", metavar="IN", help="text files and globs")
    w.add_argument("--save_prefix", metavar="P", help="the corpus to write: P.bin, P.idx, P.json")
    w.add_argument("--save_path", metavar="DIR", help="folder that --save_prefix is in")
    w.add_argument("--tokenizer_path", metavar="T", help="tokenizer or checkpoint folder (read: the corpus's own)")
    w.add_argument("--language", choices=segment.LANGUAGES, default="auto", help="whose sentence ends (default: auto)")
    w.add_argument(
        "--seq_length", type=number_from(8), default=1024, metavar="N", help="tokens a sample (default: 1024)"
    )
    w.add_argument("--text_key", default="text", metavar="KEY", help="where JSON lines have their text (default: text)")
    w.add_argument(
        "--text_template",
        default="",
        metavar="T",
        help="text of several fields: '{title}\\n{content}'",
    )
    w.add_argument(
        "--on_error",
        choices=["stop", "skip"],
        default="stop",
        help="what cannot be read: stop there, or leave it out",
    )
    w.add_argument("--min_length", type=number_from(0), default=0, metavar="K", help="drop documents of fewer tokens")
    w.add_argument(
        "--engine", choices=encode.ENGINES, default="auto",
        help="what encodes with a tokenizer.model (default: kitoken where it gives SentencePiece's ids)",
    )  # fmt: skip
    w.add_argument("--num_workers", type=number_from(1), default=1, metavar="N", help="processes (default: 1)")
    w.add_argument(
        "--shard_megabytes", type=number_from(1), default=SHARD_BYTES // 1_000_000, metavar="N",
        help="input a process takes at a time; a stopped run goes on from there (default: 16)",
    )  # fmt: skip
    w.add_argument("--do_split_sentences", action="store_true", help="cut at sentence ends; always so")
    w.add_argument("--do_keep_newlines", action="store_true", help="in .txt, a line's newline belongs to its document")
    m = p.add_argument_group("merge")
    m.add_argument("--merge_path_prefix", nargs="+", metavar="A,B", help="corpora, in order: A,B or \"['A','B']\"")
    m.add_argument("--merge_path_type", nargs="+", metavar="0,1", help="type of each (default: they keep theirs)")
    m.add_argument("--new_path_prefix", metavar="M", help="the corpus to write")
    r = p.add_argument_group("read and verify")
    r.add_argument("--read_path_prefix", metavar="P", help="the corpus to read")
    r.add_argument("--show", type=number_from(0), default=1, metavar="K", help="samples shown per source (default: 1)")
    p.add_argument("--overwrite", action="store_true", help="replace a corpus of that name")
    return p


def run(options: argparse.Namespace) -> None:
    """Do what the command line says; raises ValueError or OSError."""
    needed = {
        "write": ["file_path", "save_prefix", "tokenizer_path"],
        "merge": ["merge_path_prefix", "new_path_prefix"],
    }.get(options.mode, ["read_path_prefix"])
    for name in needed:
        if not getattr(options, name):
            raise ValueError(f"--mode {options.mode} needs --{name}; see --help")
    if options.mode == "write":
        prefix = str(Path(options.save_path or "", options.save_prefix))
        template = options.text_template.replace("\\n", "\n").replace("\\t", "\t")
        if template and not FIELD.search(template):
            raise ValueError(f"--text_template {options.text_template!r} names no field; write '{{title}} {{content}}'")
        settings = Settings(
            options.seq_length, options.language, options.text_key, template, options.min_length,
            options.do_keep_newlines, options.on_error, options.engine,
        )  # fmt: skip
        write(
            options.file_path, prefix, options.tokenizer_path, settings, options.num_workers, options.overwrite,
            options.shard_megabytes * 1_000_000,
        )  # fmt: skip
        print(summary(Corpus(prefix)))
    elif options.mode == "merge":
        types = None if options.merge_path_type is None else literals(options.merge_path_type, int)
        merge(literals(options.merge_path_prefix, str), types, options.new_path_prefix, options.overwrite)
        print(summary(Corpus(options.new_path_prefix)))
    elif options.mode == "read":
        for line in read(options.read_path_prefix, options.tokenizer_path, options.show):
            print(line)
    else:
        print(f"{summary(verify(options.read_path_prefix))}\nfiles, index and ids are as the sidecar says")


def main() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every `finally`
    try:
        run(parser().parse_args())
    except KeyboardInterrupt:
        print("interrupted; finished shards are kept: the same command goes on", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
