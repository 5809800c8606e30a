"""Diff, recovery and merging of tools/ against the published script, peft, a plain sum, and the disk's bandwidth.

    python benchmarks/bench_weights.py
    python benchmarks/bench_weights.py --size 7b --contenders "" --rounds 1 --folder /data/scratch

A synthetic LLaMA of --size (tiny, test, 1b, 7b) in --dtype is streamed to --folder: a base, a tuned model whose weights
differ by about 0.1 %, their additive diff, and a LoRA adapter of --rank on every projection. In each of the --rounds,
every command and every contender (weights_contenders.py) then runs once in its own process, one after the other, on
inputs that were dropped from the page cache; outputs are deleted. Before and after each round the disk is probed with
--probe_gb of random bytes: a write with fsync, and an uncached sequential read.

Needs disk space for five models (16 GB with 1b; 54 GB with 7b without contenders). The last line is JSON; figures are
medians over the rounds:

- seconds, cpu_s, anonymous_mib, resident_mib: {command: wall-clock time; CPU time; peak of RssAnon, sampled every
  20 ms; peak resident set, including mapped files};
- read_gb, written_gb: {command: bytes that the process read from and wrote to the disk, /proc/PID/io};
- disk: {read, write: GB/s of the probes};
- of_disk: {command: (read_gb / read + written_gb / write) / seconds, the used share of the disk's bandwidth};
- ratios: {recover_over_plain_add, published_over_recover, peft_over_merge: ratio of seconds within a round, median};
- diff_share: the exact diff's size divided by the model's; merged_diff_share: the same for the diff of base and merged
  model, made with --adapter.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import fire
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tools"))

from checkpoint_io.bit_patterns import from_float32, to_float32  # noqa: E402
from checkpoint_io.ordered_parallel import in_order  # noqa: E402
from checkpoint_io.tensor_files import write_shards  # noqa: E402
from checkpoint_io.tensors import CHUNK, TORCH_NAME, Spec, Tensor, ranges, read_weights  # noqa: E402

SIZES = {  # hidden, intermediate, layers, heads, vocabulary
    "tiny": (256, 704, 4, 4, 4000),
    "test": (2048, 5632, 2, 16, 2000),
    "1b": (2048, 5632, 20, 16, 32000),
    "7b": (4096, 11008, 32, 32, 32000),
}
OURS = ("make_diff", "recover", "merge", "make_diff_adapter")
CONTENDERS = {"plain_add": "additive", "published_recover": "additive", "peft_merge": "adapter"}
SHARD = 5 * 10**9
INTERVAL = 0.02  # seconds between two samples of a process


# --- a model from nothing ---------------------------------------------------------------------------------------------


def llama(size: str, dtype: str) -> tuple[dict[str, Any], list[Spec]]:
    """Return config.json and the tensor specs of a LLaMA of this size."""
    hidden, inner, layers, heads, rows = SIZES[size]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "dtype": TORCH_NAME[dtype],
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "vocab_size": rows, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }  # fmt: skip
    shapes = {"model.embed_tokens": (rows, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj": (hidden, inner)}
        shapes |= {f"{at}.{name}_layernorm": (hidden,) for name in ("input", "post_attention")}  # type: ignore[dict-item]
    shapes |= {"model.norm": (hidden,), "lm_head": (rows, hidden)}  # type: ignore[dict-item]
    return config, [Spec(f"{name}.weight", dtype, shape) for name, shape in shapes.items()]


def noise(name: str, cut: tuple[int, int], seed: int) -> np.ndarray:
    """Return normally distributed float32 values that depend only on seed, tensor name and start of `cut`."""
    generator = np.random.default_rng([seed, cut[0], *name.encode()])
    return generator.standard_normal(cut[1] - cut[0], dtype=np.float32)


def make_models(folder: Path, size: str, dtype: str, additive: bool) -> None:
    """Write the folders base, tuned and, if `additive`, additive, unless an earlier run wrote them."""
    config, specs = llama(size, dtype)
    made: dict[str, dict[str, Tensor]] = {}

    def content(role: str, spec: Spec, cut: tuple[int, int]) -> np.ndarray:
        if role == "base":
            return from_float32(noise(spec.name, cut, 0) * np.float32(0.02), dtype)
        base = to_float32(made["base"][spec.name].read(*cut), dtype)
        if role == "tuned":
            return from_float32(base * (1 + np.float32(1e-3) * noise(spec.name, cut, 1)), dtype)
        return from_float32(to_float32(made["tuned"][spec.name].read(*cut), dtype) - base, dtype)

    for role in ("base", "tuned", "additive")[: 3 if additive else 2]:
        target = folder / role
        if not (target / "config.json").is_file():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            write_shards(
                target,
                specs,
                lambda s, role=role: in_order(lambda cut: content(role, s, cut), ranges(s.elements, CHUNK)),
                SHARD,
            )
            (target / "tokenizer.json").write_text("{}")
            (target / "config.json").write_text(json.dumps(config))
        made[role] = read_weights(target)


def make_adapter(folder: Path, size: str, dtype: str, rank: int) -> None:
    """Write a LoRA adapter of every projection in peft's format."""
    specs, target = [], folder / "adapter"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for spec in llama(size, dtype)[1]:
        if "_proj" in spec.name:
            stem = f"base_model.model.{spec.name.removesuffix('.weight')}"
            specs.append(Spec(f"{stem}.lora_A.weight", "F32", (rank, spec.shape[1])))
            specs.append(Spec(f"{stem}.lora_B.weight", "F32", (spec.shape[0], rank)))
    write_shards(target, specs, lambda s: [from_float32(noise(s.name, (0, s.elements), 2) * 0.01, "F32")], SHARD)
    (target / "model.safetensors").rename(target / "adapter_model.safetensors")
    projections = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": projections,
    }
    (target / "adapter_config.json").write_text(json.dumps(config))


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass
class Usage:
    """The resources that a process used."""

    seconds: float
    cpu_s: float
    anonymous_mib: float
    resident_mib: float
    read_gb: float
    written_gb: float


def watched(command: list[str], env: dict[str, str] | None = None) -> Usage:
    """Run a command and return its resource usage; RuntimeError with its output if it fails."""
    start, peaks, io = time.perf_counter(), {"RssAnon": 0, "VmHWM": 0}, {"read_bytes": 0, "write_bytes": 0}
    process = subprocess.Popen(
        command, env=os.environ | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        try:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if (key := line.partition(":")[0]) in peaks:  # VmHWM is already a peak and restarts with exec
                    peaks[key] = max(peaks[key] if key == "RssAnon" else 0, int(line.split()[1]))
            lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
        except OSError:
            break
        for key, _, value in (line.partition(": ") for line in lines):
            if key in io:
                io[key] = int(value)
        time.sleep(INTERVAL)
    _, status, used = os.wait4(process.pid, 0)
    output = process.stdout.read() if process.stdout else ""
    if status:
        raise RuntimeError(f"{' '.join(command)} failed\n{output[-3000:]}")
    return Usage(
        time.perf_counter() - start, used.ru_utime + used.ru_stime, peaks["RssAnon"] / 1024,
        peaks["VmHWM"] / 1024, io["read_bytes"] / 1e9, io["write_bytes"] / 1e9,
    )  # fmt: skip


def forget(folders: Iterable[Path]) -> None:
    """Drop the folders' files from the page cache, so that they are read from the disk."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def probe(folder: Path, gigabytes: float) -> tuple[float, float]:
    """Return the GB/s of an uncached sequential read, and of a write with fsync."""
    block, path = np.random.default_rng(0).bytes(1 << 23), folder / "probe"
    count = max(1, int(gigabytes * 1e9) >> 23)
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(block)
        os.fsync(file.fileno())
    written = count * len(block) / 1e9 / (time.perf_counter() - start)
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    start, into = time.perf_counter(), bytearray(1 << 23)
    while os.readv(descriptor, [into]):
        pass
    read = count * len(block) / 1e9 / (time.perf_counter() - start)
    os.close(descriptor)
    path.unlink()
    return read, written


def command_of(role: str, folder: Path) -> tuple[list[str], Path]:
    """Return a role's command line and its output folder."""
    tool, base, tuned = str(REPOSITORY / "tools/weight_diff.py"), f"{folder}/base", f"{folder}/tuned"
    if role in CONTENDERS:
        out = folder / f"out-{role}"
        script = str(REPOSITORY / "benchmarks/weights_contenders.py")
        return [sys.executable, script, role, base, f"{folder}/{CONTENDERS[role]}", str(out)], out
    lines = {
        "make_diff": ["make_diff", "--path_raw", base, "--path_tuned", tuned, "--path_diff", f"{folder}/diff"],
        "recover": ["recover", "--path_raw", base, "--path_diff", f"{folder}/diff", "--path_tuned", f"{folder}/out"],
        "merge": [
            "merge", "--path_zhixi", base, "--path_lora", f"{folder}/adapter", "--path_sfted", f"{folder}/merged",
        ],
        "make_diff_adapter": [
            "make_diff", "--path_raw", base, "--path_tuned", f"{folder}/merged", "--path_diff", f"{folder}/small",
            "--adapter", f"{folder}/adapter",
        ],
    }  # fmt: skip
    outputs = {"make_diff": "diff", "recover": "out", "merge": "merged", "make_diff_adapter": "small"}
    return [sys.executable, tool, *lines[role]], folder / outputs[role]


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def one_round(folder: Path, contenders: list[str], gigabytes: float) -> tuple[dict[str, Usage], dict[str, float]]:
    """Run every role once; return {role: usage}, and the disk's GB/s with the diffs' size shares."""
    before = probe(folder, gigabytes)
    usage, shares = {}, {}
    inputs = [folder / name for name in ("base", "tuned", "additive", "adapter")]
    order = ["make_diff", "plain_add", "recover", "published_recover", "peft_merge", "merge", "make_diff_adapter"]
    for role in (role for role in order if role in OURS or role in contenders):
        command, out = command_of(role, folder)
        shutil.rmtree(out, ignore_errors=True)
        forget(
            [
                *(path for path in inputs if path.is_dir()),
                *(p for p in (folder / "diff", folder / "merged") if p.is_dir()),
            ]
        )
        usage[role] = watched(command)
        print(f"  {role:18} {usage[role].seconds:7.1f} s", file=sys.stderr, flush=True)
        if role.startswith("make_diff"):
            shares["merged_diff_share" if role.endswith("adapter") else "diff_share"] = size_of(out) / size_of(
                folder / "base"
            )
        if role not in ("make_diff", "merge"):
            shutil.rmtree(out)
    for name in ("diff", "merged"):
        shutil.rmtree(folder / name)
    after = probe(folder, gigabytes)
    disk = {kind: (first + second) / 2 for kind, first, second in zip(("read", "write"), before, after, strict=True)}
    return usage, disk | shares


def main(
    size: str = "1b",
    dtype: str = "F16",
    rounds: int = 3,
    contenders: str | tuple[str, ...] = tuple(CONTENDERS),
    folder: str = "",
    rank: int = 16,
    probe_gb: float = 2.0,
) -> None:
    """Build the models, run the rounds, print the table and the JSON line.

    Args:
        size: tiny, test, 1b or 7b.
        dtype: F16 or BF16.
        rounds: number of rounds.
        contenders: any of plain_add, published_recover and peft_merge, separated by commas.
        folder: a folder on the measured disk, kept for the next run; default: runs/bench_weights, deleted at the end.
        rank: the adapter's rank.
        probe_gb: GB that each disk probe writes and reads.
    """
    if size not in SIZES:
        raise SystemExit(f"--size takes {', '.join(SIZES)}, not {size!r}")
    chosen = [name for name in (contenders.split(",") if isinstance(contenders, str) else contenders) if name]
    scratch = Path(folder) if folder else Path.cwd() / "runs/bench_weights"
    make_models(scratch, size, dtype, "additive" in {CONTENDERS[name] for name in chosen})
    make_adapter(scratch, size, dtype, rank)
    results = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        results.append(one_round(scratch, chosen, probe_gb))
    if not folder:
        shutil.rmtree(scratch)
    print_results(results, {"size": size, "dtype": dtype, "rounds": rounds, "rank": rank})


def print_results(results: list[tuple[dict[str, Usage], dict[str, float]]], settings: dict[str, Any]) -> None:
    roles = list(results[0][0])
    middle = {key: median(facts[key] for _, facts in results) for key in results[0][1]}
    line: dict[str, Any] = dict(settings)
    for field in Usage.__dataclass_fields__:
        line[field] = {role: round(median(getattr(usage[role], field) for usage, _ in results), 3) for role in roles}
    line["disk"] = {kind: round(middle.pop(kind), 3) for kind in ("read", "write")}
    line["of_disk"] = {role: round(median(of_disk(u[role], facts) for u, facts in results), 3) for role in roles}
    pairs = {
        "recover_over_plain_add": ("recover", "plain_add"), "published_over_recover": ("published_recover", "recover"),
        "peft_over_merge": ("peft_merge", "merge"),
    }  # fmt: skip
    line["ratios"] = {
        name: round(median(usage[a].seconds / usage[b].seconds for usage, _ in results), 3)
        for name, (a, b) in pairs.items()
        if a in roles and b in roles
    }
    line |= {key: round(value, 5) for key, value in middle.items()}
    columns = ("seconds", "cpu s", "anon MiB", "RSS MiB", "read GB", "written", "of disk")
    print(f"{'':18} " + " ".join(f"{column:>9}" for column in columns))
    for role in roles:
        values = [line[field][role] for field in Usage.__dataclass_fields__]
        print(f"{role:18} " + " ".join(f"{value:9.1f}" for value in values) + f" {line['of_disk'][role]:9.0%}")
    print(json.dumps(line))


def of_disk(usage: Usage, disk: dict[str, float]) -> float:
    return (usage.read_gb / disk["read"] + usage.written_gb / disk["write"]) / usage.seconds


if __name__ == "__main__":
    fire.Fire(main)
