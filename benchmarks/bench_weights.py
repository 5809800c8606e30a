"""Diff, recovery and merging of tools/ against the published script, peft and a plain sum.

    python benchmarks/bench_weights.py
    python benchmarks/bench_weights.py --size 7b --contenders "" --rounds 1 --folder /data/scratch

A random float16 LLaMA of --size (tiny, test, 1b, 7b) is written to --folder: a base, a tuned model whose weights differ
by about 0.1 %, their additive diff, and a LoRA adapter of --rank on every projection. In each of the --rounds, every
command and every contender (weights_contenders.py) then runs once in its own process, one after the other, on inputs
that were dropped from the page cache; outputs are deleted.

Needs disk space for five models (16 GB with 1b; 54 GB with 7b without contenders) and memory for one. The last line is
JSON; figures are medians over the rounds:

- seconds, cpu_s, anonymous_mib, resident_mib: {command: wall-clock time; CPU time; peaks of anonymous and of resident
  memory, sampled every 20 ms; resident memory includes mapped files};
- ratios: {recover_over_plain_add, published_over_recover, peft_over_merge: ratio of seconds within a round};
- diff_share: the exact diff's size divided by the model's; merged_diff_share: the same for the diff of base and merged
  model, made with --adapter.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import psutil
from measurements import REPOSITORY, run_measured

SIZES = {  # hidden, intermediate, layers, heads, vocabulary
    "tiny": (256, 704, 4, 4, 4000),
    "test": (2048, 5632, 2, 16, 2000),
    "1b": (2048, 5632, 20, 16, 32000),
    "7b": (4096, 11008, 32, 32, 32000),
}
COMMANDS = {  # arguments; the last word is the output folder
    "make_diff": "make_diff --path_raw base --path_tuned tuned --path_diff diff",
    "plain_add": "plain_add base additive sum",
    "recover": "recover --path_raw base --path_diff diff --path_tuned recovered",
    "published_recover": "published_recover base additive sum",
    "peft_merge": "peft_merge base adapter sum",
    "merge": "merge --path_zhixi base --path_lora adapter --path_sfted merged",
    "make_diff_adapter": "make_diff --path_raw base --path_tuned merged --adapter adapter --path_diff merged_diff",
}
CONTENDERS = ("plain_add", "published_recover", "peft_merge")
RATIOS = {
    "recover_over_plain_add": ("recover", "plain_add"),
    "published_over_recover": ("published_recover", "recover"),
    "peft_over_merge": ("peft_merge", "merge"),
}


def make_models(folder: Path, size: str, rank: int, additive: bool) -> None:
    """Write the folders base, tuned, adapter and, if `additive`, additive, unless an earlier run wrote them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors import safe_open
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, LlamaConfig

    if all((folder / name).is_dir() for name in (("additive", "adapter") if additive else ("adapter",))):
        return  # the adapter is written last
    torch.manual_seed(0)
    hidden, intermediate, layers, heads, vocabulary = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        vocab_size=vocabulary, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    parameters = dict(model.named_parameters())

    def save(name: str) -> None:
        model.save_pretrained(folder / name, max_shard_size="5GB")
        Tokenizer(models.BPE()).save(str(folder / name / "tokenizer.json"))

    save("base")
    with torch.no_grad():
        for values in parameters.values():
            values.copy_(values.float() * (1 + 1e-3 * torch.randn(values.shape)))
        save("tuned")
        if additive:
            for path in (folder / "base").glob("*.safetensors"):
                with safe_open(path, "pt") as base:
                    for name in base.keys():  # noqa: SIM118 (not a dict)
                        parameters[name].sub_(base.get_tensor(name))
            save("additive")
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(str(folder / "adapter"))


class Usage(NamedTuple):
    """Resources that a command used."""

    seconds: float
    cpu_s: float
    anonymous_mib: float
    resident_mib: float


def run_command(name: str, folder: Path) -> Usage:
    """Run a command of COMMANDS in a folder whose files were dropped from the page cache."""
    script = "benchmarks/weights_contenders.py" if name in CONTENDERS else "tools/weight_diff.py"
    arguments = COMMANDS[name].split()
    shutil.rmtree(folder / arguments[-1], ignore_errors=True)
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def anonymous_and_resident(process: psutil.Process) -> list[int]:
        memory = process.memory_info()
        return [memory.rss - memory.shared, memory.rss]

    command = [sys.executable, REPOSITORY / script, *arguments]
    seconds, cpu, peaks = run_measured(command, folder, 0.02, anonymous_and_resident)
    return Usage(seconds, cpu, *(peak / 2**20 for peak in peaks))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def one_round(folder: Path, contenders: list[str]) -> tuple[dict[str, Usage], dict[str, float]]:
    """Run every command once; return {command: usage} and {name: size of a diff divided by the model's}."""
    usage = {}
    for name in COMMANDS:
        if name not in CONTENDERS or name in contenders:
            usage[name] = run_command(name, folder)
            print(f"  {name:18} {usage[name].seconds:7.1f} s", file=sys.stderr, flush=True)
    base = size_of(folder / "base")
    shares = {f"{name}_share": size_of(folder / name) / base for name in ("diff", "merged_diff")}
    for target in {COMMANDS[name].split()[-1] for name in usage}:
        shutil.rmtree(folder / target)
    return usage, shares


def main(
    size: Literal["tiny", "test", "1b", "7b"] = "1b",
    rounds: int = 3,
    contenders: list[str] | None = None,
    folder: str = "",
    rank: int = 16,
) -> None:
    """Build the models, run the rounds, print the table and the JSON line.

    Args:
        size: tiny, test, 1b or 7b.
        rounds: number of rounds.
        contenders: any of plain_add, published_recover and peft_merge, separated by commas; default: all; "": none.
        folder: a folder on the measured disk, kept for the next run; default: runs/bench_weights, deleted at the end.
        rank: the adapter's rank.
    """
    chosen = list(CONTENDERS) if contenders is None else contenders
    scratch = Path(folder or "runs/bench_weights").absolute()
    make_models(scratch, size, rank, additive=bool({"plain_add", "published_recover"} & set(chosen)))
    results = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        results.append(one_round(scratch, chosen))
    if not folder:
        shutil.rmtree(scratch)
    print_results(results, {"size": size, "rounds": rounds, "rank": rank})


def print_results(results: list[tuple[dict[str, Usage], dict[str, float]]], settings: dict[str, Any]) -> None:
    """Print a table of the medians and, as the last line, the JSON object of the module's docstring."""
    commands, result = list(results[0][0]), dict(settings)
    for field in Usage._fields:
        result[field] = {
            name: round(median(getattr(usage[name], field) for usage, _ in results), 3) for name in commands
        }
    result["ratios"] = {
        name: round(median(usage[one].seconds / usage[other].seconds for usage, _ in results), 3)
        for name, (one, other) in RATIOS.items()
        if {one, other} <= set(commands)
    }
    result |= {name: round(median(shares[name] for _, shares in results), 5) for name in results[0][1]}
    print(f"{'':18}" + "".join(f"{field:>15}" for field in Usage._fields))
    for name in commands:
        print(f"{name:18}" + "".join(f"{result[field][name]:15.1f}" for field in Usage._fields))
    print(json.dumps(result))


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY / "tools"))
    from command_line.fire_commands import run

    run(main)
