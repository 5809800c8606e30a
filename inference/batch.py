"""Answer a file of requests to /generate and /extract, with a server started for the run or a running server.

    python inference/batch.py --model checkpoints/merged --input in.jsonl --output out.jsonl --temperature 0
    python inference/batch.py --url http://127.0.0.1:8090 --input in.jsonl --output out.jsonl --concurrency 64
    python inference/batch.py --model M --input I --output O --max_tokens 64 -- --tensor-parallel-size 8    # eight GPUs

A row is a request body of /generate: {"instruction", "input"} or {"messages"}, optionally with "parameters" and
"model". Its output line has the keys of the row, followed by "generated_text", "num_output_tokens_cf" and "error". Each
parameter of /generate is also an option, which sets the default for these rows; its value is a number, true, false,
text, or JSON (--stop '["\\n\\n"]'). Options of launch_vllm.py follow after --.

A row with "task", "schema" and "text" is a request body of /extract, optionally with "language", "model", "max_tokens",
"names_from_text" and "window_tokens". Its output line has the keys of the row, followed by the keys of the response:
"entities", "triples" or "events" (absent after an error), "complete", "windows", "num_output_tokens_cf" and "error".
--max_tokens is also the default of these rows (per window); other parameters are an error if the file has only rows of
/extract. A row of /extract that also has "instruction", "messages" or "parameters" is invalid.

A file may have rows of both kinds. A row that fails does not stop the run; the output line of an invalid row has only
the keys of a response. The same command resumes an interrupted or killed run. Exit status: 0 if no row failed; 1 if
rows failed, which out.failed.jsonl lists, or if the engine of a new server failed at its start; 2 if an option is wrong
or the run did not finish for another reason; 130 after Ctrl-C; 143 after SIGTERM.
"""

from command_line import interrupts
from command_line.command_errors import run_command, unknown_option
from command_line.fire_commands import call

import json
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from server_guard.process_supervisor import SERVING, notify_supervisor, supervise

CONCURRENCY = 32  # concurrent requests to a running server
# To a server started by this command. vLLM's default batch has 256 sequences, on most GPUs of 70 GiB or more 1024.
NEW_SERVER_CONCURRENCY = 512
# Lowest and highest values of sampling parameters (SamplingParams._verify_args and CompletionRequest of vLLM 0.32). The
# options are checked before a server starts; the server checks the values of each row.
RANGES = {
    "temperature": (0, 2), "top_p": (0, 1), "top_k": (-1, inf), "min_p": (0, 1), "repetition_penalty": (0, inf),
    "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2), "max_tokens": (1, inf), "max_new_tokens": (1, inf),
    "min_tokens": (0, inf), "seed": (-(2**63), 2**63 - 1),
}  # fmt: skip
EXCLUSIVE_MINIMUM = ("top_p", "repetition_penalty")  # parameters whose lowest value itself is refused
OPTIONS = ("input", "output", "model", "url", "template_path", "concurrency", "api_key", "overwrite", "engine")


def option_value(text: str) -> Any:
    """Return the text of an option parsed as JSON, or as Python's True, False or None (the values of flags).

    Any other text is returned unchanged.
    """
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_parameters(given: Mapping[str, str]) -> dict[str, Any]:
    """Return the sampling parameters of the command line; raises ValueError for unknown names and invalid values."""
    from pydantic import ValidationError
    from routes.sampling_parameters import Parameters

    for name in given:
        if name not in Parameters.model_fields:
            raise unknown_option(f"--{name}", [f"--{known}" for known in (*OPTIONS, *Parameters.model_fields)])
    parameters = {name: option_value(text) for name, text in given.items()}
    try:
        Parameters.model_validate(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ValueError(f"--{name} {given[name]}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    parameters = {name: value for name, value in parameters.items() if value is not None}
    for name, value in parameters.items():
        lowest, highest = RANGES.get(name, (None, None))
        if lowest is not None and not (
            lowest <= value <= highest and (value > lowest or name not in EXCLUSIVE_MINIMUM)
        ):
            low = f"above {lowest}" if name in EXCLUSIVE_MINIMUM else f"of {lowest} or more"
            most = f", at most {highest}" if highest != inf else ""
            raise ValueError(f"--{name} {given[name]} is out of range; give a number {low}{most}")
    return parameters


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
    """Answer the rows of a file; options that are not listed here are parameters of /generate and apply to its rows.

    Args:
        input: a JSON, JSONL or parquet file.
        output: the file to write; it is named OUTPUT.partial until the run is finished.
        model: a checkpoint folder; with --url, the served model for rows without "model".
        url: URL of a running server; without it, this command starts one.
        template_path: prompt template that replaces the checkpoint's: Jinja, or alpaca's JSON.
        concurrency: maximum number of concurrent requests; 0 means 32 with --url, else 512; a text of /extract counts
            as 1 to 16 requests.
        api_key: API key of the server; prefer the environment variable KNOWLM_API_KEY, which `ps` does not show.
        overwrite: replace a finished output, or the partial output of another run.
        engine: options of launch_vllm.py as one string; the same as giving them after --.
        parameters: any parameter of /generate, such as temperature or seed; max_tokens also applies to /extract.
    """
    given = check_parameters(parameters)
    if not input or not output:
        raise ValueError(f"--{'output' if input else 'input'} is missing; --help lists the options")
    source, target = Path(input), Path(output)
    if not source.is_file():
        fault = "is a folder" if source.is_dir() else "does not exist"
        raise FileNotFoundError(f"{source} {fault}; --input takes a .json, .jsonl or .parquet file")
    if target.resolve() == source.resolve():
        raise ValueError(f"--output {target} is the input; choose another file")
    if not model and not url:
        raise ValueError("no model is given; give a checkpoint folder with --model, or a running server with --url")
    if url and (template_path or engine):
        raise ValueError("--url uses a server that is already running; remove --template_path and the options after --")
    if api_key and not url:
        raise ValueError("--api_key is for a running server; remove it, or give --url")
    if concurrency < 0:
        raise ValueError(f"--concurrency takes a whole number of 0 or more, not {concurrency}")
    from batch_runs.batch_run import connect_to_server, prepare_new_server, run_batch

    # asyncio.run cancels all tasks on Ctrl-C only with Python's default handler; otherwise, tasks log tracebacks.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if url:
        key = api_key or os.environ.get("KNOWLM_API_KEY", "")
        connect = partial(connect_to_server, url, key, concurrency or CONCURRENCY, model)
    else:
        engine_options, concurrency = shlex.split(engine), concurrency or NEW_SERVER_CONCURRENCY
        connect = partial(prepare_new_server, model, template_path, engine_options, concurrency)
    if run_batch(source, target, given, overwrite, connect, served_model=model if url else ""):
        sys.exit(1)


def interrupt_on_sigterm(number: int, *_: object) -> None:
    """Interrupt the run as Ctrl-C does, but with SIGTERM's exit status; ignore further SIGTERMs. A signal handler."""
    signal.signal(number, signal.SIG_IGN)
    interrupts.exit_status = interrupts.TERMINATED
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    arguments, engine_options = sys.argv[1:], []
    if "--" in arguments:
        separator = arguments.index("--")
        arguments, engine_options = arguments[:separator], arguments[separator + 1 :]
    if "--help" not in arguments and not any(argument.startswith("--url") for argument in arguments):
        supervise(ends_by_itself=True)  # all processes of the server end with this one
    signal.signal(signal.SIGTERM, interrupt_on_sigterm)
    notify_supervisor(SERVING)
    if engine_options:
        arguments.append(f"--engine={shlex.join(engine_options)}")
    run_command(lambda: call(main, arguments))
