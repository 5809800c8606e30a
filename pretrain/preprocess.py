"""Turn text into a memory-mapped corpus of token ids; merge corpora, look into them, verify them.

    python pretrain/preprocess.py --mode write --file_path en.jsonl more/*.txt.gz --save_prefix data/en \\
        --tokenizer_path checkpoints/base --seq_length 1024
    python pretrain/preprocess.py --mode write … --num_workers 32        # a larger machine; the result is the same
    python pretrain/preprocess.py --mode merge --merge_path_prefix data/en,data/zh --merge_path_type 0,1 \\
        --new_path_prefix data/all
    python pretrain/preprocess.py --mode read --read_path_prefix data/all
    python pretrain/preprocess.py --mode verify --read_path_prefix data/all

Input: JSONL with a text key (.jsonl, .json) or one document a line (.txt), each also as .gz. A document becomes BOS,
its ids, EOS, cut into the fewest samples of at most --seq_length tokens made of whole sentences; every token of the
document is in exactly one sample. What has no text, or fewer tokens than --min_length, stands in P.dropped.jsonl.
"""

import argparse
import ast
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import documents
import encode
import numpy as np
import segment
from corpus import Corpus, CorpusWriter, require_space, token_dtype, verify
from documents import Batch
from merging import merge

SHOWN_CHARACTERS = 200  # of a dropped or displayed text
BYTES_PER_TOKEN = 8  # more than any real text has, so that a disk is called full only where it surely is


@dataclass(frozen=True)
class Settings:
    """What decides the tokens and samples of a corpus, apart from tokenizer and text."""

    seq_length: int = 1024
    language: str = "auto"
    text_key: str = "text"
    min_length: int = 0
    do_keep_newlines: bool = False


@dataclass
class Result:
    """A batch's documents: ids (tokens,), lengths (samples,), samples_per_document (documents,), what was dropped."""

    ids: np.ndarray
    lengths: np.ndarray
    samples_per_document: np.ndarray
    dropped: list[dict[str, Any]] = field(default_factory=list)
    checked: int = 0


class Worker:
    """Makes batches of lines into samples; each process has one."""

    def __init__(self, tokenizer_path: str, settings: Settings) -> None:
        self.encoder = encode.load(tokenizer_path)
        self.settings = settings

    def __call__(self, batch: Batch) -> Result:
        settings, encoder = self.settings, self.encoder
        bos = 0 if encoder.bos_id is None else 1
        ids, lengths, dropped, already = [], [], [], encoder.checked
        for number, text in documents.texts(batch, settings.text_key, settings.do_keep_newlines):
            blank = not text.strip()
            encoded = encoder.encode(text, None if blank else number)
            tokens = encoder.document(encoded.ids)
            if blank or len(tokens) < settings.min_length:
                why = "no text" if blank else f"{len(tokens)} tokens, min_length is {settings.min_length}"
                place = {"file": batch.path, "line": number, "reason": why}
                dropped.append(place | {"text": text[:SHOWN_CHARACTERS]})
                continue
            starts = encoded.starts() if len(tokens) > settings.seq_length else np.empty(len(encoded.ids))
            ids.append(tokens.astype(token_dtype(encoder.vocab_size)))
            lengths.append(segment.sample_lengths(text, starts, settings.seq_length, settings.language, bos))
        none = np.empty(0, dtype=np.int32)
        return Result(
            np.concatenate(ids or [none]), np.concatenate(lengths or [none]),
            np.array([len(samples) for samples in lengths], dtype=np.int32), dropped, encoder.checked - already,
        )  # fmt: skip


_worker: Worker | None = None  # of a worker process


def _start_process(tokenizer_path: str, settings: Settings) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_first_process, daemon=True).start()
    _worker = Worker(tokenizer_path, settings)


def _end_with_first_process() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # also where it was killed, which would leave its workers waiting for ever
    os._exit(1)


def _process(batch: Batch) -> Result:
    assert _worker is not None
    return _worker(batch)


def ordered_results(worker: Worker, batches: Iterator[Batch], num_workers: int) -> Iterator[Result]:
    """The batches' results in their order; with several workers, only a few batches are under way at a time."""
    if num_workers == 1:
        yield from map(worker, batches)
        return
    arguments = (worker.encoder.folder, worker.settings)
    pool = ProcessPoolExecutor(num_workers, initializer=_start_process, initargs=arguments)
    try:
        ahead: deque[Future[Result]] = deque()
        for batch in batches:
            ahead.append(pool.submit(_process, batch))
            if len(ahead) > 2 * num_workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool:
        raise ValueError(
            f"a worker process was killed, perhaps for want of memory; use fewer than --num_workers {num_workers}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def write(
    patterns: list[str],
    prefix: str,
    tokenizer_path: str,
    settings: Settings | None = None,
    num_workers: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Build the corpus `prefix` from text files and globs; returns its sidecar.

    The result does not depend on num_workers. Raises ValueError or OSError, leaving nothing behind, where the input
    cannot be read to its end, has no documents, or the disk has no room.
    """
    settings = settings or Settings()
    paths = documents.find_files(patterns)
    sizes = {path: Path(path).stat().st_size for path in paths}
    worker = Worker(tokenizer_path, settings)
    vocab_size = worker.encoder.vocab_size
    packed = sum(size for path, size in sizes.items() if path.endswith(".gz"))
    tokens = (sum(sizes.values()) + 2 * packed) // BYTES_PER_TOKEN
    require_space(prefix, tokens * token_dtype(vocab_size).itemsize)
    with CorpusWriter(prefix, vocab_size, overwrite) as writer:
        checked = 0
        for result in ordered_results(worker, documents.read_batches(paths), num_workers):
            writer.add(result.ids, result.lengths, result.samples_per_document)
            for record in result.dropped:
                writer.drop(record)
            checked += result.checked
        source = {
            "name": Path(prefix).name, "type": 0, "start": 0, "end": writer.samples,
            "documents": writer.documents, "tokens": writer.tokens,
        }  # fmt: skip
        return writer.finish(
            [source],
            worker.encoder.describe() | {"path": str(tokenizer_path)},
            asdict(settings) | {"files": sizes, "self_checked_documents": checked},
            {name: version(name) for name in ("numpy", "sentencepiece", "tokenizers")},
            settings.seq_length,
        )


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
    w.add_argument("--min_length", type=number_from(0), default=0, metavar="K", help="drop documents of fewer tokens")
    w.add_argument("--num_workers", type=number_from(1), default=1, metavar="N", help="processes (default: 1)")
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
        settings = Settings(
            options.seq_length, options.language, options.text_key, options.min_length, options.do_keep_newlines
        )
        write(options.file_path, prefix, options.tokenizer_path, settings, options.num_workers, options.overwrite)
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every `finally`
    try:
        run(parser().parse_args())
    except KeyboardInterrupt:
        print("interrupted; nothing was written: run the same command again", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
