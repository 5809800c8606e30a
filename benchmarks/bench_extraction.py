"""F1 of extraction that this repository's commands reach with a base model on a public data set.

    python benchmarks/bench_extraction.py --base checkpoints/base --data conll04 --scratch runs/extraction
    python benchmarks/bench_extraction.py --base B --data wnut17 --systems zero_shot,lora --scratch S --seeds 3 \\
        --minutes 60 --output wnut17.json -- --lora_r 32 --cutoff_len 512

Data sets (../shared/data; extraction_data.py): conll04 (entities and relations), wnut17 and weibo (Chinese) have a
training set, and are tested on their development set. crossner-ai, -music and -literature are tested on their test set;
their training set has about 100 sentences, and tuning also uses all sentences of the other two domains. Test sentences
are removed from the training data. The systems:

- dictionary: names of the training set with their most frequent type, longest match at word boundaries (in Chinese
  between characters); no relations;
- zero_shot: the base, with the instruction of ie_build.py and the base's own chat template;
- three_shot: the same after three random training sentences with their answers;
- lora, full: the base tuned with finetune.py for about --minutes on examples with random orders of the types. Options
  of finetune.py follow after --; with --max_steps among them, --minutes has no effect.

Each seed is another run of three_shot, lora and full. zero_shot, lora and full also answer up to 100 test sentences,
each in --orders random orders of the types, and the whole test set under the grammar of /extract (inference/batch.py,
which needs vLLM).

The commands run one after the other. Their results and logs are in --scratch, where the same command resumes. A table
is printed, and JSON is written to --output: {settings, machine, systems: {system: {ner, re, runs}}}. runs has the
figures of each seed and of its training. ner and re have the means over the seeds of f1, f1_interval (bounds),
precision, recall, parsed, stopped and not_in_text (all as in ie_eval.py), f1_lenient (only the first JSON object of an
answer), predicted (number of items) and seconds_a_row (of generation); f1_std, the standard deviation over the seeds;
orders, mean and standard deviation of F1 over the orders; and grammar, the same figures under the grammar, where every
item counts once.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from extraction_data import DATA_SETS, check_files, prepare
from extraction_systems import (
    KINDS,
    SEEDED,
    SYSTEMS,
    Benchmark,
    computes_in_bf16,
    grammar_available,
    run_system,
)
from measurements import REPOSITORY

sys.path.append(str(REPOSITORY / "finetune"))
COLUMNS = ("", "F1", "95% interval", "lenient", "parsed", "stopped", "not_in_text", "s a row", "items",
           "F1 over orders", "F1 grammar", "items grammar")  # fmt: skip


def mean_figures(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the means of the figures of several seeds, and `f1_std`, 0 for one seed.

    Figures may be None (not measured), lists (mean of each element) or nested dictionaries.
    """
    result: dict[str, Any] = {}
    for key, first in runs[0].items():
        values = [run[key] for run in runs]
        if isinstance(first, dict):
            result[key] = mean_figures(values)
        elif isinstance(first, list):
            result[key] = [mean(each) for each in zip(*values, strict=True)]
        else:
            result[key] = None if first is None else mean(values)
    if "f1" in result:
        result["f1_std"] = stdev(run["f1"] for run in runs) if len(runs) > 1 else 0.0
    return result


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean figures of each task, and the runs of a system."""
    return {task: mean_figures([run[task] for run in runs]) for task in KINDS if task in runs[0]} | {"runs": runs}


def format_number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def table_row(name: str, task: str, figures: dict[str, Any], seeds: int) -> list[str]:
    """Return the cells of COLUMNS for a system and a task."""
    deviation = f" ± {figures['f1_std']:.4f}" if seeds > 1 else ""
    orders, grammar = figures.get("orders"), figures.get("grammar") or {}
    return [
        f"{name} {task}",
        format_number(figures["f1"]) + deviation,
        "-".join(map(format_number, figures["f1_interval"])),
        format_number(figures["f1_lenient"]),
        *(format_number(figures[key], 3) for key in ("parsed", "stopped", "not_in_text")),
        format_number(figures["seconds_a_row"], 2),
        format_number(figures["predicted"], 0),
        f"{orders['f1_mean']:.4f} ± {orders['f1_std']:.4f}" if orders else "",
        format_number(grammar.get("f1")),
        format_number(grammar.get("predicted"), 0),
    ]


def results_table(systems: dict[str, Any]) -> str:
    """Return the figures of all systems and tasks as a Markdown table."""
    rows = [
        table_row(name, task, result[task], len(result["runs"]))
        for name, result in systems.items()
        for task in KINDS
        if task in result
    ]
    lines = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, str]:
    """Return the commit of the repository, the processor and, if there is one, the GPU."""
    import torch

    git = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = {"commit": commit, "processor": f"{len(names)} cores {names[0]}" if names else ""}
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings to a folder; raise ValueError if the folder has results with other settings."""
    file, text = folder / "settings.json", json.dumps(settings, indent=2) + "\n"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    old = json.loads(file.read_text(encoding="utf-8"))
    if other := [key for key in settings if old.get(key) != settings[key]]:
        raise ValueError(f"{folder} has results with other settings ({', '.join(other)}); name another --scratch")


def check_options(
    base: str, data: str, systems: Sequence[str], positive: dict[str, float], limit: int, orders: int
) -> None:
    """Raise ValueError or FileNotFoundError for an option that cannot be used."""
    from instruction_data.type_orders import MAX_ORDERS

    for option, names, known in (("data", [data], list(DATA_SETS)), ("systems", systems, list(SYSTEMS))):
        if unknown := next((name for name in names if name not in known), None):
            raise ValueError(f"--{option} {unknown} is unknown; choose from {', '.join(known)}")
    for option, value in positive.items():
        if value <= 0:
            raise ValueError(f"--{option} {value} is too small; it must be above 0")
    if limit < 0:
        raise ValueError(f"--limit {limit} is too small; give a number of test sentences, or 0 for all")
    if orders and not 2 <= orders <= MAX_ORDERS:
        raise ValueError(f"--orders {orders} is out of range; give 2 to {MAX_ORDERS}, or 0 for none")
    if not Path(base, "config.json").is_file():
        raise FileNotFoundError(f"{base} has no config.json; --base takes a checkpoint folder")
    check_files(data)


def main(
    base: str,
    data: str,
    scratch: str,
    systems: tuple[str, ...] = ("dictionary", "zero_shot", "three_shot", "lora"),
    minutes: float = 30,
    seeds: int = 1,
    limit: int = 0,
    orders: int = 5,
    max_new_tokens: int = 512,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    grammar: bool = True,
    output: str = "",
    tuning: str = "",
) -> None:
    """Run the systems on a data set, print a table, and write --output.

    Args:
        base: the checkpoint folder.
        data: conll04, wnut17, weibo, crossner-ai, crossner-music or crossner-literature.
        scratch: a folder for models, predictions and logs; the same command resumes there.
        systems: some of dictionary, zero_shot, three_shot, lora, full.
        minutes: time of a tuning run, without loading.
        seeds: number of runs of three_shot, lora and full.
        limit: number of test sentences, chosen at random; 0: all.
        orders: number of random orders of the types in which test sentences are asked; 0: none.
        max_new_tokens: maximum tokens of an answer.
        precision: bf16 or fp32; auto: bf16 on GPUs and CPUs with instructions for it.
        grammar: also answer the test set with /extract.
        output: a JSON file.
        tuning: options of finetune.py as one string; the same as giving them after --.
    """
    positive = {"minutes": minutes, "seeds": seeds, "max_new_tokens": max_new_tokens}
    check_options(base, data, systems, positive, limit, orders)
    from partial_folders.atomic_outputs import new_file
    from partial_folders.output_paths import check_output

    if output:
        check_output(output, [])
    folder, bf16 = Path(scratch).resolve() / data, computes_in_bf16(precision)
    settings = {
        "base": str(Path(base).resolve()), "data": data, "minutes": minutes, "limit": limit, "orders": orders,
        "max_new_tokens": max_new_tokens, "bf16": bf16, "tuning": tuning,
    }  # fmt: skip
    check_settings(folder, settings)
    bench = Benchmark(
        Path(base).resolve(), data, folder, prepare(data, folder / "data", limit, orders), minutes, max_new_tokens,
        bf16, orders, grammar and grammar_available(), shlex.split(tuning),
    )  # fmt: skip
    results: dict[str, Any] = {}
    for system in systems:
        print(system, flush=True)
        runs = [run_system(bench, system, seed) for seed in range(seeds if system in SEEDED else 1)]
        results[system] = summary(runs)
    print(results_table(results))
    if output:
        result = {"settings": settings | {"seeds": seeds}, "machine": machine(), "systems": results}
        with new_file(output, replace=True) as file:
            file.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from command_line.command_errors import run_command
    from command_line.fire_commands import call

    arguments = sys.argv[1:]
    if "--" in arguments:
        separator = arguments.index("--")
        arguments = [*arguments[:separator], f"--tuning={shlex.join(arguments[separator + 1 :])}"]
    run_command(lambda: call(main, arguments))
