"""Throughput and CPU of inference/batch.py against LLM.generate on the same rows.

    python benchmarks/bench_batch.py
    python benchmarks/bench_batch.py --hidden_size 512 --layers 8 --rows 4000 --rounds 12
    python benchmarks/bench_batch.py --model runs/merged --rows 20000 --rounds 12                        # one GPU

Each row has a different prompt of about fifty words and gets 8 to 8 + 2 * --tokens new tokens (ignore_eos). In every
round each contender answers the same rows; the order of contenders rotates:

- batch: batch.py's client and its own server, with rows from a file and the answers written in order;
- all: LLM.generate on all rows at once, from memory; the measured time includes rendering.

Engine and server have the same settings and no prefix caching; each is idle while the other works. Without --model, the
model is a random LLaMA; the smaller it is, the larger the share of time outside the model. The last line is JSON, with
medians over the rounds:

- tokens_per_s: {contender: new tokens per second}; cpu_ms: {contender: CPU milliseconds of this process per row};
- ratio: {"batch/all": [median, minimum, maximum over the rounds of the ratio of tokens per second]}.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from measurements import REPOSITORY, rotated, spread

sys.path.append(str(REPOSITORY / "inference"))

from command_line.fire_commands import run

from batch_runs.batch_client import BatchClient
from batch_runs.batch_file import AnswerFile, BatchProgress
from batch_runs.batch_rows import read_rows
from batch_runs.batch_server import started_server
from bench_serve import make_checkpoint, prompts
from chat_prompts.prompt_encoding import PromptEncoder, instruction_messages

CONTENDERS = ["batch", "all"]
CALLERS = 512  # concurrent requests, as in batch.py
MEMORY_SHARE = 0.4  # of the device, for each of the two engines
IDLE_SECONDS = 2  # pause between contenders: an idle engine's worker polls for one second before it sleeps


class RoundTiming(NamedTuple):
    """Measurements of one contender in one round."""

    seconds: float
    tokens: int
    cpu: float  # CPU seconds of this process


def make_rows(path: Path, count: int, tokens: int, seed: int) -> list[dict[str, Any]]:
    """Return the rows of a round, and write them to a file."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = [
        {
            "instruction": text,
            "parameters": {"temperature": 0, "max_tokens": draw.randint(8, 8 + 2 * tokens), "ignore_eos": True},
        }
        for text in prompts(count, draw)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def by_batch(client: BatchClient, source: Path, target: Path, rows: int) -> int:
    """Answer the rows of a file as batch.py does; return the number of new tokens."""
    with AnswerFile(target, {"input": "rows of this round"}, overwrite=True) as file:
        progress = BatchProgress(file, rows)
        asyncio.run(client.answer(read_rows(source), progress))
        progress.bar.close()
        file.finish()
    if progress.failed:
        raise ValueError(f"batch.py could not answer {progress.failed} of {rows} rows")
    return progress.output_tokens


def by_generate(llm: Any, encoder: PromptEncoder, rows: list[dict[str, Any]]) -> int:
    """Answer the rows with one call of LLM.generate; return the number of new tokens."""
    from vllm import SamplingParams

    ids = [{"prompt_token_ids": encoder.prompt_ids(instruction_messages(row["instruction"]))} for row in rows]
    params = [SamplingParams(**row["parameters"]) for row in rows]
    return sum(len(done.outputs[0].token_ids) for done in llm.generate(ids, params, use_tqdm=False))


def timed(work: Callable[[], int]) -> RoundTiming:
    time.sleep(IDLE_SECONDS)
    cpu, began = time.process_time(), time.perf_counter()
    tokens = work()
    return RoundTiming(time.perf_counter() - began, tokens, time.process_time() - cpu)


def figures(rounds: list[dict[str, RoundTiming]], rows: int) -> dict[str, Any]:
    """Return the medians and ratios of the last output line (see the module docstring)."""
    rate = [{name: done.tokens / done.seconds for name, done in each.items()} for each in rounds]
    return {
        "tokens_per_s": {name: round(median(each[name] for each in rate), 1) for name in CONTENDERS},
        "cpu_ms": {name: round(1e3 * median(each[name].cpu for each in rounds) / rows, 3) for name in CONTENDERS},
        "ratio": {"batch/all": spread([each["batch"] / each["all"] for each in rate])},
    }


def main(
    model: str = "", rounds: int = 8, rows: int = 600, tokens: int = 32, hidden_size: int = 256, layers: int = 4
) -> None:
    """Answer the same rows with each contender in turn, and compare.

    Args:
        model: a tuned checkpoint folder; default: a random LLaMA.
        rounds: measured rounds; one more round warms up.
        rows: number of rows per round.
        tokens: answers have 8 to 8 + 2 * tokens new tokens.
        hidden_size: width of the random model, a multiple of 64.
        layers: number of layers of the random model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        from vllm import LLM

        folder = Path(model) if model else make_checkpoint(Path(scratch), hidden_size, layers)
        dtype = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"]
        options = ["--no-enable-prefix-caching", "--max-model-len", "512", "--dtype", dtype, "--enforce-eager",
                   "--gpu-memory-utilization", str(MEMORY_SHARE)]  # fmt: skip
        source, target = Path(scratch, "in.jsonl"), Path(scratch, "out.jsonl")
        done = []
        with started_server(str(folder), "", options) as socket_file:
            client = BatchClient("http://localhost", "", CALLERS, socket_file)
            llm = LLM(
                str(folder), enable_prefix_caching=False, max_model_len=512, dtype=dtype, enforce_eager=True,
                gpu_memory_utilization=MEMORY_SHARE,
            )  # fmt: skip
            encoder = PromptEncoder(llm.get_tokenizer())
            for number in range(rounds + 1):
                requests = make_rows(source, rows, tokens, number)
                contenders: dict[str, Callable[[], int]] = {
                    "batch": lambda: by_batch(client, source, target, rows),
                    "all": lambda requests=requests: by_generate(llm, encoder, requests),
                }
                done.append({name: timed(contenders[name]) for name in rotated(CONTENDERS, number)})
                print(f"round {number} of {rounds}", file=sys.stderr)
            llm.llm_engine.engine_core.shutdown()  # otherwise Python waits for the engine; LLM has no shutdown()
    result = figures(done[1:], rows)
    about = {"rounds": rounds, "rows": rows, "tokens": tokens, "cores": len(os.sched_getaffinity(0)),
             "model": model or f"random, {hidden_size} wide, {layers} layers"}  # fmt: skip
    print(json.dumps(about | result))


if __name__ == "__main__":
    run(main)
