"""Throughput, latency and CPU of /generate and /extract against vLLM's engine and its /v1/completions.

    python benchmarks/bench_serve.py
    python benchmarks/bench_serve.py --hidden_size 1024 --layers 8 --rounds 40 --concurrency 64
    python benchmarks/bench_serve.py --model runs/merged --dtype half --rounds 40                        # one GPU

A batch consists of --concurrency concurrent requests. Each request has a different prompt and generates --tokens new
tokens (ignore_eos; extract: at most so many). A batch ends with its last response. In every round each contender
processes the same batches; the order of contenders rotates:

- engine: LLM.generate, called in this process; its engine core is another process;
- completions: POST /v1/completions of a server that inference/launch_vllm.py started;
- generate: POST /generate of the same server, which builds the same prompts with the chat template;
- free, extract (at the highest concurrency only): /generate with an extraction instruction, and /extract with
  grammar-constrained decoding on the same text.

Engine and server have the same settings and no prefix caching; each is idle while the other works. Without --model, the
model is a random LLaMA; the smaller it is, the larger the share of time outside the model. The last line is JSON, with
medians over the rounds:

- tokens_per_s: {concurrency: {contender: new tokens per second}};
- p50_ms, p99_ms: {concurrency: {contender: latency of a request, percentile over all rounds}};
- ratio: {concurrency: {"generate/completions", "generate/engine", "completions/engine", "extract/free": [median,
  minimum, maximum over the rounds of the ratio of tokens per second]}};
- api_cpu_ms: {contender: CPU milliseconds of the API process per request, at the highest concurrency};
- api_cpu_extra_ms: [median, minimum, maximum over the rounds of the difference between generate and completions].
"""

import asyncio
import json
import os
import random
import subprocess
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

import aiohttp
import psutil
from batch_runs.batch_server import started_server

SCHEMA = ["person", "place", "organisation", "work"]
IDLE_SECONDS = 1.1  # pause between engine and server: an idle engine's worker polls for one second before it sleeps
WORDING = "Which entities of these types does the text name: {schema}? Answer with JSON."


class BatchTiming(NamedTuple):
    """Measurements of one contender for concurrent requests."""

    seconds: float
    tokens: int
    latencies: list[float]  # seconds
    api_cpu: float  # CPU seconds of the API process for all requests


Contender = Callable[[list[str]], BatchTiming]  # processes a batch of texts


def make_checkpoint(folder: Path, hidden_size: int, layers: int) -> Path:
    """Make a random LLaMA with a template, extraction.json and a tokenizer trained on Python's standard library."""

    def run(script: str, *options: object) -> None:
        command = [sys.executable, REPOSITORY / script, *options]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)

    texts, tokenizer, model = folder / "texts.txt", folder / "tokenizer", folder / "model"
    sources = sorted(Path(os.__file__).parent.glob("*.py"))[:120]
    texts.write_text("\n".join(path.read_text(encoding="utf-8") for path in sources), encoding="utf-8")
    run("examples/make_demo.py", "tokenizer", "--input", texts, "--output_dir", tokenizer, "--vocab_size", 8000)
    run("tools/build_tokenizer.py", "--tokenizer_model", tokenizer / "tokenizer.model", "--output_dir", tokenizer)
    run(
        "examples/make_demo.py", "model", "--tokenizer_path", tokenizer, "--output_dir", model,
        "--hidden_size", hidden_size, "--num_hidden_layers", layers, "--num_attention_heads", hidden_size // 64,
        "--intermediate_size", hidden_size * 8 // 3 // 64 * 64, "--max_position_embeddings", 1024,
    )  # fmt: skip
    template = REPOSITORY / "finetune/templates/alpaca.jinja"
    (model / "chat_template.jinja").write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    (model / "extraction.json").write_text(json.dumps({"tasks": {"ner": {"en": {"instruction": WORDING}}}}))
    return model


def prompts(count: int, draw: random.Random) -> list[str]:
    """Return different texts of fifty random words."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    return [" ".join("".join(draw.choices(syllables, k=2)) for _ in range(50)) for _ in range(count)]


def cpu_seconds(process: int) -> float:
    """Return the CPU time of all threads of another process (clock_getcpuclockid(3) on Linux)."""
    return time.clock_gettime((~process << 3) | 2)


class ConcurrentClient:
    """Sends batches of concurrent requests to a server that started_server runs, over persistent connections."""

    def __init__(self, socket_file: str) -> None:
        processes = [each for each in psutil.Process().children(True) if "launch_vllm.py" in " ".join(each.cmdline())]
        self.api_process = max(process.pid for process in processes)  # the launcher's child serves HTTP
        self.loop = asyncio.new_event_loop()

        async def connect() -> aiohttp.ClientSession:
            connector = aiohttp.UnixConnector(socket_file, limit=0)
            return aiohttp.ClientSession("http://localhost", connector=connector, timeout=aiohttp.ClientTimeout(600))

        self.session = self.loop.run_until_complete(connect())

    def __call__(self, path: str, bodies: list[dict[str, Any]], tokens_of: Callable[[Any], int]) -> BatchTiming:
        async def request(body: bytes) -> tuple[float, int]:
            began = time.perf_counter()
            async with self.session.post(path, data=body, headers={"Content-Type": "application/json"}) as answer:
                content = await answer.read()
                took = time.perf_counter() - began
                if answer.status != 200:
                    raise ValueError(f"{path} answered {answer.status}: {content[:300]!r}")
                return took, tokens_of(json.loads(content))

        async def all_at_once(encoded: list[bytes]) -> list[tuple[float, int]]:
            return await asyncio.gather(*map(request, encoded))

        encoded = [json.dumps(body).encode() for body in bodies]
        cpu, began = cpu_seconds(self.api_process), time.perf_counter()
        answers = self.loop.run_until_complete(all_at_once(encoded))
        seconds = time.perf_counter() - began
        latencies, tokens = zip(*answers, strict=True)
        return BatchTiming(seconds, sum(tokens), list(latencies), cpu_seconds(self.api_process) - cpu)

    def close(self) -> None:
        self.loop.run_until_complete(self.session.close())
        self.loop.close()


def contenders(model: Path, client: ConcurrentClient, engine: Any, tokens: int) -> dict[str, Contender]:
    """Return the contenders by name."""
    from vllm import SamplingParams

    template = (model / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer = engine.get_tokenizer()
    plain = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}

    def whole_prompt(text: str) -> str:
        message = {"role": "user", "content": text, "input": ""}
        rendered = tokenizer.apply_chat_template([message], chat_template=template, tokenize=False)
        return rendered.removeprefix(tokenizer.bos_token)

    def engine_only(texts: list[str]) -> BatchTiming:
        params, whole_prompts = SamplingParams(**plain), [whole_prompt(text) for text in texts]
        began = time.perf_counter()
        done = engine.generate(whole_prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        return BatchTiming(seconds, sum(len(each.outputs[0].token_ids) for each in done), [seconds] * len(texts), 0)

    def completions(texts: list[str]) -> BatchTiming:
        bodies = [{"prompt": whole_prompt(text)} | plain for text in texts]
        return client("/v1/completions", bodies, lambda answer: answer["usage"]["completion_tokens"])

    def tokens_of(answer: dict[str, Any]) -> int:
        if answer.get("windows", 1) != 1:
            raise ValueError("a text is longer than a window, so /extract and /generate would do unequal work")
        return answer["num_output_tokens_cf"]

    def generate(texts: list[str]) -> BatchTiming:
        return client("/generate", [{"instruction": text, "parameters": plain} for text in texts], tokens_of)

    def free(texts: list[str]) -> BatchTiming:
        fields = {"instruction": WORDING.replace("{schema}", ", ".join(SCHEMA)), "parameters": plain}
        return client("/generate", [fields | {"input": text} for text in texts], tokens_of)

    def extract(texts: list[str]) -> BatchTiming:
        fields = {"task": "ner", "schema": SCHEMA, "language": "en", "max_tokens": tokens, "window_tokens": 300}
        return client("/extract", [fields | {"text": text} for text in texts], tokens_of)

    return {"engine": engine_only, "completions": completions, "generate": generate, "free": free, "extract": extract}


def one_round(
    number: int, run: dict[str, Contender], levels: list[int], min_requests: int
) -> dict[tuple[int, str], BatchTiming]:
    """Time the contenders of each concurrency, with at least `min_requests` requests each."""
    draw = random.Random(number)
    found = {}
    engine_was_last = None
    for level in levels:
        names = [name for name in run if level == max(levels) or name not in ("free", "extract")]
        texts = [prompts(level, draw) for _ in range(max(1, -(-min_requests // level)))]
        for name in rotated(names, number):
            if (name == "engine") != engine_was_last:
                time.sleep(IDLE_SECONDS)
            engine_was_last = name == "engine"
            timings = [run[name](each) for each in texts]
            found[level, name] = BatchTiming(
                sum(timing.seconds for timing in timings), sum(timing.tokens for timing in timings),
                [took for timing in timings for took in timing.latencies], sum(timing.api_cpu for timing in timings),
            )  # fmt: skip
    return found


def figures(rounds: list[dict[tuple[int, str], BatchTiming]], levels: list[int]) -> dict[str, Any]:
    """Return the medians and ratios of the last output line (see the module docstring)."""
    pairs = [("generate", "completions"), ("generate", "engine"), ("completions", "engine"), ("extract", "free")]
    result: dict[str, Any] = {"tokens_per_s": {}, "p50_ms": {}, "p99_ms": {}, "ratio": {}}
    for level in levels:
        names = [name for at, name in rounds[0] if at == level]
        rates = {name: [done[level, name].tokens / done[level, name].seconds for done in rounds] for name in names}
        result["tokens_per_s"][level] = {name: round(median(values), 1) for name, values in rates.items()}
        latencies = {name: sorted(took for done in rounds for took in done[level, name].latencies) for name in names}
        for key, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
            result[key][level] = {
                name: round(1e3 * each[int(share * (len(each) - 1))], 1) for name, each in latencies.items()
            }
        result["ratio"][level] = {
            f"{one}/{other}": spread([a / b for a, b in zip(rates[one], rates[other], strict=True)])
            for one, other in pairs if {one, other} <= set(names)
        }  # fmt: skip
    timings = {name: [done[level, name] for done in rounds] for level, name in rounds[0] if level == max(levels)}
    cpu = {name: [1e3 * one.api_cpu / len(one.latencies) for one in each] for name, each in timings.items()}
    result["api_cpu_ms"] = {name: round(median(values), 3) for name, values in cpu.items() if name != "engine"}
    extra = [generate - plain for generate, plain in zip(cpu["generate"], cpu["completions"], strict=True)]
    return result | {"api_cpu_extra_ms": spread(extra)}


def main(
    model: str = "",
    rounds: int = 20,
    concurrency: str = "1,8,64",
    tokens: int = 32,
    least: int = 8,
    hidden_size: int = 256,
    layers: int = 4,
    dtype: str = "",
) -> None:
    """Send batches of requests to the engine and to a server in turn, and compare.

    Args:
        model: a tuned checkpoint folder; default: a random LLaMA.
        rounds: measured rounds; one more round warms up.
        concurrency: concurrent requests; one number or several, separated by commas.
        tokens: new tokens of each response.
        least: minimum number of requests per contender, concurrency and round.
        hidden_size: width of the random model, a multiple of 64.
        layers: number of layers of the random model.
        dtype: vLLM's --dtype; default: the checkpoint's.
    """
    levels = sorted(map(int, concurrency.split(",")))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(model) if model else make_checkpoint(Path(scratch), hidden_size, layers)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        dtype = dtype or str(config.get("dtype") or config.get("torch_dtype") or "auto")
        settings = {"dtype": dtype, "max_num_seqs": max(levels), "max_num_batched_tokens": 8192, "max_model_len": 1024}
        from vllm import LLM

        engine = LLM(str(folder), enforce_eager=True, enable_prefix_caching=False, **settings)  # type: ignore[arg-type]
        options = [str(part) for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
        options += ["--enforce-eager", "--no-enable-prefix-caching"]
        with started_server(str(folder), "", options) as socket_file:
            client = ConcurrentClient(socket_file)
            functions = contenders(folder, client, engine, tokens)
            done = []
            for number in range(rounds + 1):
                done.append(one_round(number, functions, levels, least))
                print(f"round {number} of {rounds}", file=sys.stderr)
            client.close()
        engine.llm_engine.engine_core.shutdown(timeout=10)
    result = figures(done[1:], levels)
    about = {"rounds": rounds, "tokens": tokens, "model": model or f"random, {hidden_size} wide, {layers} layers",
             "cores": len(os.sched_getaffinity(0))}  # fmt: skip
    print(json.dumps(about | result))


if __name__ == "__main__":
    run(main)
