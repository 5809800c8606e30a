"""What our routes cost beside vLLM's own: the raw engine, /v1/completions, /generate and /extract on one checkpoint.

    python benchmarks/bench_serve.py
    python benchmarks/bench_serve.py --hidden_size 1024 --layers 8 --rounds 40 --concurrency 64
    python benchmarks/bench_serve.py --model runs/merged --dtype half --rounds 40                        # one GPU

A volley is as many requests at once as the concurrency says, each with a prompt of its own and --tokens new tokens
(ignore_eos); it lasts until the last answer. In every round each contender fires its volleys, in an order that rotates:

- engine: LLM.generate on the volley's prompts, in this process (vLLM's engine core has its own);
- completions: POST /v1/completions of a server started by inference/launch_vllm.py;
- generate: POST /generate of the same server, the same prompt by way of the chat template;
- free and extract, at the greatest concurrency: /generate with an extraction's instruction, and /extract for the same
  text, which decodes under its grammar.

The engine and the server have the same settings, no prefix caching, and are idle while the other works. The model is a
random LLaMA made here unless --model names a folder. The smaller the model, the more a request's own cost weighs. The
last line is JSON; figures are medians over the rounds:

- tokens_per_s: {concurrency: {contender: new tokens a second}}; p50_ms, p99_ms: the same of a request's latency;
- ratio: {concurrency: {"generate/completions", "generate/engine", "completions/engine", "extract/free": [median, least,
  greatest of the rounds' ratios of tokens a second]}};
- api_cpu_ms: {contender: CPU milliseconds of the API process for a request, at the greatest concurrency}, and
  api_cpu_extra_ms: [median, least, greatest of the rounds' differences between generate and completions].
"""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import fire

REPOSITORY = Path(__file__).resolve().parent.parent
SCHEMA = ["person", "place", "organisation", "work"]
IDLE_SECONDS = 1.1  # where the turn goes from one engine to the other, whose worker looks for work for a second
WORDING = "Which entities of these types does the text name: {schema}? Answer with JSON."


class Volley(NamedTuple):
    """What a contender did with requests that were sent at once."""

    seconds: float
    tokens: int
    latencies: list[float]  # seconds
    api_cpu: float  # seconds of the API process, all requests together


# --- a checkpoint, a server, an engine --------------------------------------------------------------------------------


def make_checkpoint(folder: Path, hidden_size: int, layers: int, vocab_size: int) -> Path:
    """A random LLaMA, its tokenizer trained on Python's standard library, a template and an extraction.json."""

    def run(script: str, *options: object) -> None:
        command = [sys.executable, REPOSITORY / script, *options]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)

    texts, words, model = folder / "texts.txt", folder / "words", folder / "model"
    sources = sorted(Path(os.__file__).parent.glob("*.py"))[:120]
    texts.write_text("\n".join(path.read_text(encoding="utf-8") for path in sources), encoding="utf-8")
    run("examples/make_demo.py", "tokenizer", "--input", texts, "--output_dir", words, "--vocab_size", vocab_size)
    run("tools/build_tokenizer.py", "--tokenizer_model", words / "tokenizer.model", "--output_dir", words)
    run(
        "examples/make_demo.py", "model", "--tokenizer_path", words, "--output_dir", model,
        "--hidden_size", hidden_size, "--num_hidden_layers", layers, "--num_attention_heads", hidden_size // 64,
        "--intermediate_size", hidden_size * 8 // 3 // 64 * 64, "--max_position_embeddings", 1024,
    )  # fmt: skip
    template = REPOSITORY / "finetune/templates/alpaca.jinja"
    (model / "chat_template.jinja").write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    (model / "extraction.json").write_text(json.dumps({"tasks": {"ner": {"en": {"instruction": WORDING}}}}))
    return model


def prompts(count: int, draw: random.Random) -> list[str]:
    """Texts of about fifty words, none like another."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    return [" ".join("".join(draw.choices(syllables, k=2)) for _ in range(50)) for _ in range(count)]


@contextmanager
def server(model: Path, options: list[str], log: Path) -> Iterator[tuple[str, int]]:
    """URL and API process of a server that answers; it is ended afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(REPOSITORY / "inference/launch_vllm.py"), "--model", str(model), "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, *options], stdout=out, stderr=out, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except OSError:
                if process.poll() is not None:
                    raise ValueError(f"the server did not start:\n{log.read_text()[-3000:]}") from None
                time.sleep(0.5)
        yield url, api_process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def api_process(launcher: int) -> int:
    """The process under the launcher that answers HTTP."""
    import psutil

    [api] = (each for each in psutil.Process(launcher).children() if "launch_vllm.py" in " ".join(each.cmdline()))
    return api.pid


def cpu_seconds(process: int) -> float:
    """CPU time of another process so far, all threads, in nanosecond steps (clock_getcpuclockid(3) on Linux)."""
    return time.clock_gettime((~process << 3) | 2)


# --- contenders -------------------------------------------------------------------------------------------------------


class Fire:
    """Sends volleys to a server over connections that stay open."""

    def __init__(self, url: str, api_process: int) -> None:
        import aiohttp

        self.loop = asyncio.new_event_loop()
        self.url, self.api_process = url, api_process

        async def connect() -> Any:
            return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(600))

        self.session = self.loop.run_until_complete(connect())

    def __call__(self, path: str, bodies: list[dict[str, Any]], tokens_of: Callable[[Any], int]) -> Volley:
        async def one(body: bytes) -> tuple[float, int]:
            began = time.perf_counter()
            headers = {"Content-Type": "application/json"}
            async with self.session.post(self.url + path, data=body, headers=headers) as answer:
                content = await answer.read()
                took = time.perf_counter() - began
                if answer.status != 200:
                    raise ValueError(f"{path} answered {answer.status}: {content[:300]!r}")
                return took, tokens_of(json.loads(content))

        async def all_at_once(encoded: list[bytes]) -> list[tuple[float, int]]:
            return await asyncio.gather(*map(one, encoded))

        encoded = [json.dumps(body).encode() for body in bodies]
        cpu, began = cpu_seconds(self.api_process), time.perf_counter()
        answers = self.loop.run_until_complete(all_at_once(encoded))
        seconds = time.perf_counter() - began
        latencies = [took for took, _ in answers]
        return Volley(seconds, sum(n for _, n in answers), latencies, cpu_seconds(self.api_process) - cpu)

    def close(self) -> None:
        self.loop.run_until_complete(self.session.close())
        self.loop.close()


def contenders(model: Path, shots: Fire, engine: Any, tokens: int) -> dict[str, Callable[[list[str]], Volley]]:
    """Contender -> what sends a volley of texts."""
    from vllm import SamplingParams

    template = (model / "chat_template.jinja").read_text(encoding="utf-8")
    words = engine.get_tokenizer()
    plain = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}

    def whole_prompt(text: str) -> str:
        message = {"role": "user", "content": text, "input": ""}
        rendered = words.apply_chat_template([message], chat_template=template, tokenize=False)
        return rendered.removeprefix(words.bos_token)

    def raw(texts: list[str]) -> Volley:
        params = SamplingParams(**plain)
        ready = [whole_prompt(text) for text in texts]
        began = time.perf_counter()
        done = engine.generate(ready, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        return Volley(seconds, sum(len(each.outputs[0].token_ids) for each in done), [seconds] * len(texts), 0)

    def completions(texts: list[str]) -> Volley:
        bodies = [{"prompt": whole_prompt(text)} | plain for text in texts]
        return shots("/v1/completions", bodies, lambda answer: answer["usage"]["completion_tokens"])

    def generate(texts: list[str]) -> Volley:
        bodies = [{"instruction": text, "parameters": plain} for text in texts]
        return shots("/generate", bodies, lambda answer: answer["num_output_tokens_cf"])

    def free(texts: list[str]) -> Volley:
        asked = WORDING.replace("{schema}", ", ".join(SCHEMA))
        bodies = [{"instruction": asked, "input": text, "parameters": plain} for text in texts]
        return shots("/generate", bodies, lambda answer: answer["num_output_tokens_cf"])

    def extract(texts: list[str]) -> Volley:
        bodies = [
            {
                "text": text,
                "task": "ner",
                "schema": SCHEMA,
                "language": "en",
                "max_tokens": tokens,
                "window_tokens": 300,
            }
            for text in texts
        ]

        def tokens_of(answer: dict[str, Any]) -> int:
            if answer["windows"] != 1:
                raise ValueError("a text is longer than a window, so the two would not do the same work")
            return answer["num_output_tokens_cf"]

        return shots("/extract", bodies, tokens_of)

    return {"engine": raw, "completions": completions, "generate": generate, "free": free, "extract": extract}


# --- rounds and figures -----------------------------------------------------------------------------------------------


def one_round(
    number: int, fire_: dict[str, Callable[[list[str]], Volley]], levels: list[int], least: int
) -> dict[tuple[int, str], Volley]:
    """Every contender's volleys at every concurrency; at least `least` requests each."""
    draw = random.Random(number)
    found = {}
    engine_was_last = None
    for level in levels:
        names = [name for name in fire_ if level == max(levels) or name not in ("free", "extract")]
        texts = [prompts(level, draw) for _ in range(max(1, least // level))]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if (name == "engine") != engine_was_last:
                time.sleep(IDLE_SECONDS)
            engine_was_last = name == "engine"
            volleys = [fire_[name](each) for each in texts]
            found[level, name] = Volley(
                sum(v.seconds for v in volleys), sum(v.tokens for v in volleys),
                [took for v in volleys for took in v.latencies], sum(v.api_cpu for v in volleys),
            )  # fmt: skip
    return found


def spread(values: list[float]) -> list[float]:
    return [round(value, 4) for value in (median(values), min(values), max(values))]


def figures(rounds: list[dict[tuple[int, str], Volley]], levels: list[int]) -> dict[str, Any]:
    """The last line's figures; see the head of this file."""
    pairs = [("generate", "completions"), ("generate", "engine"), ("completions", "engine"), ("extract", "free")]
    result: dict[str, Any] = {"tokens_per_s": {}, "p50_ms": {}, "p99_ms": {}, "ratio": {}}

    def rate(done: dict[tuple[int, str], Volley], level: int, name: str) -> float:
        return done[level, name].tokens / done[level, name].seconds

    for level in levels:
        names = [name for at, name in rounds[0] if at == level]
        result["tokens_per_s"][level] = {
            name: round(median(rate(done, level, name) for done in rounds), 1) for name in names
        }
        latencies = {name: sorted(took for done in rounds for took in done[level, name].latencies) for name in names}
        for key, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
            result[key][level] = {
                name: round(1e3 * each[int(share * (len(each) - 1))], 1) for name, each in latencies.items()
            }
        result["ratio"][level] = {
            f"{one}/{other}": spread([rate(done, level, one) / rate(done, level, other) for done in rounds])
            for one, other in pairs if {one, other} <= set(names)
        }  # fmt: skip
    top = max(levels)

    def cpu(done: dict[tuple[int, str], Volley], name: str) -> float:
        return 1e3 * done[top, name].api_cpu / len(done[top, name].latencies)

    served = [name for at, name in rounds[0] if at == top and name != "engine"]
    result["api_cpu_ms"] = {name: round(median(cpu(done, name) for done in rounds), 3) for name in served}
    result["api_cpu_extra_ms"] = spread([cpu(done, "generate") - cpu(done, "completions") for done in rounds])
    return result


def show(result: dict[str, Any]) -> None:
    for level, rates in result["tokens_per_s"].items():
        print(f"\nconcurrency {level:3}   tokens/s    p50 ms    p99 ms")
        for name, value in rates.items():
            print(f"{name:15} {value:12.1f} {result['p50_ms'][level][name]:9.1f} {result['p99_ms'][level][name]:9.1f}")
        for pair, (middle, low, high) in result["ratio"][level].items():
            print(f"{pair:25} {middle:.3f}  ({low:.3f} to {high:.3f})")
    cpu = ", ".join(f"{name} {value:.2f}" for name, value in result["api_cpu_ms"].items())
    middle, low, high = result["api_cpu_extra_ms"]
    print(f"\nCPU of the API process, ms a request: {cpu}")
    print(f"generate beyond completions: {middle:+.3f} ms  ({low:+.3f} to {high:+.3f})")


def main(
    model: str = "",
    rounds: int = 20,
    concurrency: Any = (1, 8, 64),
    tokens: int = 32,
    least: int = 8,
    hidden_size: int = 256,
    layers: int = 4,
    vocab_size: int = 8000,
    dtype: str = "",
    **unknown: object,
) -> None:
    """Fire volleys at the engine and at a server, in turns, and compare.

    Args:
        model: a tuned checkpoint folder; without it a random one is made.
        rounds: how often every contender has its turn; the first round warms up and is not counted.
        concurrency: requests at once, one number or several.
        tokens: new tokens of an answer.
        least: requests of a contender at one concurrency in a round, at least.
        hidden_size: of the random model, a multiple of 64.
        layers: of the random model.
        vocab_size: of the random model.
        dtype: as vLLM's --dtype; without it as the checkpoint has it.
        unknown: nothing; options that do not exist are refused.
    """
    if unknown:
        raise ValueError(f"unknown option --{next(iter(unknown))}; --help lists the options")
    levels = sorted(int(level) for level in (concurrency if isinstance(concurrency, tuple | list) else [concurrency]))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(model) if model else make_checkpoint(Path(scratch), hidden_size, layers, vocab_size)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        dtype = dtype or str(config.get("dtype") or config.get("torch_dtype") or "auto")
        settings = {"dtype": dtype, "max_num_seqs": max(levels), "max_num_batched_tokens": 8192, "max_model_len": 1024}
        from vllm import LLM

        engine = LLM(str(folder), enforce_eager=True, enable_prefix_caching=False, **settings)  # type: ignore[arg-type]
        options = [str(word) for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
        options += ["--enforce-eager", "--no-enable-prefix-caching", "--disable-uvicorn-access-log"]
        with server(folder, options, Path(scratch, "server.log")) as (url, process):
            shots = Fire(url, process)
            volleys = contenders(folder, shots, engine, tokens)
            done = []
            for number in range(rounds + 1):
                done.append(one_round(number, volleys, levels, least))
                print(f"round {number} of {rounds}", file=sys.stderr)
            shots.close()
        engine.llm_engine.engine_core.shutdown(timeout=10)
    result = figures(done[1:], levels)
    show(result)
    about = {"rounds": rounds, "tokens": tokens, "model": model or f"random, {hidden_size} wide, {layers} layers",
             "vllm": version("vllm-cpu") if not model else "", "cores": len(os.sched_getaffinity(0))}  # fmt: skip
    print(json.dumps(about | result))


if __name__ == "__main__":
    try:
        fire.Fire(main, ["--", "--help"] if "--help" in sys.argv else None)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
