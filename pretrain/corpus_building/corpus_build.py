"""Build a corpus from text files: divide the input into shards, write each shard as a small corpus, join the shards.

The content of a shard depends only on text, tokenizer and settings, so a corpus is byte-identical for any number of
processes. Finished shards are kept in `<prefix>.shards/`; the same command resumes an interrupted run from them.
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
from cluster_jobs.slurm_queue import check_no_jobs
from corpus_files.corpus import Corpus, CorpusWriter, check_free_space, dropped_records, token_dtype
from corpus_files.corpus_sidecar import read_sidecar
from corpus_tokenizer.document_encoder import DocumentEncoder, load_encoder
from tqdm import tqdm

from corpus_building import documents
from corpus_building.documents import Shard
from corpus_building.samples import CorpusSettings, add_documents

# Bytes of text per token, at least the real ratio: the needed disk space is underestimated, not overestimated.
BYTES_PER_TOKEN = 8
SHARD_BYTES = 16_000_000  # input per shard, about a second of work; a killed worker loses the work of its shard
TASKS_PER_WORKER = 4  # on a cluster: few, since each task loads the tokenizer, but enough to balance the load
DOCUMENTS_PER_BATCH = 64  # documents added to the corpus at a time
LOCAL_EXECUTION = ExecutorOptions()

cached_encoder = lru_cache(maxsize=1)(load_encoder)  # forked processes share it; it is most of their memory


def write_shard(folder: Path, number: int, shard: Shard, encoder: DocumentEncoder, settings: CorpusSettings) -> None:
    """Write a shard as the corpus `<folder>/<number>`; "settings" in its sidecar describes the shard."""
    checked_before, lines = encoder.checked, 0
    with CorpusWriter(shard_prefix(folder, number), encoder.vocab_size, overwrite=True) as writer:
        rows = documents.read_documents(shard, settings)
        while batch := list(islice(rows, DOCUMENTS_PER_BATCH)):
            add_documents(writer, shard.path, batch, encoder, settings)
            lines = batch[-1].line
        record = asdict(shard) | {"lines": lines, "checked": encoder.checked - checked_before}
        tokenizer = {"fingerprint": encoder.fingerprint, "vocab_size": encoder.vocab_size}
        writer.finish([], tokenizer, record, {}, settings.seq_length, allow_empty=True)


def shard_prefix(folder: Path, number: int) -> Path:
    """Return the prefix of the corpus of a shard."""
    return folder / f"{number:06d}"


def is_finished(folder: Path, number: int, shard: Shard) -> bool:
    """Return whether the corpus of a shard is complete and was written from the same range of the unchanged file."""
    with suppress(FileNotFoundError, ValueError):  # ValueError: damaged sidecar, or index without sidecar
        return asdict(shard).items() <= read_sidecar(shard_prefix(folder, number))["settings"].items()
    return False


def prepare_folder_of_shards(
    folder: Path, shards: list[Shard], encoder: DocumentEncoder, settings: CorpusSettings
) -> None:
    """Create the folder of shards, or keep the folder of an interrupted run with the same tokenizer and settings.

    Writes run.json, from which `run_task` reads the shards, the tokenizer and the settings.
    """
    plan = folder / "run.json"
    identity = {"tokenizer": encoder.identity, "settings": asdict(settings) | {"engine": ""}}
    try:
        is_same_run = json.loads(plan.read_text()).items() >= identity.items()
    except (OSError, ValueError):
        is_same_run = False
    if not is_same_run:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    record = identity | {
        "tokenizer_path": encoder.folder, "engine": settings.engine, "shards": [asdict(shard) for shard in shards],
    }  # fmt: skip
    plan.with_suffix(".partial").write_text(json.dumps(record))
    plan.with_suffix(".partial").replace(plan)


@lru_cache(maxsize=1)
def _read_plan(folder: Path) -> tuple[list[Shard], DocumentEncoder, CorpusSettings]:
    plan = json.loads((folder / "run.json").read_text())
    settings = CorpusSettings(**plan["settings"] | {"engine": plan["engine"]})
    return [Shard(**each) for each in plan["shards"]], cached_encoder(plan["tokenizer_path"], settings.engine), settings


def run_task(working_folder: Path, folder: Path, data: Any, rank: int, world_size: int) -> None:
    """Write the unfinished shards among r, r + n, r + 2 n, … in task r of n; a worker process calls this step.

    working_folder: the current folder of the command, to which its paths are relative; a process on another machine may
    start in another folder. folder: the folder of shards. rank: r. world_size: n.
    """
    os.chdir(working_folder)
    shards, encoder, settings = _read_plan(folder)
    for number in range(rank, len(shards), world_size):
        if not is_finished(folder, number, shards[number]):
            write_shard(folder, number, shards[number], encoder, settings)


def run_join(working_folder: Path, arguments: tuple[Any, ...], data: Any, rank: int, world_size: int) -> None:
    """Call `build_corpus`, which only joins the shards, since all of them are finished; a Slurm job calls this step."""
    os.chdir(working_folder)
    build_corpus(*arguments)


def build_corpus(
    patterns: list[str],
    prefix: str,
    tokenizer_path: str,
    settings: CorpusSettings | None = None,
    num_workers: int = 1,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    execution: ExecutorOptions = LOCAL_EXECUTION,
) -> None:
    """Build the corpus `prefix` from text files and globs; on Slurm, submit the jobs that build it.

    The result depends neither on num_workers nor on interruptions. shard_bytes: bytes of input per shard; it does not
    affect the tokens, only how many documents are also encoded by other engines for comparison. Raises ValueError or
    OSError if the input is unreadable or has no documents, or the disk is full. Finished shards are kept for the next
    run, except if joining them raises ValueError. Errors of Slurm jobs are logged in `<prefix>.logs/`.
    """
    settings = settings or CorpusSettings()
    paths = documents.find_files(patterns)
    shards = documents.plan_shards(paths, shard_bytes)
    folder, logs = Path(f"{prefix}.shards"), Path(f"{prefix}.logs")
    encoder = cached_encoder(tokenizer_path, settings.engine)
    tokens = sum(documents.text_bytes(path) for path in paths) // BYTES_PER_TOKEN
    with CorpusWriter(prefix, encoder.vocab_size, overwrite) as writer:
        check_no_jobs(logs, prefix)
        check_free_space(prefix, 2 * tokens * token_dtype(encoder.vocab_size).itemsize)  # for the shards and the corpus
        prepare_folder_of_shards(folder, shards, encoder, settings)
        if execution.executor != "slurm":
            _write_shards(folder, shards, encoder, settings, num_workers, execution)
            try:
                _join_shards(writer, folder, shards, encoder, settings)
            except ValueError:
                shutil.rmtree(folder, ignore_errors=True)  # the next run would join the same shards
                raise
            shutil.rmtree(folder, ignore_errors=True)
            return
        from cluster_jobs import executors

        shutil.rmtree(logs, ignore_errors=True)  # otherwise tasks that an earlier run finished are skipped
        step, tasks = partial(run_task, Path.cwd(), folder), max(1, min(len(shards), TASKS_PER_WORKER * num_workers))
        shards_job = executors.make_executor(
            execution, [step], tasks, num_workers, logs / "shards", None, "corpus-shards"
        )
        executors.run_tasks(shards_job)  # records the job; another run is refused while the job is in the queue
    # The lock is released, since the second job needs it to join the shards.
    join = partial(run_join, Path.cwd(), (patterns, prefix, tokenizer_path, settings, 1, overwrite, shard_bytes))
    executors.run_tasks(executors.make_executor(execution, [join], 1, 1, logs / "join", shards_job, "corpus-join"))


def _write_shards(
    folder: Path, shards: list[Shard], encoder: DocumentEncoder, settings: CorpusSettings, num_workers: int,
    execution: ExecutorOptions,
) -> None:  # fmt: skip
    """Write the unfinished shards, locally or with Ray; after an error, remove a folder without finished shards."""
    is_local = execution.executor == "local"
    try:
        unfinished = [number for number, shard in enumerate(shards) if not is_finished(folder, number, shard)]
        if is_local and min(num_workers, len(unfinished)) < 2:
            for number in tqdm(unfinished, "shards", unit="shard", disable=None):
                write_shard(folder, number, shards[number], encoder, settings)
        else:
            from cluster_jobs import executors

            shutil.rmtree(folder / "logs", ignore_errors=True)
            tasks = len(shards) if is_local else min(len(shards), TASKS_PER_WORKER * num_workers)
            step = partial(run_task, Path.cwd(), folder)
            executors.run_tasks(
                executors.make_executor(execution, [step], tasks, num_workers, folder / "logs", None, "shards")
            )
    except BaseException:
        if not any(is_finished(folder, number, shard) for number, shard in enumerate(shards)):
            shutil.rmtree(folder, ignore_errors=True)  # there is nothing to resume from
        raise


def _join_shards(
    writer: CorpusWriter, folder: Path, shards: list[Shard], encoder: DocumentEncoder, settings: CorpusSettings
) -> None:
    """Append all shards in order and finish the corpus."""
    lines_before, checked, path = 0, 0, ""
    for number, shard in enumerate(shards):
        prefix = shard_prefix(folder, number)
        sidecar = read_sidecar(prefix)
        lines_before = lines_before if shard.path == path else 0
        if sidecar["samples"]:
            writer.add_corpus(Corpus(prefix))
        for record in dropped_records(prefix):
            writer.add_dropped(record | {"line": record["line"] + lines_before})
        lines_before, path = lines_before + sidecar["settings"]["lines"], shard.path
        checked += sidecar["settings"]["checked"]
    source = {
        "name": writer.prefix.name, "type": 0, "start": 0, "end": writer.samples,
        "documents": writer.documents, "tokens": writer.tokens,
    }  # fmt: skip
    writer.finish(
        [source],
        encoder.sidecar_entry() | {"path": encoder.folder},
        asdict(settings)
        | {"files": {shard.path: shard.file_bytes for shard in shards}, "self_checked_documents": checked},
        {name: version(name) for name in ("gigatoken", "numpy", "sentencepiece", "tokenizers")},
        settings.seq_length,
    )
