"""Tokens per second, MFU and memory of continued pretraining with train.py on one GPU, for several settings.

    python benchmarks/bench_pretrain_gpu.py
    python benchmarks/bench_pretrain_gpu.py --settings sdpa-8,flash-8,zero1-liger-16 --global_batch 64 --peak_tflops 989
    python benchmarks/bench_pretrain_gpu.py --tiny

The model is a LLaMA of 1.1 billion parameters (the shape of TinyLlama, Zhang et al. 2024) with random weights, the data
packed sequences of 2048 random ids. Every setting runs train.py in its own process for `steps` steps after `warm_up`,
with the same global batch; a setting that runs out of memory or is not installed is reported and skipped. "zero1" has
bf16 weights under `deepspeed` with configs/zero1.json; the others use Trainer's mixed precision, bf16 with float32
weights. AdamW is PyTorch's fused version unless the name says unfused. --tiny tests the script itself with a very small
model on the CPU.

MFU is tokens_per_second x FLOP per token / peak. N: parameters; L, H, Q, T: layers, heads, width of a head, tokens of a
sequence. Only tokens with a label count. The attention term assumes one document per sequence, as is usual, although
packed samples attend to fewer tokens. Recomputed activations are not counted (PaLM, appendix B). The last line is JSON:

- tokens_per_second, mfu, best: of the fastest setting, and its name (null if none ran);
- gpu, peak_tflops: the GPU and its dense 16-bit peak (null: not known; give --peak_tflops);
- settings: {name: either skipped (the reason), or the following}
  tokens_per_second;
  mfu: 6 N + 6 L H Q T, attention halved since it is causal, as plan.py and train.py count;
  mfu_whole_attention: 6 N + 12 L H Q T, as PaLM counts;
  mfu_without_embeddings: as mfu, with N minus the input embeddings, which are looked up, not multiplied;
  gb: peak memory according to nvidia-smi, including the caches of PyTorch and CUDA (null on the CPU).
"""

import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fire
from bench_pretrain import REPOSITORY, random_base, random_corpus

LARGE = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
TINY = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
FORMULAS = {
    "mfu": "6 N + 6 L H Q T",
    "mfu_whole_attention": "6 N + 12 L H Q T",
    "mfu_without_embeddings": "6 (N - vocabulary x hidden) + 6 L H Q T",
}


@dataclass(frozen=True)
class Setting:
    """The options of train.py that differ between settings. packages: import names of required packages."""

    micro_batch: int
    attention: str = "sdpa"
    options: dict[str, Any] = field(default_factory=dict)
    zero1: bool = False

    @property
    def packages(self) -> list[str]:
        flash = ["flash_attn"] if self.attention == "flash_attention_2" else []
        return flash + (["liger_kernel"] if "use_liger_kernel" in self.options else [])


LIGER, RECOMPUTED, COMPILED = ({name: True} for name in ("use_liger_kernel", "gradient_checkpointing", "torch_compile"))
FLASH = "flash_attention_2"
SETTINGS = {
    "sdpa-4": Setting(4),
    "sdpa-4-unfused": Setting(4, options={"optim": "adamw_torch"}),
    "sdpa-8": Setting(8),
    "sdpa-16": Setting(16),
    "sdpa-8-recomputed": Setting(8, options=RECOMPUTED),
    "sdpa-16-recomputed": Setting(16, options=RECOMPUTED),
    "sdpa-8-compiled": Setting(8, options=COMPILED),
    "flex-8": Setting(8, "flex_attention"),
    "by-segment-8": Setting(8, "sdpa_by_segment"),
    "by-segment-liger-16": Setting(16, "sdpa_by_segment", LIGER),
    "flash-8": Setting(8, FLASH),
    "flash-16": Setting(16, FLASH),
    "liger-8": Setting(8, options=LIGER),
    "flash-liger-16": Setting(16, FLASH, LIGER),
    "flash-liger-32": Setting(32, FLASH, LIGER),
    "zero1-sdpa-8": Setting(8, zero1=True),
    "zero1-sdpa-16": Setting(16, zero1=True),
    "zero1-liger-16": Setting(16, options=LIGER, zero1=True),
    "zero1-flash-liger-16": Setting(16, FLASH, LIGER, zero1=True),
    "zero1-flash-liger-32-recomputed": Setting(32, FLASH, LIGER | RECOMPUTED, zero1=True),
}


# --- the machine ------------------------------------------------------------------------------------------------------


class Gpu:
    """The first GPU of CUDA_VISIBLE_DEVICES. name: "" if there is none."""

    def __init__(self) -> None:
        self.number = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "none"
        try:
            done = subprocess.run(self._query("name"), capture_output=True, text=True)
            self.name = done.stdout.strip() if done.returncode == 0 else ""
        except FileNotFoundError:
            self.name = ""

    def _query(self, field: str) -> list[str]:
        return ["nvidia-smi", "-i", self.number, f"--query-gpu={field}", "--format=csv,noheader,nounits"]

    @property
    def peak(self) -> float | None:
        """Return the dense 16-bit peak in TFLOP/s from plan.py's table, or None."""
        from pretraining.memory_estimate import SPEEDS

        return next((peak / 1e12 for kind, (peak, _) in SPEEDS.items() if kind in self.name.lower()), None)

    def watch(self) -> "subprocess.Popen[str]":
        """Start a process that prints the used MiB five times per second."""
        return subprocess.Popen([*self._query("memory.used"), "-lms", "200"], stdout=subprocess.PIPE, text=True)


def flops(base: Path, block_size: int) -> dict[str, float]:
    """Return FLOP per token for each name in FORMULAS."""
    from pretraining.memory_estimate import flops_per_token, read_shape

    shape = read_shape(base)
    usual = flops_per_token(shape, block_size)
    attention = 6 * shape.layers * shape.heads * shape.head_dim * block_size
    looked_up = 6 * shape.vocabulary * shape.hidden
    return {"mfu": usual, "mfu_whole_attention": usual + attention, "mfu_without_embeddings": usual - looked_up}


# --- one setting ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """The options that all settings share. global_batch: sequences per step; timeout: seconds per setting."""

    scratch: Path
    gpu: Gpu
    block_size: int
    global_batch: int
    steps: int
    warm_up: int
    timeout: float

    def command(self, setting: Setting) -> list[str]:
        micro_batch = min(setting.micro_batch, self.global_batch)
        start = [sys.executable]
        if setting.zero1:  # deepspeed uses the GPU of CUDA_VISIBLE_DEVICES
            start = [sys.executable, "-m", "deepspeed.launcher.runner", *([] if self.gpu.name else ["--num_gpus", "1"])]
        options = {
            "model_name_or_path": self.scratch / "base", "data_path": self.scratch / "corpus",
            "output_dir": self.scratch / "trained", "block_size": self.block_size, "bf16": True,
            "per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": self.global_batch // micro_batch,
            "max_steps": self.warm_up + self.steps, "logging_steps": math.gcd(self.warm_up, self.steps),
            "attn_implementation": setting.attention, "save_strategy": "no", "report_to": "none", **setting.options,
        }  # fmt: skip
        if setting.zero1:
            options["deepspeed"] = REPOSITORY / "pretrain/configs/zero1.json"
        elif not self.gpu.name:
            options["use_cpu"] = True
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        return [*start, str(REPOSITORY / "pretrain/train.py"), *words]

    def run(self, setting: Setting) -> dict[str, Any]:
        """Train; return tokens_per_second and gb, or skipped with the reason."""
        if setting.attention == FLASH and not self.gpu.name:
            return {"skipped": "FlashAttention needs a GPU"}
        if setting.attention == "flex_attention" and not self.gpu.name:
            return {"skipped": "flex attention has no backward pass on a CPU"}
        if missing := [name for name in setting.packages if importlib.util.find_spec(name) is None]:
            return {"skipped": f"{missing[0].replace('_', '-')} is not installed"}
        shutil.rmtree(self.scratch / "trained", ignore_errors=True)
        environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(self.scratch / "extensions")}
        environment |= {"CUDA_VISIBLE_DEVICES": self.gpu.number} if self.gpu.name else {"DS_ACCELERATOR": "cpu"}
        log = self.scratch / "output.txt"
        watch = self.gpu.watch() if self.gpu.name else None
        try:
            with log.open("w") as file:
                status = run_group(self.command(setting), self.timeout, stdout=file, stderr=file, env=environment)
        finally:
            if watch:
                watch.terminate()
        gb = max(int(line) for line in watch.communicate()[0].split()) * 2**20 / 1e9 if watch else None
        if status is None:
            return {"skipped": f"took over {self.timeout:.0f} s"}
        if status:
            return {"skipped": reason(log.read_text(errors="replace"), status)}
        return {"tokens_per_second": self.speed(), "gb": gb and round(gb, 1)}

    def speed(self) -> float:
        """Return the tokens per second of the steps after warm_up, from train_log.jsonl."""
        lines = (self.scratch / "trained/train_log.jsonl").read_text().splitlines()
        entries = [entry for entry in map(json.loads, lines) if "tokens_per_second" in entry]
        tokens = seconds = 0.0
        for before, entry in zip([{"tokens": 0}, *entries], entries, strict=False):
            if entry["step"] > self.warm_up:
                tokens += entry["tokens"] - before["tokens"]
                seconds += (entry["tokens"] - before["tokens"]) / max(entry["tokens_per_second"], 1)
        return round(tokens / seconds, 1)


def run_group(command: list[str], timeout: float, **more: Any) -> int | None:
    """Run a command; return its exit status, or None if it was killed with its children after the timeout."""
    process = subprocess.Popen(command, start_new_session=True, cwd=REPOSITORY, **more)
    try:
        return process.wait(timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return None
        raise


def reason(output: str, status: int) -> str:
    """Return one line with the reason why a run failed."""
    if "out of memory" in output.lower():
        return "out of memory"
    lines = [line.strip() for line in output.splitlines() if line.strip()] or [f"exit status {status}"]
    errors = [line for line in lines if line.startswith("error: ") or "Error: " in line]
    return (errors or lines)[-1][:300]


# --- all settings -----------------------------------------------------------------------------------------------------


def main(
    settings: str | tuple[str, ...] = "",
    global_batch: int = 32,
    steps: int = 20,
    warm_up: int = 5,
    median: float = 450,
    peak_tflops: float = 0,
    timeout: float = 900,
    tiny: bool = False,
    **unknown: object,
) -> None:
    """Run all or the given settings (comma-separated). global_batch: sequences per step. median: document length."""
    if unknown:
        raise ValueError(f"unknown option --{next(iter(unknown))}; see --help")
    chosen = (settings.split(",") if settings else list(SETTINGS)) if isinstance(settings, str) else list(settings)
    if wrong := [name for name in chosen if name not in SETTINGS]:
        raise ValueError(f"there is no setting {wrong[0]}; there are {', '.join(SETTINGS)}")
    gpu = Gpu()
    if tiny:
        gpu.name = ""
    elif not gpu.name:
        raise ValueError("nvidia-smi shows no GPU here; --tiny tests the script on the CPU")
    peak = peak_tflops or (gpu.peak if gpu.name else None)
    shape = TINY if tiny else LARGE
    block_size = shape["max_position_embeddings"]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-pretrain-gpu-") as folder:
        scratch = Path(folder)
        random_base(scratch / "base", shape, "bfloat16")
        random_corpus(scratch / "corpus", scratch / "base", 200 if tiny else 20_000, median, 1.0, block_size)
        per_token = flops(scratch / "base", block_size)
        for name, formula in FORMULAS.items():
            below = f"{peak:g} TFLOP/s" if peak else "peak"
            print(f"{name:<23} tokens/s x ({formula} = {per_token[name] / 1e9:.4g} GFLOP) / {below}")
        print(f"{gpu.name or 'CPU'}, {global_batch} sequences of {block_size} a step, {steps} steps after {warm_up}\n")
        bench = Bench(scratch, gpu, block_size, global_batch, steps, warm_up, timeout)
        for name in chosen:
            found = bench.run(SETTINGS[name])
            if speed := found.get("tokens_per_second"):
                for kind, each in per_token.items():
                    found[kind] = round(speed * each / peak / 1e12, 4) if peak else None
            results[name] = found
            print(f"{name:<32} " + ", ".join(f"{key} {value}" for key, value in found.items()), flush=True)
    ran = {name: found for name, found in results.items() if "skipped" not in found}
    best = max(ran, key=lambda name: ran[name]["tokens_per_second"], default=None)
    summary = {name: ran[best][name] if best else None for name in ("tokens_per_second", "mfu")}
    print(json.dumps(summary | {"best": best, "gpu": gpu.name or None, "peak_tflops": peak, "settings": results}))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that run_group kills train.py
    try:
        fire.Fire(main, ["--", "--help"] if "--help" in sys.argv else None)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
