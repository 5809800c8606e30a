"""A run of batch.py: the settings that determine the answers, and the new or running server that computes them."""

import asyncio
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from chat_prompts.template_files import read_template
from server_launch.launch_args import precheck

from batch_runs.batch_client import BatchClient
from batch_runs.batch_file import AnswerFile, BatchProgress, check_answers_path
from batch_runs.batch_rows import SHARED_PARAMETERS, BatchRow, read_rows
from batch_runs.batch_server import started_server

# vLLM's options that affect speed but not answers: a run can be resumed with other values.
SPEED_OPTIONS = (
    "--max-num-seqs", "--max-num-batched-tokens", "--gpu-memory-utilization", "--kv-cache-memory-bytes",
    "--tensor-parallel-size", "--pipeline-parallel-size", "--distributed-executor-backend", "--enforce-eager",
    "--no-enforce-eager", "--enable-prefix-caching", "--no-enable-prefix-caching", "--async-scheduling",
)  # fmt: skip


def hash_and_count(path: Path) -> tuple[str, Counter[str]]:
    """Return the SHA-256 of a file, and the number of its rows by route ("" for rows that cannot be sent).

    Raises ValueError if the file has no rows or cannot be read to its end.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest, Counter(row.route if row.request else "" for row in read_rows(path))


def model_identity(model: str) -> str:
    """Return a checkpoint's identity as text: its path and a hash of its files' sizes and times, or its hub name."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    return f"{folder.resolve()} {hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]}"


def without_speed_options(options: list[str]) -> list[str]:
    """Return vLLM's options without SPEED_OPTIONS and their values.

    The folder of an adapter (NAME=FOLDER) is replaced by its `model_identity`.
    """
    kept, is_kept = [], True
    for word in options:
        if word.startswith("--"):
            is_kept = word.partition("=")[0].replace("_", "-") not in SPEED_OPTIONS
        if is_kept:
            name, equals, folder = word.partition("=")  # NAME=FOLDER of an adapter
            kept.append(f"{name}={model_identity(folder)}" if equals else word)
    return kept


AnswerRows = Callable[[Iterator[BatchRow], BatchProgress], None]  # answers the rows and writes the answers
ServerConnection = tuple[dict[str, Any], AnswerRows]  # (settings that determine the server's answers, its AnswerRows)


def run_batch(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any],
    overwrite: bool,
    connect: Callable[[], ServerConnection],
    served_model: str,
) -> int:
    """Answer the rows that have no answer yet, rename the output, print a summary; return the number of failed rows.

    The input is read to its end before `connect` contacts or prepares the server. parameters: defaults for all rows;
    served_model: the model for rows without "model". Raises ValueError for a parameter that no row uses, and the errors
    of AnswerFile and `connect`. The messages of ConnectionError and KeyboardInterrupt say which lines are kept.
    """
    digest, counts = hash_and_count(source)
    unused = [name for name in parameters if name not in SHARED_PARAMETERS]
    if unused and counts["/extract"] and not counts["/generate"]:
        raise ValueError(
            f"--{unused[0]} is a parameter of /generate, but {source} has only rows of /extract; remove it"
        )
    check_answers_path(target, overwrite)
    settings, answer_rows = connect()
    with AnswerFile(target, {"input": digest, **settings, "parameters": parameters}, overwrite) as file:
        before = file.lines
        progress = BatchProgress(file, counts.total())
        rows = read_rows(source, before, served_model, parameters)
        if first := next(rows, None):
            if before:
                print(f"notice: resuming {file.partial} after line {before}", file=sys.stderr)
            try:
                answer_rows(chain([first], rows), progress)
            except ConnectionError as error:
                raise ConnectionError(f"{error}; {file.kept_lines()}") from None
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"interrupted; {file.kept_lines()}") from None
            progress.bar.close()
        done, failed = file.finish()
    earlier = f" ({before} from an earlier run)" if before else ""
    failures = f" ({file.failures_file})" if failed else ""
    rows_done = f"{done} row{'s' * (done != 1)}{earlier}"
    print(f"{target}: {rows_done}, {failed} failed{failures}, {progress.seconds:.1f} s, {progress.rate()}")
    return failed


def prepare_new_server(model: str, template_path: str, options: list[str], concurrency: int) -> ServerConnection:
    """Return the settings that determine a new server's answers, and a function that starts it and answers rows.

    options: options of launch_vllm.py; concurrency: maximum number of concurrent requests. Raises ValueError or
    FileNotFoundError if the template cannot be read.
    """
    template = read_template(template_path, "--template_path") if template_path else None

    def answer_rows(rows: Iterator[BatchRow], progress: BatchProgress) -> None:
        template_option = ["--template_path", template_path] if template_path else []
        precheck(["--model", model, *template_option, *options])
        with started_server(model, template_path, options) as path:
            asyncio.run(BatchClient("http://localhost", "", concurrency, path).answer(rows, progress))

    return {"model": model_identity(model), "template": template, "engine": without_speed_options(options)}, answer_rows


def connect_to_server(url: str, key: str, concurrency: int, model: str) -> ServerConnection:
    """Return the settings that determine a running server's answers, and a function that answers rows.

    Raises ValueError if the server does not serve the model, and the errors of BatchClient.models.
    """
    client = BatchClient(url, key, concurrency)
    bases, adapters = asyncio.run(client.models())
    if model and model not in bases + adapters:
        raise ValueError(f"{url} serves no model {model}; give one of {', '.join(bases + adapters)}")
    return {"served base": bases, "model": model}, lambda rows, progress: asyncio.run(client.answer(rows, progress))
