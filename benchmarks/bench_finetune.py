"""Compare the speed of finetune.py, the published script and TRL: a small LLaMA, LoRA, on the CPU.

    python benchmarks/bench_finetune.py
    python benchmarks/bench_finetune.py --hidden_size 512 --steps 2 --pack_length 2048 --rounds 5
    python benchmarks/bench_finetune.py --base checkpoints/base --rows train.jsonl --bf16 --steps 2 --rounds 1 \\
        --minutes 10 --test test.jsonl --learning_rate 1e-3 --trl_python trl/bin/python

Each contender (finetune_contenders.py) is a process that trains one epoch of the same examples from the same weights
with the same LoRA, in one thread and float32, with about the same number of examples per step. The first --warm_up
steps are not counted.

- published, after alpaca-lora: examples are tokenised one by one and padded to the longest of their micro batch and a
  multiple of 8; plain Trainer, random order, logits of every position.
- trl: SFTTrainer, best-fit packing, loss on completions only, one packed sequence of --pack_length tokens per forward
  pass (512 was faster than 1024 and 2048 with --hidden_size 256 --vocab_size 4000), gradient checkpointing off as in
  the other contenders (TRL's default is on). On a CPU it uses sdpa with a dense mask from position_ids and computes the
  logits of every position (with Triton, of supervised positions only). It is measured only with --trl_python, the
  Python of an environment with trl==1.16.0 and this environment's torch, transformers, peft and datasets.
- ours: finetune.py's trainer; unshared: the same without shared prefixes.

The examples are made from CrossNER in ../shared/data/crossner or, if that is missing, from the demo world of
examples/make_demo.py. The default model is tiny and has LLaMA-2's vocabulary. The output matrix takes four fifths of
its multiplications with weights and 2 % in LLaMA-2 7B, so the gain from fewer logits is smaller for larger models; the
gain from shared prefixes is not. The result is JSON; values are medians over the rounds:

- examples_per_cpu_s, supervised_tokens_per_cpu_s: {contender: examples, or tokens with a label, per CPU second};
- padding: {contender: share of positions that are padding};
- ours_over: {contender: {examples, supervised_tokens: [median of ours / theirs, minimum, maximum over the rounds]}};
- tokenising: {published, ours: rows per CPU second of datasets.map row by row, and of our encoder; ratio}.

With --base, the contenders tune this checkpoint with the prompts of templates/alpaca.jinja; with --rows, on the rows of
this file. With --minutes and --test, each contender also trains from the start for about this time (CPU minutes, by the
speed of the last round, with a learning rate that decreases to 0), and the extraction answers of its model to the test
rows are scored:

- equal_minutes: {contender: steps, examples, cpu_s of training; entity and triple: F1 and its interval; parsed}.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from finetune_contenders import SAVED, TRAINERS, Row, Settings
from measurements import DATA, REPOSITORY, read_jsonl, spread

LLAMA = DATA / "llama/tokenizer.model"
COMPARED = ("published", "trl", "ours")  # by F1 in equal minutes
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}


def crossner_rows() -> list[Row]:
    """Return every sentence as an instruction row whose answer is a JSON object {type: [names]}."""
    rows = []
    for file in sorted([*DATA.glob("crossner/*/train.json"), *DATA.glob("crossner/*/test.json")]):
        types = ", ".join(json.loads((file.parent / "class.json").read_text(encoding="utf-8")))
        instruction = f"Find the entities of these types: {types}. Answer with a JSON object from types to names."
        for sentence in json.loads(file.read_text(encoding="utf-8")):
            names: dict[str, list[str]] = {}
            for entity in sentence["entity_list"]:
                names.setdefault(entity["type"], []).append(entity["name"])
            output = json.dumps(names, ensure_ascii=False)
            rows.append({"instruction": instruction, "input": sentence["sentence"], "output": output})
    return rows


def training_rows(scratch: Path, settings: Settings, rows_file: str = "") -> list[Row]:
    """Return the rows of a file in random order, or as many rows of CrossNER or the demo world as the steps need."""
    from demo_world import world_builder

    count = settings["batch"] * (settings["warm_up"] + settings["steps"])
    rows = read_jsonl(Path(rows_file)) if rows_file else crossner_rows()
    if not rows:
        world_builder.make_world(str(scratch / "world"), documents_per_language=10, rows=count + 100)
        rows = read_jsonl(scratch / "world/train.jsonl")
    if len(rows) < count:
        raise ValueError(f"{count} rows are needed, but there are {len(rows)}; lower --steps, --warm_up or --batch")
    return random.Random(0).sample(rows, len(rows) if rows_file else count)


def prepare(scratch: Path, settings: Settings, rows: list[Row]) -> None:
    """Write rows.jsonl, settings.json and base/chat_template.jinja to scratch.

    settings.json also has the published script's prompt for a row with an input, as a Python format string.
    """
    from jinja2 import Environment

    (scratch / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    template = (REPOSITORY / "finetune/templates/alpaca.jinja").read_text(encoding="utf-8")
    (scratch / "base/chat_template.jinja").write_text(template, encoding="utf-8")
    question = {"role": "user", "content": "{instruction}", "input": "{input}"}
    prompt = Environment().from_string(template).render(messages=[question], bos_token="", eos_token="")
    (scratch / "settings.json").write_text(json.dumps(settings | {"prompt": prompt}))


def make_base(scratch: Path, rows: list[Row], vocab_size: int, **shape: int) -> None:
    """Write a random LLaMA to scratch/base.

    vocab_size: pieces of a tokenizer trained on the rows; 0: LLaMA-2's tokenizer, if present.
    """
    import build_tokenizer
    from demo_world import tiny_llama

    words, pieces = str(scratch / "words"), LLAMA
    if vocab_size or not LLAMA.is_file():
        texts, pieces = scratch / "texts.txt", scratch / "words/tokenizer.model"
        texts.write_text("\n".join(text for row in rows for text in row.values()), encoding="utf-8")
        tiny_llama.train_tokenizer([str(texts)], words, vocab_size or 4000)
    build_tokenizer.main(str(pieces), words)
    tiny_llama.make_model(words, str(scratch / "base"), **shape)


def link_base(scratch: Path, base: str) -> None:
    """Link the files of a checkpoint, except its chat template, into scratch/base."""
    (scratch / "base").mkdir()
    for file in Path(base).iterdir():
        if file.is_file() and file.name != "chat_template.jinja":
            (scratch / "base" / file.name).symlink_to(file.resolve())


def run_contender(name: str, scratch: Path, python: str = sys.executable) -> dict[str, Any]:
    """Run a contender in its own process with one thread; return its measurements."""
    command = [python, str(REPOSITORY / "benchmarks/finetune_contenders.py"), name, str(scratch)]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def f1_in_equal_minutes(
    name: str, scratch: Path, measured: dict[str, Any], minutes: float, test: Path, python: str
) -> dict[str, Any]:
    """Train a contender for about `minutes` CPU minutes; return its steps, examples and F1 on the test rows.

    measured: the result of a measured round, which gives the speed.
    """
    settings = json.loads((scratch / "settings.json").read_text(encoding="utf-8"))
    seconds_a_step = measured["cpu_s"] / settings["steps"]
    steps = max(2, round(60 * minutes / seconds_a_step)) - settings["warm_up"]
    longer = settings | {"steps": steps, "save": True}
    (scratch / "settings.json").write_text(json.dumps(longer))
    try:
        trained = run_contender(name, scratch, python)
    finally:
        (scratch / "settings.json").write_text(json.dumps(settings))
    answers, scores = scratch / f"answers-{name}.jsonl", scratch / f"scores-{name}.json"
    finetune = [sys.executable, str(REPOSITORY / "finetune")]
    run = ["--base_model", scratch / "base", "--lora_weights", scratch / SAVED.format(name), "--data_path", test]
    more = ["--output", answers, "--max_new_tokens", 160, *(["--bf16"] if settings["bf16"] else [])]
    for command in (["ie_run.py", *run, *more], ["ie_eval.py", "--predictions", answers, "--output", scores]):
        words = [finetune[0], f"{finetune[1]}/{command[0]}", *map(str, command[1:])]
        subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ | ONE_THREAD)
    found = json.loads(scores.read_text(encoding="utf-8"))
    figures = {task: {key: found[task][key] for key in ("f1", "f1_interval")} for task in ("entity", "triple")}
    counts = {"steps": steps + settings["warm_up"], "examples": trained["examples"], "cpu_s": trained["cpu_s"]}
    return counts | figures | {"parsed": found["parsed"]}


def summary(rounds: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Return medians over the rounds, and ratios within each round; the module docstring describes the keys."""

    def rates(kind: str, name: str) -> list[float]:
        return [measured[name][kind] / measured[name]["cpu_s"] for measured in rounds]

    def ratio(kind: str, name: str) -> list[float]:
        return spread([ours / other for ours, other in zip(rates(kind, "ours"), rates(kind, name), strict=True)], 3)

    kinds, last = ("examples", "supervised_tokens"), rounds[-1]
    result: dict[str, Any] = {
        f"{kind}_per_cpu_s": {name: round(median(rates(kind, name)), 2) for name in names} for kind in kinds
    }
    result["padding"] = {name: round(1 - last[name]["tokens"] / last[name]["positions"], 4) for name in names}
    result["ours_over"] = {name: {kind: ratio(kind, name) for kind in kinds} for name in names if name != "ours"}
    speeds = [measured["tokenising"] for measured in rounds]
    result["tokenising"] = {name: round(median(speed[name] for speed in speeds)) for name in ("published", "ours")}
    result["tokenising"]["ratio"] = round(median(speed["ours"] / speed["published"] for speed in speeds), 2)
    return result


def main(
    rounds: int = 3,
    steps: int = 6,
    warm_up: int = 1,
    batch: int = 32,
    micro: int = 4,
    cutoff: int = 512,
    pack_length: int = 512,
    hidden_size: int = 128,
    layers: int = 4,
    vocab_size: int = 0,
    trl_python: str = "",
    base: str = "",
    rows: str = "",
    learning_rate: float = 3e-4,
    bf16: bool = False,
    minutes: float = 0,
    test: str = "",
) -> None:
    """Train with every contender in every round. batch: examples per step; micro: examples per forward pass."""
    if (minutes > 0) != bool(test):
        raise ValueError("--minutes and --test are given together: the time of training, and the rows to score")
    if min(rounds, steps, warm_up, micro, layers) < 1 or batch % micro or hidden_size % 64:
        raise ValueError(
            "--rounds, --steps, --warm_up, --micro and --layers must be at least 1, --batch a multiple of --micro, and "
            "--hidden_size a multiple of 64"
        )
    names = [name for name in TRAINERS if trl_python or name != "trl"]
    settings = {
        "batch": batch, "micro": micro, "steps": steps, "warm_up": warm_up, "cutoff": cutoff,
        "pack_length": pack_length, "learning_rate": learning_rate, "bf16": bf16, "save": False,
    }  # fmt: skip
    shape = {
        "hidden_size": hidden_size, "intermediate_size": hidden_size * 11 // 4, "num_hidden_layers": layers,
        "num_attention_heads": hidden_size // 64, "max_position_embeddings": max(cutoff, pack_length),
    }  # fmt: skip
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-finetune-") as folder:
        training = training_rows(Path(folder), settings, rows)
        if base:
            link_base(Path(folder), base)
        else:
            make_base(Path(folder), training, vocab_size, **shape)
        prepare(Path(folder), settings, training)
        for number in range(rounds):
            print(f"round {number + 1}", flush=True)
            results.append({"tokenising": run_contender("tokenising", Path(folder))})
            for name in names if number % 2 == 0 else reversed(names):
                python = trl_python if name == "trl" else sys.executable
                results[-1][name] = run_contender(name, Path(folder), python)
                print(f"  {name}: {results[-1][name]}", flush=True)
        result = summary(results, names)
        for name in names if minutes else ():
            if name in COMPARED:
                python, last = trl_python if name == "trl" else sys.executable, results[-1][name]
                figures = f1_in_equal_minutes(name, Path(folder), last, minutes, Path(test).resolve(), python)
                result.setdefault("equal_minutes", {})[name] = figures
                print(f"  {name}, {minutes} minutes: {figures}", flush=True)
    print(json.dumps(result | settings | {"rounds": rounds}, indent=2))


if __name__ == "__main__":
    from command_line.fire_commands import run

    run(main)
