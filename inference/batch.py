"""Answer a file of instructions, with vLLM's engine in processes of this command or with a running server.

    python inference/batch.py --model checkpoints/merged --input in.jsonl --output out.jsonl --temperature 0
    python inference/batch.py --url http://127.0.0.1:8090 --input in.jsonl --output out.jsonl --concurrency 64
    python inference/batch.py --model M --input I --output O --max_tokens 64 -- --tensor-parallel-size 8    # eight GPUs

A row is a body of /generate: {"instruction", "input"} or {"messages"}, optionally with "parameters" and "model". Its
line of the output has all of its keys, then "generated_text", "num_output_tokens_cf" and "error". Options with the name
of a parameter of /generate are defaults for all rows: a number, true, false, text, or JSON (--stop '["\\n\\n"]').
vLLM's own options for the engine follow after --.

A row that fails does not stop the run. The same command resumes an interrupted or killed run. Exit status: 0; 1 if rows
failed, which out.failed.jsonl lists; 2 if the run did not finish; 130 after Ctrl-C.
"""

import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import FrameType
from typing import Any

import fire
from batch_runs.batch_rows import request_of
from batch_runs.batch_run import engine_run, run_batch, server_run
from fire.decorators import SetParseFn
from pydantic import ValidationError
from routes.sampling_parameters import Parameters
from server_guard.process_supervisor import SERVING, report, supervise

OPTIONS = ("input", "output", "model", "url", "template_path", "concurrency", "api_key", "overwrite", "engine")


def option_value(text: str) -> Any:
    """Return the value of an option: JSON, Python's True, False and None (as fire writes flags), else the text."""
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_parameters(given: Mapping[str, str]) -> dict[str, Any]:
    """Return the sampling parameters of the command line; raises ValueError for unknown names and wrong values."""
    for name in given:
        if name not in Parameters.model_fields:
            near = get_close_matches(name, [*OPTIONS, *Parameters.model_fields], 1)
            raise ValueError(f"unknown option --{name}; " + (f"did you mean --{near[0]}?" if near else "see --help"))
    parameters = {name: option_value(text) for name, text in given.items()}
    try:
        Parameters.model_validate(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ValueError(f"--{name} {given[name]}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    return {name: value for name, value in parameters.items() if value is not None}


def main(
    input: str = "",
    output: str = "",
    model: str = "",
    url: str = "",
    template_path: str = "",
    concurrency: str = "",
    api_key: str = "",
    overwrite: str = "False",
    engine: str = "",
    **parameters: str,
) -> None:
    """Answer the rows of a file; all other options are parameters of /generate, for all rows.

    Args:
        input: JSONL, or a JSON list.
        output: the file to write; until the run is finished it is OUTPUT.partial.
        model: a checkpoint's folder; with --url, the name of a served model for rows that name none.
        url: a running server, instead of an engine of this command's own.
        template_path: prompt template that replaces the checkpoint's: Jinja, or alpaca's JSON.
        concurrency: requests to a server at once; 32.
        api_key: a server's key; better in the environment variable KNOWLM_API_KEY, which `ps` does not show.
        overwrite: replace a finished output, or the partial output of another run.
        engine: vLLM's own options in one text; the same as giving them after --.
        parameters: temperature, max_tokens, seed and all others of /generate.
    """
    given = check_parameters(parameters)
    if (replace := option_value(overwrite)) not in (True, False):
        raise ValueError(f"--overwrite takes no value, and got {overwrite}")
    if not input or not output:
        raise ValueError(f"--{'output' if input else 'input'} is missing; --help lists the options")
    source, target = Path(input), Path(output)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; --input takes JSONL, or a JSON list")
    if target.resolve() == source.resolve():
        raise ValueError(f"--output {target} is the input; choose another file")
    if not model and not url:
        raise ValueError("there is no model; give a checkpoint's folder with --model, or a running server with --url")
    if url and (template_path or engine):
        raise ValueError("a server has its own template and engine; remove --template_path and the options after --")
    if not url and (concurrency or api_key):
        raise ValueError("--concurrency and --api_key are for servers; remove them, or give --url")

    def request(content: dict[str, Any]) -> dict[str, Any]:
        return request_of(content, model if url else "", given)

    if url:
        callers = int(concurrency) if concurrency.isdecimal() else 0 if concurrency else 32
        if callers < 1:
            raise ValueError(f"--concurrency {concurrency} is not a number of 1 or more")
        settings, answer_rows = server_run(
            url, api_key or os.environ.get("KNOWLM_API_KEY", ""), callers, model, request
        )
    else:
        settings, answer_rows = engine_run(model, template_path, shlex.split(engine), request)
    if run_batch(source, target, settings | {"parameters": given}, replace, answer_rows):
        sys.exit(1)


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    own, options = sys.argv[1:], []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    if not any(word.startswith("--url") for word in own):
        supervise()  # no process of the engine outlives this one
    signal.signal(signal.SIGTERM, interrupt)
    report(SERVING)
    try:
        if "--help" in own:
            fire.Fire(main, ["--", "--help"])
        behind = [f"--engine={shlex.join(options)}"] if options else []
        # As text: fire would turn a file name into a number, and a text with a comma into a tuple.
        fire.Fire(SetParseFn(str)(main), own + behind)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes the run", file=sys.stderr)
        sys.exit(130)
