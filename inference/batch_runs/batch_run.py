"""A run of batch.py: its identity, and the server that answers, which is started for the run or runs already."""

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from chat_prompts.template_files import read_template
from server_launch.launch_args import precheck

from batch_runs.batch_client import BatchClient
from batch_runs.batch_file import AnswerFile, BatchProgress
from batch_runs.batch_rows import BatchRow, read_rows
from batch_runs.batch_server import started_server

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
    print(f"{target}: {done} rows{earlier}, {failed} failed{failures}, {progress.seconds:.1f} s, {progress.rate()}")
    return failed


def own_server(model: str, template_path: str, options: list[str], callers: int) -> tuple[dict[str, Any], AnswerRows]:
    """Return the settings that determine the answers of a server that is started for the run, and a function for rows.

    options: of launch_vllm.py; callers: concurrent requests. Raises ValueError or FileNotFoundError for a wrong
    template.
    """
    template = read_template(template_path, "--template_path") if template_path else None

    def answer_rows(rows: Iterator[BatchRow], progress: BatchProgress) -> None:
        precheck(["--model", model, *options])
        with started_server(model, template_path, options) as path:
            asyncio.run(BatchClient("http://localhost", "", callers, path).answer(rows, progress))

    return {"model": model_identity(model), "template": template, "engine": answer_options(options)}, answer_rows


def running_server(url: str, key: str, callers: int, model: str) -> tuple[dict[str, Any], AnswerRows]:
    """Return the settings that determine a server's answers, and a function that answers rows with it.

    Raises ValueError if the server does not serve the model, and the errors of BatchClient.models.
    """
    client = BatchClient(url, key, callers)
    bases, adapters = asyncio.run(client.models())
    if model and model not in bases + adapters:
        raise ValueError(f"{url} serves no model {model}; it serves {', '.join(bases + adapters)}")
    return {"server of": bases, "model": model}, lambda rows, progress: asyncio.run(client.answer(rows, progress))
