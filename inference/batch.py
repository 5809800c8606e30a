"""Answer a file of instructions: with vLLM's engine in a process of this command's, or by asking a running server.

    python inference/batch.py --model checkpoints/merged --input in.jsonl --output out.jsonl --temperature 0
    python inference/batch.py --url http://127.0.0.1:8090 --input in.jsonl --output out.jsonl --concurrency 64
    python inference/batch.py --model M --input I --output O --max_tokens 64 -- --tensor-parallel-size 8    # eight GPUs

A row is what /generate takes: {"instruction", "input"} or {"messages"}, with "parameters" and "model" of its own if
need be. Its line of the output has all of its keys, then "generated_text", "num_output_tokens_cf" and "error". Options
named as parameters of /generate hold for every row that does not say otherwise: a number, true, false, text, or JSON
(--stop '["\\n\\n"]'). Behind -- stand vLLM's own options for the engine.

A row that fails does not stop the run. An interrupted or killed run goes on with the same command. Exit status: 0; 1
where rows failed, which out.failed.jsonl lists; 2 where the run did not come to its end; 130 after Ctrl-C.
"""

from command_line.command_errors import resumable, run_command, unknown_option
from command_line.fire_commands import call

import asyncio
import hashlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

from batch_runs.batch_file import AnswerFile
from batch_runs.batch_rows import Answer, Request, Row, is_list, line_of, read_rows, request_of
from chat_prompts.template_files import read_template
from server_guard.process_supervisor import SERVING, report, supervise
from tqdm import tqdm

OPTIONS = ("input", "output", "model", "url", "template_path", "concurrency", "api_key", "overwrite", "engine")
# vLLM's options that decide how fast and where, not what is answered: a run may go on with others.
HOW_FAST = (
    "--max-num-seqs", "--max-num-batched-tokens", "--gpu-memory-utilization", "--kv-cache-memory-bytes",
    "--tensor-parallel-size", "--pipeline-parallel-size", "--distributed-executor-backend", "--enforce-eager",
    "--no-enforce-eager", "--enable-prefix-caching", "--no-enable-prefix-caching", "--async-scheduling",
)  # fmt: skip


def value_of(text: str) -> Any:
    """What an option's text means: JSON, Python's True, False and None (as fire writes flags), else the text itself."""
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_parameters(given: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of the command line; raises ValueError on unknown names and wrong values."""
    from pydantic import ValidationError
    from routes.sampling_parameters import Parameters

    for name in given:
        if name not in Parameters.model_fields:
            raise unknown_option(f"--{name}", [f"--{known}" for known in (*OPTIONS, *Parameters.model_fields)])
    parameters = {name: value_of(text) for name, text in given.items()}
    try:
        Parameters.model_validate(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ValueError(f"--{name} {given[name]}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    return {name: value for name, value in parameters.items() if value is not None}


def look_through(path: Path) -> tuple[str, int]:
    """SHA-256 of a file and how many lines it has."""
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            lines += block.count(b"\n")
            last = block[-1:]
    return digest.hexdigest(), lines + (last != b"\n")


def identity_of(model: str) -> Any:
    """What tells a checkpoint from another one: its path, and every file's size and time; of a hub name the name."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    return f"{folder.resolve()} {hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]}"


def deciding(options: list[str]) -> list[str]:
    """Those of vLLM's options that the answers depend on, with their values."""
    kept, counts = [], True
    for word in options:
        if word.startswith("--"):
            counts = word.partition("=")[0].replace("_", "-") not in HOW_FAST
        if counts:
            name, equals, folder = word.partition("=")  # an adapter's
            kept.append(f"{name}={identity_of(folder)}" if equals else word)
    return kept


class Tally:
    """What became of the rows of this run so far, shown in a bar where somebody looks."""

    def __init__(self, file: AnswerFile, lines: int | None) -> None:
        """lines: of the whole input; None: not known."""
        self.file, self.lines = file, lines
        self.failed = self.prompt_tokens = self.tokens = 0
        self.bar: Any = None
        self.began = self.seconds = 0.0

    def start(self) -> None:
        """From here on the time counts: the first row can be asked."""
        self.bar = tqdm(total=self.lines, initial=self.file.lines, unit="row", disable=None, smoothing=0.1)
        self.began = time.monotonic()

    def take(self, row: Row, answer: Answer) -> None:
        """Write a row's answer and count it."""
        self.file.put(row.number, line_of(row, answer))
        self.failed += bool(answer.error)
        self.prompt_tokens += answer.prompt_tokens
        self.tokens += answer.tokens
        self.seconds = time.monotonic() - self.began
        self.bar.set_postfix_str(f"{self.rate(self.tokens)} tokens/s, {self.failed} failed", refresh=False)
        self.bar.update()

    def rate(self, tokens: int) -> str:
        return f"{tokens / max(self.seconds, 1e-3):,.0f}"

    def summary(self) -> str:
        prompts = f"{self.rate(self.prompt_tokens)} prompt and " if self.prompt_tokens else ""
        return f"{self.seconds:.1f} s, {prompts}{self.rate(self.tokens)} output tokens/s"


Work = Callable[[Iterator[Row], Tally], None]


def run(source: Path, target: Path, settings: Mapping[str, Any], overwrite: bool, work: Work) -> int:
    """Answer by `work` what is not answered yet, name the output and say what came of it; how many rows failed.

    settings: what decides about the answers, the input aside.
    """
    digest, lines = look_through(source)
    with AnswerFile(target, {"input": digest, **settings}, overwrite) as file:
        before = file.lines
        tally = Tally(file, None if is_list(source) else lines)
        rows = read_rows(source, before)
        if first := next(rows, None):
            if before:
                print(f"note: {file.partial} has {before} lines; going on behind them", file=sys.stderr)
            work(chain([first], rows), tally)
            tally.bar.close()
        done, failed = file.finish()
    earlier = f" ({before} lines from before)" if before else ""
    failures = f" ({file.failures})" if failed else ""
    print(f"{target}: {done} rows{earlier}, {failed} failed{failures}, {tally.summary()}")
    return failed


def ask_engine(model: str, template_path: str, options: list[str], request: Request) -> tuple[dict[str, Any], Work]:
    """What decides about the answers of an engine of our own, and how it works."""
    template = read_template(template_path, "--template_path") if template_path else None

    def work(rows: Iterator[Row], tally: Tally) -> None:
        from batch_runs.batch_engine import OfflineEngine, engine_settings

        with OfflineEngine(engine_settings(model, template_path, options)) as engine:
            tally.start()
            engine.answer(rows, request, tally.take, tally.file.full)

    return {"model": identity_of(model), "template": template, "engine": deciding(options)}, work


def ask_server(url: str, key: str, callers: int, model: str, request: Request) -> tuple[dict[str, Any], Work]:
    """What decides about the answers of a server, and how it is asked; ValueError where it cannot be."""
    from batch_runs.batch_client import Client

    client = Client(url, key, callers)

    async def names() -> tuple[list[str], list[str]]:
        async with client:
            return await client.models()

    async def answer(rows: Iterator[Row], tally: Tally) -> None:
        async with client:
            tally.start()
            await client.answer(rows, request, tally.take, tally.file.full)

    bases, adapters = asyncio.run(names())
    if model and model not in bases + adapters:
        raise ValueError(f"{url} serves no model {model}; it serves {', '.join(bases + adapters)}")
    return {"server of": bases, "model": model}, lambda rows, tally: asyncio.run(answer(rows, tally))


def main(
    input: str = "",
    output: str = "",
    model: str = "",
    url: str = "",
    template_path: str = "",
    concurrency: int = 0,
    api_key: str = "",
    overwrite: bool = False,
    engine: str = "",
    **parameters: str,
) -> None:
    """Answer the rows of a file; options of other names are parameters of /generate, for all rows.

    Args:
        input: JSONL, or a JSON list.
        output: the file to write; while it grows it is OUTPUT.partial.
        model: a checkpoint's folder; with --url, the name of a served model for rows that name none.
        url: a running server, instead of an engine of this command's own.
        template_path: another prompt template than the checkpoint's: Jinja, or alpaca's JSON.
        concurrency: how many rows a server is asked at once; 0 is 32.
        api_key: a server's key; better put into the environment variable KNOWLM_API_KEY, which nobody sees.
        overwrite: replace a finished output, or what another run left of one.
        engine: vLLM's own options in one text; the same as giving them behind --.
        parameters: temperature, max_tokens, seed and all the others of /generate.
    """
    given = check_parameters(parameters)
    if not input or not output:
        raise ValueError(f"--{'output' if input else 'input'} is missing; --help lists the options")
    source, target = Path(input), Path(output)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; --input takes JSONL, or a JSON list")
    if target.resolve() == source.resolve():
        raise ValueError(f"--output {target} is the input; name another file")
    if not model and not url:
        raise ValueError("nothing to ask; give a checkpoint's folder with --model, or a running server with --url")
    if url and (template_path or engine):
        raise ValueError("a server has its own template and engine; leave --template_path and what is behind -- out")
    if not url and (concurrency or api_key):
        raise ValueError("--concurrency and --api_key are for servers; leave them out, or give --url")

    def request(content: dict[str, Any]) -> dict[str, Any]:
        return request_of(content, model if url else "", given)

    if url:
        if concurrency < 0:
            raise ValueError(f"--concurrency takes a whole number of 1 or more, not {concurrency}")
        key = api_key or os.environ.get("KNOWLM_API_KEY", "")
        settings, work = ask_server(url, key, concurrency or 32, model, request)
    else:
        settings, work = ask_engine(model, template_path, shlex.split(engine), request)
    with resumable("the same command resumes the run"):
        failed = run(source, target, settings | {"parameters": given}, overwrite, work)
    if failed:
        sys.exit(1)


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    own, options = sys.argv[1:], []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    if "--help" not in own and not any(word.startswith("--url") for word in own):
        supervise()  # no process of the engine's outlives this one
    signal.signal(signal.SIGTERM, interrupt)
    report(SERVING)
    behind = [f"--engine={shlex.join(options)}"] if options else []
    run_command(lambda: call(main, own + behind), {RuntimeError: 2})
