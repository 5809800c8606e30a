"""Delays of /health and of another client's short /generate while the server handles the worst bodies of up to 8 MiB.

    python benchmarks/bench_worst_bodies.py
    python benchmarks/bench_worst_bodies.py --model runs/merged --only choices                   # some of the bodies

Sends each body to a server that inference/launch_vllm.py starts, while one client polls /health every 50 ms and
another, the neighbour, sends short requests to /generate one after the other. Prints a Markdown table: route and body,
status of the response, seconds until the response, longest time until /health answers, and longest time until the
neighbour gets a response. The first row is measured without such a body. Without --model, the model is a random LLaMA
of two layers.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from measurements import REPOSITORY

sys.path.append(str(REPOSITORY / "inference"))

from command_line.fire_commands import run

import aiohttp
from batch_runs.batch_server import started_server
from bench_serve import make_checkpoint

BYTES = 8 * 2**20 - 1024
POLL_SECONDS = 0.05
QUIET_SECONDS = 5.0  # duration of the measurement without a body
LONGEST_SECONDS = 15.0  # longest wait; /extract splits a text of 8 MiB into thousands of windows
NEIGHBOUR = json.dumps({"instruction": "Name a city.", "parameters": {"max_tokens": 8, "temperature": 0}}).encode()


class WorstBody(NamedTuple):
    """A request body: its route, its name in the table, and its bytes."""

    path: str
    name: str
    content: bytes


def filled(before: str, unit: str, after: str) -> bytes:
    """Return a body of 8 MiB that repeats a unit; a comma at the end of the last unit is removed."""
    count = (BYTES - len(before.encode()) - len(after.encode())) // len(unit.encode())
    return (before + (unit * count).removesuffix(",") + after).encode()


def extract_body(text: str) -> bytes:
    """Return a body of 8 MiB for /extract whose text repeats `text`."""
    return filled('{"task": "ner", "schema": ["person"], "text": "', text, '"}')


def worst_bodies() -> Iterator[WorstBody]:
    """Yield bodies that make parsing, validation, rendering, tokenising, splitting or compiling as slow as they can."""
    message = '{"role":"user","content":""},'
    yield WorstBody(
        "/extract", "`.` × 8 M, then x", filled('{"task": "ner", "schema": ["person"], "text": "', ".", 'x"}')
    )
    yield WorstBody("/extract", "`!。` runs", extract_body("!。"))
    yield WorstBody("/extract", "spaces", extract_body(" "))
    yield WorstBody("/extract", "quotation marks", extract_body("”"))
    yield WorstBody("/extract", "characters of 4 bytes", extract_body("😀"))
    yield WorstBody("/generate", "text of one letter", filled('{"instruction": "', "a", '"}'))
    yield WorstBody("/generate", "escapes", filled('{"instruction": "', "\\u4e00", '"}'))
    yield WorstBody("/generate", "unknown keys", ("{" + ",".join(f'"k{at}":0' for at in range(700_000)) + "}").encode())
    routes: dict[str, tuple[str, str]] = {
        "/generate": ('{"instruction": "x"', "}"),
        "/v1/completions": ('{"prompt": "x", "max_tokens": 4', "}"),
        "/v1/chat/completions": ('{"messages": [{"role": "user", "content": "x"}], "max_tokens": 4', "}"),
        "/v1/responses": ('{"input": "x", "max_output_tokens": 16', "}"),
    }
    for path, (start, end) in routes.items():
        yield WorstBody(path, "`[`", b"[" * BYTES)
        yield WorstBody(path, "unknown field of empty objects", filled(f'{start}, "unknown": [', "{},", f"]{end}"))
        yield WorstBody(path, "unknown field of numbers", filled(f'{start}, "unknown": [', "1,", f"]{end}"))
        yield WorstBody(path, "logit_bias", f'{start}, "logit_bias": {biases()}{end}'.encode())
        choices = json.dumps([f"number {at}" for at in range(300_000)])
        yield WorstBody(
            path, "300,000 choices", f'{start}, "structured_outputs": {{"choice": {choices}}}{end}'.encode()
        )
    yield WorstBody("/generate", "289,000 empty messages", filled('{"messages": [', message, "]}"))
    yield WorstBody("/generate", "16,000 messages", ('{"messages": [' + (message * 16_000)[:-1] + "]}").encode())
    yield WorstBody("/v1/chat/completions", "289,000 empty messages", filled('{"messages": [', message, "]}"))
    few = '{"messages": [' + (message * 16_000)[:-1] + '], "max_tokens": 4}'
    yield WorstBody("/v1/chat/completions", "16,000 messages", few.encode())
    yield WorstBody(
        "/v1/chat/completions", "one long message", filled('{"messages": [{"role": "user", "content": "', "a ", '"}]}')
    )
    yield WorstBody("/v1/completions", "token ids", filled('{"max_tokens": 4, "prompt": [', "7,", "]}"))
    yield WorstBody("/v1/completions", "260,000 token ids", ('{"prompt": [' + ("7," * 260_000)[:-1] + "]}").encode())
    yield WorstBody("/v1/completions", "one long text", filled('{"max_tokens": 4, "prompt": "', "a ", '"}'))
    yield WorstBody("/v1/completions", "16,000 prompts", ('{"prompt": [' + ('"a",' * 16_000)[:-1] + "]}").encode())
    yield WorstBody("/v1/responses", "one long text", filled('{"input": "', "a ", '"}'))
    ambiguous = {"prompt": "x", "structured_outputs": {"grammar": "root ::= s\ns ::= s s s | s s | [a-z]"}}
    yield WorstBody("/v1/completions", "ambiguous grammar", json.dumps(ambiguous).encode())
    yield from costly_fields()
    nested = {"instruction": "x", "parameters": {"structured_outputs": {"regex": ".*" * 4000}}}
    yield WorstBody("/generate", "8,000 characters of `.*`", json.dumps(nested).encode())


def costly_fields() -> Iterator[WorstBody]:
    """Yield bodies whose fields are costly: grammars, beams, many answers, log probabilities, stop words, tools, …"""
    types = [f"{at:03d}{'t' * 197}" for at in range(500)]
    text = "Ann was born in Oslo. " * 2000
    yield body("/extract", "500 types of 200 characters", task="ner", schema=types, text=text)
    roles = {name: ["agent", "place"] for name in types[:160]}
    yield body("/extract", "160 events of two roles", task="ee", schema=roles, text=text)
    # Texts with the largest grammars for names: different characters, and words that are prefixes of other words.
    characters = "".join(map(chr, range(0x4E00, 0x9FFF))) * 65
    yield body("/extract", "20,000 different characters", task="ner", schema=["a"], text=characters, window_tokens=9999)
    beginnings = " ".join("_" * length for length in range(1, 180)) * 100
    yield body("/extract", "`_ __ ___ …`", task="ner", schema=["a"], text=beginnings, window_tokens=9999)
    words = "a " * 400
    beams = {"num_beams": 100, "max_new_tokens": 200}
    yield body("/generate", "100 beams", instruction=words, parameters=beams)
    yield body("/v1/completions", "100 beams", prompt=words, use_beam_search=True, n=100, max_tokens=200)
    most = {"prompt_logprobs": 256, "logprobs": 256, "max_tokens": 400, "n": 64}
    yield body("/v1/completions", "256 log probabilities of each token", prompt=words, **most)
    yield body("/v1/completions", "1,000 answers", prompt="x", n=1000, max_tokens=100)
    yield body("/v1/completions", "64 answers", prompt="x", n=64, max_tokens=200)
    yield body("/v1/completions", "1,000 prompts", prompt=[f"{at}" for at in range(1000)], max_tokens=100)
    yield body("/v1/completions", "65,280 log probabilities", prompt="x", max_tokens=255, logprobs=255)
    truncated = [{"role": "user", "content": "a " * 500_000}]
    yield body("/v1/chat/completions", "1 M characters, truncated", messages=truncated, max_tokens=4,
               truncate_prompt_tokens=4)  # fmt: skip
    yield body("/tokenize", "1 M characters", prompt="a " * 500_000)
    for field in ("stop", "bad_words"):
        many = [f"w{at}" for at in range(500_000)]
        yield body("/v1/completions", f"500,000 {field}", prompt="x", max_tokens=4, **{field: many})
    messages = [{"role": "user", "content": "x"}]
    tools = [{"type": "function", "function": {"name": f"f{at}", "parameters": {}}} for at in range(80_000)]
    yield body("/v1/chat/completions", "80,000 tools", messages=messages, tools=tools, max_tokens=4)
    long = [{"role": "user", "content": "a " * 4_000_000}]
    yield body("/v1/messages", "one long message", model="served", messages=long, max_tokens=4)
    yield body("/tokenize", "one long text", prompt="a " * 4_000_000)
    yield body("/detokenize", "token ids", tokens=[7] * 2_500_000)


def body(path: str, name: str, **fields: object) -> WorstBody:
    """Return a body with these JSON fields."""
    return WorstBody(path, name, json.dumps(fields).encode())


def biases() -> str:
    """Return a JSON object of 600,000 token biases."""
    return "{" + ",".join(f'"{at}":1' for at in range(600_000)) + "}"


class Measured(NamedTuple):
    """The result for one body."""

    status: int  # of the response; 0: no response in LONGEST_SECONDS
    seconds: float  # until the response
    health: float  # longest seconds until /health answered
    neighbour: float  # longest seconds of a neighbour's request


async def repeat_until(stop: asyncio.Event, call: Callable[[], Awaitable[float]], pause: float) -> float:
    """Repeat `call` until `stop` is set; return the longest time that a call returned, in seconds."""
    longest = 0.0
    while not stop.is_set():
        longest = max(longest, await call())
        await asyncio.sleep(pause)
    return longest


async def measure(session: aiohttp.ClientSession, body: WorstBody | None) -> Measured:
    """Run the two other clients until a second after the response to a body; without a body, for QUIET_SECONDS."""

    async def timed(method: str, path: str, content: bytes | None = None) -> float:
        began = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        async with session.request(method, path, data=content, headers=headers) as answer:
            await answer.read()
        return time.perf_counter() - began

    stop = asyncio.Event()
    health = asyncio.create_task(repeat_until(stop, lambda: timed("GET", "/health"), POLL_SECONDS))
    neighbour = asyncio.create_task(repeat_until(stop, lambda: timed("POST", "/generate", NEIGHBOUR), 0.0))
    await asyncio.sleep(0.5)
    began, status = time.perf_counter(), 0
    if body:
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                async with session.post(
                    body.path, data=body.content, headers={"Content-Type": "application/json"}
                ) as answer:
                    await answer.read()
                    status = answer.status
        except TimeoutError:
            pass  # status 0
    seconds = time.perf_counter() - began
    await asyncio.sleep(QUIET_SECONDS if body is None else 1.0)
    stop.set()
    return Measured(status, seconds, await health, await neighbour)


async def measure_all(socket_file: str, only: str) -> None:
    """Measure each body whose route or name contains `only`, and print the table."""
    connector = aiohttp.UnixConnector(socket_file, limit=0)
    async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
        await measure(session, None)
        print("| route | body | status | response | `/health` | neighbour |\n|---|---|---|---|---|---|")
        for body in (None, *worst_bodies()):
            if body and only not in f"{body.path} {body.name}":
                continue
            found = await measure(session, body)
            path, name = (f"`{body.path}`", body.name) if body else ("", "none")
            status, response = (found.status or "open", f"{found.seconds:.1f} s") if body else ("", "")
            print(
                f"| {path} | {name} | {status} | {response} | {found.health:.2f} s | {found.neighbour:.2f} s |",
                flush=True,
            )


def main(model: str = "", only: str = "") -> None:
    """Measure the delays, and print a table with a row for each body.

    Args:
        model: a checkpoint folder; default: a random LLaMA.
        only: measure only the bodies whose route or name contains this text.
    """
    with tempfile.TemporaryDirectory() as folder:
        served = model or str(make_checkpoint(Path(folder), hidden_size=64, layers=2))
        with started_server(served, "", ("--max-body-mib", "8", "--max-num-queued-reqs", "1024")) as socket_file:
            asyncio.run(measure_all(socket_file, only))


if __name__ == "__main__":
    run(main)
