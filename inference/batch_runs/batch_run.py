"""A run of batch.py: its identity, its progress, and the two ways to answer rows (offline engine or server)."""

import asyncio
import hashlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from chat_prompts.template_files import read_template

from batch_runs.batch_file import AnswerFile, BatchProgress
from batch_runs.batch_rows import BatchRow, read_rows

# vLLM's options that affect speed but not answers: a run can be resumed with other values.
SPEED_OPTIONS = (
    "--max-num-seqs", "--max-num-batched-tokens", "--gpu-memory-utilization", "--kv-cache-memory-bytes",
    "--tensor-parallel-size", "--pipeline-parallel-size", "--distributed-executor-backend", "--enforce-eager",
    "--no-enforce-eager", "--enable-prefix-caching", "--no-enable-prefix-caching", "--async-scheduling",
)  # fmt: skip


def hash_and_count(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of a file and its number of rows; raises ValueError if it cannot be read to its end."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest, sum(1 for _ in read_rows(path))


def model_identity(model: str) -> str:
    """Return the identity of a checkpoint: its path with a hash of its files' sizes and times, or its hub name."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    return f"{folder.resolve()} {hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]}"


def answer_options(options: list[str]) -> list[str]:
    """Return vLLM's options that affect the answers, with their values; adapter folders are replaced by identities."""
    kept, is_kept = [], True
    for word in options:
        if word.startswith("--"):
            is_kept = word.partition("=")[0].replace("_", "-") not in SPEED_OPTIONS
        if is_kept:
            name, equals, folder = word.partition("=")  # NAME=FOLDER of an adapter
            kept.append(f"{name}={model_identity(folder)}" if equals else word)
    return kept


AnswerRows = Callable[[Iterator[BatchRow], BatchProgress], None]


def run_batch(
    source: Path, target: Path, settings: Mapping[str, Any], overwrite: bool, answer_rows: AnswerRows, served_model: str
) -> int:
    """Answer the rows that have no answer yet, rename the output, print a summary; return the number of failed rows.

    settings: the settings that determine the answers, besides the input; "parameters" are the defaults of all rows.
    served_model: for rows without "model".
    """
    digest, count = hash_and_count(source)
    with AnswerFile(target, {"input": digest, **settings}, overwrite) as file:
        before = file.lines
        progress = BatchProgress(file, count)
        rows = read_rows(source, before, served_model, settings["parameters"])
        if first := next(rows, None):
            if before:
                print(f"note: {file.partial} has {before} lines; resuming after them", file=sys.stderr)
            answer_rows(chain([first], rows), progress)
            progress.bar.close()
        done, failed = file.finish()
    earlier = f" ({before} lines from before)" if before else ""
    failures = f" ({file.failures})" if failed else ""
    print(f"{target}: {done} rows{earlier}, {failed} failed{failures}, {progress.summary()}")
    return failed


def answer_with_engine(model: str, template_path: str, options: list[str]) -> tuple[dict[str, Any], AnswerRows]:
    """Return the settings that determine the offline engine's answers, and a function that answers rows with it."""
    template = read_template(template_path, "--template_path") if template_path else None

    def answer_rows(rows: Iterator[BatchRow], progress: BatchProgress) -> None:
        from batch_runs.batch_engine import OfflineEngine, engine_args

        with OfflineEngine(engine_args(model, template_path, options)) as engine:
            progress.start()
            engine.answer(rows, progress)

    return {"model": model_identity(model), "template": template, "engine": answer_options(options)}, answer_rows


def answer_with_server(url: str, key: str, callers: int, model: str) -> tuple[dict[str, Any], AnswerRows]:
    """Return the settings that determine a server's answers, and a function that answers rows with it.

    Raises ValueError if the server does not serve the model, and the errors of BatchClient.models.
    """
    from batch_runs.batch_client import BatchClient

    client = BatchClient(url, key, callers)

    async def served_names() -> tuple[list[str], list[str]]:
        async with client.connected():
            return await client.models()

    async def answer_all(rows: Iterator[BatchRow], progress: BatchProgress) -> None:
        async with client.connected():
            progress.start()
            await client.answer(rows, progress)

    # With Python's own handler, asyncio.run cancels all tasks on Ctrl-C; with any other, tasks log tracebacks.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    bases, adapters = asyncio.run(served_names())
    if model and model not in bases + adapters:
        raise ValueError(f"{url} serves no model {model}; it serves {', '.join(bases + adapters)}")

    return {"server of": bases, "model": model}, lambda rows, progress: asyncio.run(answer_all(rows, progress))
