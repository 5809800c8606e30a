"""Build a corpus from text files: divide the input into shards, make the samples of each shard, join the shards.

The content of a shard depends only on text, tokenizer and settings. A corpus is therefore byte-identical for any number
of processes and after any interruption: finished shards are kept in `<prefix>.shards/`, and the same command resumes
from them.
"""

import gc
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from cluster_jobs.job_commands import ExecutorOptions
from corpus_files.corpus import CorpusWriter, require_space, token_dtype, write_error
from corpus_tokenizer.document_encoder import load_encoder
from tqdm import tqdm

from corpus_building import documents
from corpus_building.documents import Shard, UnreadableError
from corpus_building.samples import Samples, Settings, dropped_record, make_samples

BYTES_PER_TOKEN = 8  # more than in any real text, so that the check of free disk space never fails wrongly
SHARD_BYTES = 16_000_000  # input of a shard: about a second of work, which a killed worker loses
TASKS = 4  # tasks per cluster worker: few, since each loads the tokenizer, but enough to balance the load
POLL = 0.05  # seconds
THIS_MACHINE = ExecutorOptions()
PARTS = ("bin", "lengths", "documents", "dropped.jsonl")  # the files of a shard


class ShardMaker:
    """Writes shards as files `<folder>/<number>.<part>`; each process has one instance."""

    def __init__(self, tokenizer_path: str, settings: Settings, folder: Path) -> None:
        self.encoder = load_encoder(tokenizer_path, settings.engine)
        self.settings, self.folder = settings, folder

    def samples(self, shard: Shard) -> Iterator[Samples]:
        """Yield the samples of each batch of a shard.

        If the file is damaged, raises UnreadableError, or drops the rest of the file if settings.on_error is `skip`.
        """
        lines = 0
        try:
            for batch in documents.read_shard(shard, self.settings.source):
                yield make_samples(batch, self.encoder, self.settings)
                lines += len(batch.lines)
        except UnreadableError as error:
            if self.settings.on_error == "stop":
                raise
            none = np.empty(0, dtype=np.int32)
            yield Samples(none, none, none, [dropped_record(shard, lines + 1, str(error))], 1)

    def __call__(self, number: int, shard: Shard) -> int:
        """Write the files of a shard, then its record; return its number."""
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
            raise write_error(self.folder.with_suffix(""), error) from None
        finally:
            for stream in streams.values():
                with suppress(OSError):  # a full disk has already raised an error
                    stream.close()
        record = asdict(shard) | totals | {"lines": lines, "checked": self.encoder.checked - already}
        unfinished = part_file(self.folder, number, "json.partial")
        unfinished.write_text(json.dumps(record))
        unfinished.replace(part_file(self.folder, number, "json"))
        return number


def part_file(folder: Path, number: int, part: str) -> Path:
    """Return the path of one file of a shard."""
    return folder / f"{number:06d}.{part}"


def finished(folder: Path, number: int, shard: Shard) -> dict[str, Any] | None:
    """Return the record of a shard if it is finished and was made from the same bytes of the same file, else None."""
    path = part_file(folder, number, "json")
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    return record if asdict(shard).items() <= record.items() else None


# --- several processes ------------------------------------------------------------------------------------------------


class MakeShards:
    """Executor step: task r of n makes the unfinished shards among r, r + n, r + 2 n, ….

    Forked processes share the tokenizer, which is most of their memory; processes on other machines load it again.
    """

    def __init__(self, maker: ShardMaker, shards: dict[int, Shard]) -> None:
        self.tokenizer_path, self.settings, self.folder = maker.encoder.folder, maker.settings, maker.folder
        self.shards, self.place = shards, Path.cwd()
        self.maker: ShardMaker | None = maker

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        os.chdir(self.place)  # a process on another machine may start in another folder
        self.maker = self.maker or ShardMaker(self.tokenizer_path, self.settings, self.folder)
        for number, shard in list(self.shards.items())[rank::world_size]:
            if finished(self.folder, number, shard) is None:
                self.maker(number, shard)

    def __deepcopy__(self, memo: dict[int, Any]) -> "MakeShards":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"maker": None}


def make_shards(maker: ShardMaker, shards: dict[int, Shard], num_workers: int, where: ExecutorOptions) -> None:
    """Make the shards with `num_workers` processes on this machine or on Ray."""
    if where.executor == "local" and min(num_workers, len(shards)) < 2:
        for number, shard in tqdm(shards.items(), "shards", unit="shard", disable=None):
            maker(number, shard)
        return
    from cluster_jobs import executors

    tasks = len(shards) if where.executor == "local" else min(len(shards), TASKS * num_workers)
    shutil.rmtree(logs := maker.folder / "logs", ignore_errors=True)  # else it skips tasks of an earlier run
    gc.collect()
    gc.freeze()  # so that garbage collection in forked processes copies no shared memory
    try:
        if tasks:
            executors.run(executors.make(where, [MakeShards(maker, shards)], tasks, num_workers, logs, None, "shards"))
    finally:
        gc.unfreeze()


def submit(
    patterns: list[str],
    prefix: str,
    tokenizer_path: str,
    settings: Settings,
    num_workers: int,
    overwrite: bool,
    shard_bytes: int,
    where: ExecutorOptions,
) -> None:
    """Submit the jobs that build a corpus to Slurm: an array that makes the shards, then a job that joins them.

    Arguments and exceptions as for `write`; errors of the jobs are logged in `<prefix>.logs/`.
    """
    from cluster_jobs import executors

    shards = dict(enumerate(documents.plan_shards(documents.find_files(patterns), shard_bytes)))
    maker = ShardMaker(tokenizer_path, settings, Path(f"{prefix}.shards"))
    with CorpusWriter(prefix, maker.encoder.vocab_size, overwrite):
        pass  # raises if the corpus exists and may not be replaced
    open_shards(maker)
    shutil.rmtree(logs := Path(f"{prefix}.logs"), ignore_errors=True)
    tasks = max(1, min(len(shards), TASKS * num_workers))
    made = executors.make(
        where, [MakeShards(maker, shards)], tasks, num_workers, logs / "shards", None, "corpus-shards"
    )
    arguments = (patterns, prefix, tokenizer_path, settings, 1, overwrite, shard_bytes)
    executors.run(executors.make(where, [Join(arguments)], 1, 1, logs / "join", made, "corpus-join"))


class Join:
    """Executor step: call `write` after all shards are finished."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments, self.place = arguments, Path.cwd()

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        os.chdir(self.place)
        write(*self.arguments)


# --- the corpus -------------------------------------------------------------------------------------------------------


def write(
    patterns: list[str],
    prefix: str,
    tokenizer_path: str,
    settings: Settings | None = None,
    num_workers: int = 1,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    where: ExecutorOptions = THIS_MACHINE,
) -> dict[str, Any]:
    """Build the corpus `prefix` from text files and globs; return its sidecar.

    The result depends neither on num_workers nor on interruptions. shard_bytes: bytes of input per shard; it changes
    only how many documents are compared with other engines. Raises ValueError or OSError if the input is unreadable or
    has no documents, or the disk is full; finished shards are kept for the next run.
    """
    settings = settings or Settings()
    paths = documents.find_files(patterns)
    shards = dict(enumerate(documents.plan_shards(paths, shard_bytes)))
    maker = ShardMaker(tokenizer_path, settings, folder := Path(f"{prefix}.shards"))
    encoder = maker.encoder
    room = sum(documents.text_bytes(path) for path in paths) // BYTES_PER_TOKEN
    with CorpusWriter(prefix, encoder.vocab_size, overwrite) as writer:
        require_space(prefix, 2 * room * token_dtype(encoder.vocab_size).itemsize)  # for the shards and the corpus
        open_shards(maker)
        left = {number: shard for number, shard in shards.items() if finished(folder, number, shard) is None}
        try:
            records = join(writer, folder, shards, lambda: make_shards(maker, left, num_workers, where))
            sidecar = finish(writer, maker, records, prefix)
        except BaseException as error:
            made = len([number for number, shard in shards.items() if finished(folder, number, shard)])
            if not made or (made == len(shards) and isinstance(error, ValueError)):  # nothing to resume from
                shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder, ignore_errors=True)
    return sidecar


def open_shards(maker: ShardMaker) -> None:
    """Create the folder of shards, or keep the folder of a stopped run with the same tokenizer and settings."""
    record = maker.folder / "run.json"
    of = {"tokenizer": maker.encoder.fingerprint, "settings": asdict(maker.settings) | {"engine": ""}}
    with suppress(OSError, ValueError):
        if json.loads(record.read_text()) == of:
            return
    shutil.rmtree(maker.folder, ignore_errors=True)
    maker.folder.mkdir(parents=True)
    record.write_text(json.dumps(of))


def join(
    writer: CorpusWriter, folder: Path, shards: dict[int, Shard], make: Callable[[], None]
) -> list[dict[str, Any]]:
    """Make the shards and append each, in order, as soon as it is finished; return their records.

    A thread appends shards while `make` waits for the workers.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        appended = thread.submit(append, writer, folder, shards, stopped)
        try:
            make()
        except BaseException:
            stopped.set()
            raise
        return appended.result()


def append(
    writer: CorpusWriter, folder: Path, shards: dict[int, Shard], stopped: threading.Event
) -> list[dict[str, Any]]:
    """Append the shards in order, waiting for each until `stopped` is set; return the records of appended shards."""
    records: list[dict[str, Any]] = []
    lines_before, last = 0, ""
    for number, shard in shards.items():
        while (record := finished(folder, number, shard)) is None:
            if stopped.wait(POLL):
                return records
        lines_before = lines_before if record["path"] == last else 0
        writer.add_files(*(part_file(folder, number, part) for part in PARTS[:3]))
        for line in part_file(folder, number, "dropped.jsonl").open(encoding="utf-8"):
            dropped = json.loads(line)
            writer.drop(dropped | {"line": dropped["line"] + lines_before})
        lines_before, last = lines_before + record["lines"], record["path"]
        records.append(record)
    return records


def finish(writer: CorpusWriter, maker: ShardMaker, records: list[dict[str, Any]], prefix: str) -> dict[str, Any]:
    """Write the index and the sidecar after all shards are appended; return the sidecar."""
    source = {
        "name": Path(prefix).name, "type": 0, "start": 0, "end": writer.samples,
        "documents": writer.documents, "tokens": writer.tokens,
    }  # fmt: skip
    return writer.finish(
        [source],
        maker.encoder.describe() | {"path": str(maker.encoder.folder)},
        asdict(maker.settings)
        | {
            "files": {record["path"]: record["file_bytes"] for record in records},
            "self_checked_documents": sum(record["checked"] for record in records),
        },
        {name: version(name) for name in ("gigatoken", "numpy", "sentencepiece", "tokenizers")},
        maker.settings.seq_length,
    )
