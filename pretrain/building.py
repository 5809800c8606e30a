"""Text files to a corpus: the input is cut into shards, each is made into samples on its own, then all are joined.

What is in a shard follows from the text, the tokenizer and the settings alone, so a corpus is the same to the byte
however many processes worked on it and however often they were killed: finished shards wait in `<prefix>.shards/`, and
the same command goes on from them.

No main program here: `pretrain/preprocess.py --mode write` is the command line.
"""

import gc
import hashlib
import json
import multiprocessing
import operator
import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import documents
import encode
import numpy as np
import segment
from corpus import CorpusWriter, no_room, require_space, token_dtype
from documents import Batch, Shard, TextSource, UnreadableError, text_of
from tqdm import tqdm

SHOWN_CHARACTERS = 200  # of a dropped text
BYTES_PER_TOKEN = 8  # more than any real text has, so that a disk is called full only where it surely is
SHARD_BYTES = 16_000_000  # of input: a second of work, which is what a killed worker loses
PARTS = ("bin", "lengths", "documents", "dropped.jsonl")  # of a shard: tokens, samples, documents, what was left out


@dataclass(frozen=True)
class Settings:
    """What a corpus is written with, apart from tokenizer and text; all but the engine decide what is in it."""

    seq_length: int = 1024
    language: str = "auto"
    text_key: str = "text"
    text_template: str = ""
    min_length: int = 0
    do_keep_newlines: bool = False
    on_error: str = "stop"
    num_per_doc: int | None = None
    seed: int = 0
    engine: str = "auto"

    @property
    def source(self) -> TextSource:
        return TextSource(self.text_key, self.text_template, self.do_keep_newlines)


@dataclass
class Samples:
    """A batch's documents: ids (tokens,), lengths (samples,) int32, per_document (documents,) int32 samples of each."""

    ids: np.ndarray
    lengths: np.ndarray
    per_document: np.ndarray
    dropped: list[dict[str, Any]]
    lines: int  # that were read


def make_samples(batch: Batch, encoder: encode.Encoder, settings: Settings) -> Samples:
    """Encode and cut a batch's documents; all are encoded before any is cut, which keeps the encoder's tables at hand.

    Raises UnreadableError, with file and line, on a line that has no text, unless it is to be skipped.
    """
    texts, dropped = readable(batch, settings)
    bos = 0 if encoder.bos_id is None else 1
    encoded = [(number, text, encoder.encode(text, number)) for number, text in texts]
    kept, ids, lengths = [], [], []
    for number, text, document in encoded:
        count = bos + len(document.ids) + 1
        if count < settings.min_length:
            dropped.append(left_out(batch.shard, number, f"{count} tokens, min_length is {settings.min_length}", text))
            continue
        ends = document.ends() if count > settings.seq_length else document.ids  # their number is enough
        cut = segment.sample_lengths(text, ends, settings.seq_length, settings.language, bos)
        if settings.num_per_doc and len(cut) > settings.num_per_doc:
            keep = chosen(text, len(cut), settings.num_per_doc, settings.seed)
            why = f"{len(cut) - len(keep)} of {len(cut)} samples, num_per_doc is {settings.num_per_doc}"
            dropped.append(left_out(batch.shard, number, why, text))
            kept.append(np.repeat(np.isin(np.arange(len(cut)), keep), cut))
            cut = cut[keep]
        elif settings.num_per_doc:
            kept.append(np.ones(count, dtype=bool))
        ids.append(document.ids)
        lengths.append(cut)
    none = np.empty(0, dtype=np.int32)
    tokens = encoder.documents(ids)
    return Samples(
        tokens[np.concatenate(kept)] if kept else tokens, np.concatenate(lengths or [none]),
        np.array([len(samples) for samples in lengths], dtype=np.int32),
        sorted(dropped, key=operator.itemgetter("line")), len(batch.lines),
    )  # fmt: skip


def readable(batch: Batch, settings: Settings) -> tuple[list[tuple[int, str]], list[dict[str, Any]]]:
    """The batch's texts with their lines' numbers, and a record for each line that has none."""
    texts, dropped, source = [], [], settings.source
    for number in range(batch.first, batch.first + len(batch.lines)):
        try:
            text = text_of(batch, number, source)
        except UnreadableError as error:
            if settings.on_error == "stop":
                raise
            dropped.append(left_out(batch.shard, number, str(error)))
            continue
        if not text or text.isspace():
            dropped.append(left_out(batch.shard, number, "no text", text))
        else:
            texts.append((number, text))
    return texts, dropped


def chosen(text: str, samples: int, keep: int, seed: int) -> list[int]:
    """Which samples of a document stay: the first, the last, then some between, ascending; `keep` of them.

    The choice follows from text and seed alone, so that it is the same wherever the document lies and whoever makes it.
    """
    if keep == 1:
        return [0]
    draw = random.Random(hashlib.sha256(f"{seed} {text}".encode()).digest())
    return [0, *sorted(draw.sample(range(1, samples - 1), keep - 2)), samples - 1]


def left_out(shard: Shard, line: int, reason: str, text: str = "") -> dict[str, Any]:
    """A line of `<prefix>.dropped.jsonl`."""
    return {"file": shard.path, "line": line, "reason": reason, "text": text[:SHOWN_CHARACTERS]}


class ShardMaker:
    """Makes shards of text into files `<folder>/<number>.<part>`; each process has one."""

    def __init__(self, tokenizer_path: str, settings: Settings, folder: Path) -> None:
        self.encoder = encode.load(tokenizer_path, settings.engine)
        self.settings, self.folder = settings, folder

    def samples(self, shard: Shard) -> Iterator[Samples]:
        """Batch after batch; where the rest of a file cannot be read, that is left out, unless errors are to stop."""
        lines = 0
        try:
            for batch in documents.read_shard(shard, self.settings.source):
                yield make_samples(batch, self.encoder, self.settings)
                lines += len(batch.lines)
        except UnreadableError as error:
            if self.settings.on_error == "stop":
                raise
            none = np.empty(0, dtype=np.int32)
            yield Samples(none, none, none, [left_out(shard, lines + 1, str(error))], 1)

    def __call__(self, number: int, shard: Shard) -> int:
        """Write the shard, its record last; returns its number."""
        totals = dict.fromkeys(("samples", "documents", "tokens", "dropped"), 0)
        already, lines = self.encoder.checked, 0
        streams: dict[str, BinaryIO] = {}
        try:
            for part in PARTS:
                streams[part] = part_file(self.folder, number, part).open("wb")
            for made in self.samples(shard):
                streams["bin"].write(made.ids.data)
                streams["lengths"].write(made.lengths.astype("<i4").tobytes())
                streams["documents"].write(made.per_document.astype("<i4").tobytes())
                for record in made.dropped:
                    streams["dropped.jsonl"].write((json.dumps(record, ensure_ascii=False) + "\n").encode())
                counts = len(made.lengths), len(made.per_document), len(made.ids), len(made.dropped)
                totals = {name: total + count for (name, total), count in zip(totals.items(), counts, strict=True)}
                lines += made.lines
            for stream in streams.values():
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise no_room(self.folder.with_suffix(""), error) from None
        finally:
            for stream in streams.values():
                with suppress(OSError):  # the disk is full, which is being said already
                    stream.close()
        record = asdict(shard) | totals | {"lines": lines, "checked": self.encoder.checked - already}
        unfinished = part_file(self.folder, number, "json.partial")
        unfinished.write_text(json.dumps(record))
        unfinished.replace(part_file(self.folder, number, "json"))
        return number


def part_file(folder: Path, number: int, part: str) -> Path:
    return folder / f"{number:06d}.{part}"


def finished(folder: Path, number: int, shard: Shard) -> dict[str, Any] | None:
    """The record of a shard that is there already and was made from the same bytes of the same file."""
    path = part_file(folder, number, "json")
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    return record if asdict(shard).items() <= record.items() else None


# --- processes --------------------------------------------------------------------------------------------------------

_maker: ShardMaker | None = None  # of this process; a worker's is its parent's, as it was when the worker was forked


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_first_process, daemon=True).start()


def _end_with_first_process() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # also where it was killed, which would leave its workers waiting for ever
    os._exit(1)


def _make(number: int, shard: Shard) -> int:
    assert _maker is not None
    return _maker(number, shard)


def make_shards(maker: ShardMaker, shards: dict[int, Shard], num_workers: int) -> Iterator[int]:
    """Make the shards, here or in as many processes; yields each one's number when it is finished.

    Processes are forked, so that the tokenizer, which is most of what they hold, is in memory once.
    """
    global _maker
    if num_workers == 1 or len(shards) < 2:
        yield from (maker(number, shard) for number, shard in shards.items())
        return
    _maker = maker
    gc.freeze()  # what the processes share is not touched by their collections
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(min(num_workers, len(shards)), mp_context=fork, initializer=_start_process)
    try:
        under_way: list[Future[int]] = [pool.submit(_make, number, shard) for number, shard in shards.items()]
        for future in as_completed(under_way):
            yield future.result()
    except BrokenProcessPool:
        raise ValueError(
            f"a worker process was killed, perhaps for want of memory; use fewer than --num_workers {num_workers} "
            "(finished shards are kept)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        _maker = None
        gc.unfreeze()


# --- the corpus -------------------------------------------------------------------------------------------------------


def write(
    patterns: list[str],
    prefix: str,
    tokenizer_path: str,
    settings: Settings | None = None,
    num_workers: int = 1,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Build the corpus `prefix` from text files and globs; returns its sidecar.

    The result depends neither on num_workers nor on how often the run was stopped and begun again; shard_bytes, what a
    process takes at a time, changes how many documents are self-checked, nothing else. Raises ValueError or OSError
    where the input cannot be read to its end, has no documents, or the disk has no room; shards that were finished
    before stay for the next run, nothing else does.
    """
    settings = settings or Settings()
    paths = documents.find_files(patterns)
    shards = dict(enumerate(documents.plan_shards(paths, shard_bytes)))
    folder = Path(f"{prefix}.shards")
    maker = ShardMaker(tokenizer_path, settings, folder)
    encoder = maker.encoder
    room = sum(documents.text_bytes(path) for path in paths) // BYTES_PER_TOKEN
    with CorpusWriter(prefix, encoder.vocab_size, overwrite) as writer:
        require_space(prefix, 2 * room * token_dtype(encoder.vocab_size).itemsize)  # shards, then the corpus
        open_shards(folder, {"tokenizer": encoder.fingerprint, "settings": asdict(settings) | {"engine": ""}})
        left = {number: shard for number, shard in shards.items() if finished(folder, number, shard) is None}
        try:
            with tqdm(total=sum(s.size for s in shards.values()), unit="B", unit_scale=True, disable=None) as bar:
                bar.update(sum(shard.size for number, shard in shards.items() if number not in left))
                for number in make_shards(maker, left, num_workers):
                    bar.update(shards[number].size)
            sidecar = join(writer, folder, shards, maker, prefix)
        except BaseException as error:
            made = len([number for number, shard in shards.items() if finished(folder, number, shard)])
            if not made or (made == len(shards) and isinstance(error, ValueError)):  # nothing to go on from
                shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder, ignore_errors=True)
    return sidecar


def open_shards(folder: Path, of: dict[str, Any]) -> None:
    """Make the folder of shards, or take what a stopped run with the same tokenizer and settings left there."""
    record = folder / "run.json"
    with suppress(OSError, ValueError):
        if json.loads(record.read_text()) == of:
            return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record.write_text(json.dumps(of))


def join(
    writer: CorpusWriter, folder: Path, shards: dict[int, Shard], maker: ShardMaker, prefix: str
) -> dict[str, Any]:
    """Append all shards in their order and finish the corpus; their bytes are copied once."""
    records = [finished(folder, number, shard) for number, shard in shards.items()]
    lines_before, last = 0, ""
    for number, record in enumerate(records):
        assert record is not None, "a shard is missing"
        lines_before = lines_before if record["path"] == last else 0
        writer.add_files(*(part_file(folder, number, part) for part in PARTS[:3]))
        for line in part_file(folder, number, "dropped.jsonl").open(encoding="utf-8"):
            dropped = json.loads(line)
            writer.drop(dropped | {"line": dropped["line"] + lines_before})
        lines_before, last = lines_before + record["lines"], record["path"]
    source = {
        "name": Path(prefix).name, "type": 0, "start": 0, "end": writer.samples,
        "documents": writer.documents, "tokens": writer.tokens,
    }  # fmt: skip
    sizes = {shard.path: Path(shard.path).stat().st_size for shard in shards.values()}
    checked = sum(record["checked"] for record in records if record)
    return writer.finish(
        [source],
        maker.encoder.describe() | {"path": str(maker.encoder.folder)},
        asdict(maker.settings) | {"files": sizes, "self_checked_documents": checked},
        {name: version(name) for name in ("kitoken", "numpy", "sentencepiece", "tokenizers")},
        maker.settings.seq_length,
    )
