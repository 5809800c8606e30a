"""Build a corpus from text files: divide the input into shards, write each shard as a small corpus, join the shards.

The content of a shard depends only on text, tokenizer and settings. A corpus is therefore byte-identical for any number
of processes and after any interruption: finished shards are kept in `<prefix>.shards/`, and the same command resumes
from them.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from cluster_jobs.job_commands import ExecutorOptions
from corpus_files.corpus import Corpus, CorpusWriter, dropped_records, read_sidecar, require_space, token_dtype
from corpus_tokenizer.document_encoder import DocumentEncoder, load_encoder
from tqdm import tqdm

from corpus_building import documents
from corpus_building.documents import Shard
from corpus_building.samples import Settings, add_documents

BYTES_PER_TOKEN = 8  # more than in any real text, so that the check of free disk space never fails wrongly
SHARD_BYTES = 16_000_000  # input of a shard: about a second of work, which a killed worker loses
TASKS = 4  # tasks per cluster worker: few, since each loads the tokenizer, but enough to balance the load
BATCH = 64  # documents added at a time
THIS_MACHINE = ExecutorOptions()

shared_encoder = lru_cache(maxsize=1)(load_encoder)  # forked processes share it, which is most of their memory


def write_shard(folder: Path, number: int, shard: Shard, encoder: DocumentEncoder, settings: Settings) -> None:
    """Write the corpus `<folder>/<number>` from a shard; its sidecar's settings are the record of the shard."""
    already, lines = encoder.checked, 0
    with CorpusWriter(shard_prefix(folder, number), encoder.vocab_size, overwrite=True) as writer:
        rows = documents.read_documents(shard, settings)
        while batch := list(islice(rows, BATCH)):
            add_documents(writer, shard.path, batch, encoder, settings)
            lines = batch[-1].line
        record = asdict(shard) | {"lines": lines, "checked": encoder.checked - already}
        writer.finish([], {"fingerprint": encoder.fingerprint}, record, {}, settings.seq_length, allow_empty=True)


def shard_prefix(folder: Path, number: int) -> Path:
    """Return the prefix of the corpus of a shard."""
    return folder / f"{number:06d}"


def is_finished(folder: Path, number: int, shard: Shard) -> bool:
    """Return whether a shard is finished and was made from the same bytes of the same file."""
    with suppress(FileNotFoundError):
        return asdict(shard).items() <= read_sidecar(shard_prefix(folder, number))["settings"].items()
    return False


def open_shards(folder: Path, shards: list[Shard], encoder: DocumentEncoder, settings: Settings) -> None:
    """Create the folder of shards, or keep the folder of a stopped run with the same tokenizer and settings.

    run.json in it has everything that `run_task` needs.
    """
    plan = folder / "run.json"
    same = {"tokenizer": encoder.fingerprint, "settings": asdict(settings) | {"engine": ""}}
    try:
        known = json.loads(plan.read_text()).items() >= same.items()
    except (OSError, ValueError):
        known = False
    if not known:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    record = same | {
        "tokenizer_path": encoder.folder, "engine": settings.engine, "shards": [asdict(shard) for shard in shards],
    }  # fmt: skip
    plan.with_suffix(".partial").write_text(json.dumps(record))
    plan.with_suffix(".partial").replace(plan)


@lru_cache(maxsize=1)
def _read_plan(folder: Path) -> tuple[list[Shard], DocumentEncoder, Settings]:
    plan = json.loads((folder / "run.json").read_text())
    settings = Settings(**plan["settings"] | {"engine": plan["engine"]})
    return [Shard(**each) for each in plan["shards"]], shared_encoder(plan["tokenizer_path"], settings.engine), settings


def run_task(place: Path, folder: Path, data: Any, rank: int, world_size: int) -> None:
    """Executor step in a worker process: task r of n writes the unfinished shards among r, r + n, r + 2 n, ….

    place: the working folder of the command; a process on another machine may start in another one.
    """
    os.chdir(place)
    shards, encoder, settings = _read_plan(folder)
    for number in range(rank, len(shards), world_size):
        if not is_finished(folder, number, shards[number]):
            write_shard(folder, number, shards[number], encoder, settings)


def run_join(place: Path, arguments: tuple[Any, ...], data: Any, rank: int, world_size: int) -> None:
    """Executor step: call `write` after all shards are finished."""
    os.chdir(place)
    write(*arguments)


def write(
    patterns: list[str],
    prefix: str,
    tokenizer_path: str,
    settings: Settings | None = None,
    num_workers: int = 1,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    where: ExecutorOptions = THIS_MACHINE,
) -> None:
    """Build the corpus `prefix` from text files and globs; on Slurm, submit the jobs that build it.

    The result depends neither on num_workers nor on interruptions. shard_bytes: bytes of input per shard; it changes
    only how many documents are compared with other engines. Raises ValueError or OSError if the input is unreadable or
    has no documents, or the disk is full; finished shards are kept for the next run. Errors of Slurm jobs are logged in
    `<prefix>.logs/`.
    """
    settings = settings or Settings()
    paths = documents.find_files(patterns)
    shards = documents.plan_shards(paths, shard_bytes)
    folder, logs = Path(f"{prefix}.shards"), Path(f"{prefix}.logs")
    encoder = shared_encoder(tokenizer_path, settings.engine)
    room = sum(documents.text_bytes(path) for path in paths) // BYTES_PER_TOKEN
    with CorpusWriter(prefix, encoder.vocab_size, overwrite) as writer:
        require_space(prefix, 2 * room * token_dtype(encoder.vocab_size).itemsize)  # for the shards and the corpus
        open_shards(folder, shards, encoder, settings)
        step = partial(run_task, Path.cwd(), folder)
        if where.executor == "slurm":
            from cluster_jobs import executors

            shutil.rmtree(logs, ignore_errors=True)  # else finished tasks of an earlier run are skipped
            tasks = max(1, min(len(shards), TASKS * num_workers))
            made = executors.make(where, [step], tasks, num_workers, logs / "shards", None, "corpus-shards")
            join = partial(
                run_join, Path.cwd(), (patterns, prefix, tokenizer_path, settings, 1, overwrite, shard_bytes)
            )
            executors.run(executors.make(where, [join], 1, 1, logs / "join", made, "corpus-join"))
            return
        try:
            left = [number for number, shard in enumerate(shards) if not is_finished(folder, number, shard)]
            if where.executor == "local" and min(num_workers, len(left)) < 2:
                for number in tqdm(left, "shards", unit="shard", disable=None):
                    write_shard(folder, number, shards[number], encoder, settings)
            else:
                from cluster_jobs import executors

                shutil.rmtree(folder / "logs", ignore_errors=True)
                tasks = len(shards) if where.executor == "local" else min(len(shards), TASKS * num_workers)
                executors.run(executors.make(where, [step], tasks, num_workers, folder / "logs", None, "shards"))
            _join_shards(writer, folder, shards, encoder, settings)
        except BaseException as error:
            made_shards = [number for number, shard in enumerate(shards) if is_finished(folder, number, shard)]
            if not made_shards or (len(made_shards) == len(shards) and isinstance(error, ValueError)):
                shutil.rmtree(folder, ignore_errors=True)  # there is nothing to resume from
            raise
    shutil.rmtree(folder, ignore_errors=True)


def _join_shards(
    writer: CorpusWriter, folder: Path, shards: list[Shard], encoder: DocumentEncoder, settings: Settings
) -> None:
    """Append all shards in order and finish the corpus."""
    lines_before, checked, last = 0, 0, ""
    for number, shard in enumerate(shards):
        prefix = shard_prefix(folder, number)
        sidecar = read_sidecar(prefix)
        lines_before = lines_before if shard.path == last else 0
        if sidecar["samples"]:
            writer.add_corpus(Corpus(prefix))
        for record in dropped_records(prefix):
            writer.drop(record | {"line": record["line"] + lines_before})
        lines_before, last = lines_before + sidecar["settings"]["lines"], shard.path
        checked += sidecar["settings"]["checked"]
    source = {
        "name": writer.prefix.name, "type": 0, "start": 0, "end": writer.samples,
        "documents": writer.documents, "tokens": writer.tokens,
    }  # fmt: skip
    writer.finish(
        [source],
        encoder.describe() | {"path": encoder.folder},
        asdict(settings)
        | {"files": {shard.path: shard.file_bytes for shard in shards}, "self_checked_documents": checked},
        {name: version(name) for name in ("gigatoken", "numpy", "sentencepiece", "tokenizers")},
        settings.seq_length,
    )
