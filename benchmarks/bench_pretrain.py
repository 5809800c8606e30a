"""Speed of continued pretraining with train.py: packing on the CPU; attention, kernels and ZeRO on one GPU.

    python benchmarks/bench_pretrain.py
    python benchmarks/bench_pretrain.py --block_size 1024 --settings packed-8,padded-8 --median 300 --rounds 5
    python benchmarks/bench_pretrain.py --gpu --settings sdpa-8,flash-8,zero1-sdpa-liger-16 --global_batch 64

A setting consists of PARTS and a micro batch, such as `flash-liger-16`. Each runs in its own process for --steps steps
after --warm_up, once in every round. A setting that fails, for example because it runs out of memory or a package is
not installed, is reported with the reason. The model is a LLaMA with random weights: on the CPU a small one in float32
with one thread; with --gpu the shape of TinyLlama (Zhang et al. 2024; 1.1 billion parameters) in mixed precision, and
with zero1 in bf16 under `deepspeed`. Documents are random ids of lognormal length; documents longer than block_size are
divided evenly.

- packed: samples packed into sequences of block_size tokens, as train.py does without options;
- padded: one sample per sequence in random order, padded to the longest of its micro batch, with about the same number
  of token positions per micro batch. Packing gains more with a larger micro batch, because the longest of more samples
  is longer. Packing also gains with hidden_size: attention is block_size / (6 x hidden_size) of other work;
- plain: the packed batches in a plain PyTorch loop (forward, cross_entropy, backward, clip, AdamW) without Trainer.

The last line is JSON; figures are medians over the rounds:

- settings: {name: {tokens_per_second: tokens with a label; mfu: as train.py counts it (null: peak unknown, or plain);
  gb: peak memory according to nvidia-smi, including caches (null on the CPU)} or {skipped: the reason}};
- packed_over_padded (goal: 1.6 at a median of 450 tokens), packed_over_plain (goal: above 0.95): ratios of
  tokens_per_second within a round, for the first settings that begin with these names.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median as middle
from typing import Any

import numpy as np
from measurements import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "pretrain"))

PARTS: dict[str, dict[str, object]] = {  # part of a setting -> options of train.py
    "packed": {},
    "padded": {"no_packing": True},
    "plain": {},
    "sdpa": {"attn_implementation": "sdpa"},
    "segment": {"attn_implementation": "sdpa_by_segment"},
    "flex": {"attn_implementation": "flex_attention"},
    "flash": {"attn_implementation": "flash_attention_2"},
    "liger": {"use_liger_kernel": True},
    "recomputed": {"gradient_checkpointing": True},
    "compiled": {"torch_compile": True},
    "unfused": {"optim": "adamw_torch"},
    "zero1": {"deepspeed": REPOSITORY / "pretrain/configs/zero1.json"},
}
ON_CPU = ["packed-4", "padded-4", "plain-4"]
ON_GPU = [
    "sdpa-4", "sdpa-unfused-4", "sdpa-8", "sdpa-16", "sdpa-recomputed-8", "sdpa-recomputed-16", "sdpa-compiled-8",
    "flex-8", "segment-8", "segment-liger-16", "flash-8", "flash-16", "sdpa-liger-8", "flash-liger-16",
    "flash-liger-32", "zero1-sdpa-8", "zero1-sdpa-16", "zero1-sdpa-liger-16", "zero1-flash-liger-16",
    "zero1-flash-liger-recomputed-32",
]  # fmt: skip


def parse_setting(name: str) -> tuple[dict[str, object], int]:
    """Return the options of train.py and the micro batch of a setting; raises ValueError on an unknown part."""
    *parts, micro_batch = name.split("-")
    if not parts or not micro_batch.isdecimal() or set(parts) - PARTS.keys():
        raise ValueError(f"{name} is not a setting such as flash-liger-16; the parts are {', '.join(PARTS)}")
    return {option: value for part in parts for option, value in PARTS[part].items()}, int(micro_batch)


def random_base(folder: Path, shape: dict[str, Any], dtype: str) -> None:
    """Write a checkpoint folder: a LLaMA with random weights and a tokenizer. shape: arguments of LlamaConfig."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).to(getattr(torch, dtype)).save_pretrained(folder)
    pieces = ["<unk>", "<s>", "</s>"] + [f"piece{number}" for number in range(3, shape["vocab_size"])]
    model = models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>")
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special).save_pretrained(folder)


def random_corpus(prefix: Path, base: Path, documents: int, median: float, block_size: int) -> np.ndarray:
    """Write a corpus of two sources with random ids and lognormal lengths; return lengths in tokens, (samples,)."""
    from corpus_files.corpus import Corpus, CorpusWriter
    from corpus_tokenizer.document_encoder import vocabulary_fingerprint
    from tokenizers import Tokenizer

    table = Tokenizer.from_file(str(base / "tokenizer.json")).get_vocab(with_added_tokens=True)
    rng = np.random.default_rng(0)
    sizes = np.maximum(rng.lognormal(np.log(median), 1.0, documents).astype(np.int64), 3)  # tokens of each document
    samples = -(-sizes // block_size)  # of each document
    lengths = np.concatenate([np.diff(np.arange(n + 1) * size // n) for size, n in zip(sizes, samples, strict=True)])
    ids = rng.integers(3, len(table), int(sizes.sum()))
    ends = np.cumsum(sizes)
    ids[ends - sizes], ids[ends - 1] = 1, 2  # BOS and EOS
    half = int(samples[: documents // 2].sum())
    sources = [
        {"name": name, "type": kind, "start": start, "end": end, "tokens": int(lengths[start:end].sum())}
        for kind, (name, start, end) in enumerate((("one", 0, half), ("two", half, len(lengths))))
    ]
    with CorpusWriter(prefix, len(table)) as writer:
        writer.add(ids, lengths, samples)
        tokenizer = {"fingerprint": vocabulary_fingerprint(table), "vocab_size": len(table)}
        writer.finish(sources, tokenizer, {}, {}, block_size)
    return Corpus(prefix).lengths


def padded_positions(lengths: np.ndarray, count: int) -> float:
    """Return the expected token positions of `count` random samples, padded to the longest of them."""
    share = np.arange(len(lengths) + 1) / len(lengths)
    return count * float(np.sort(lengths) @ np.diff(share**count))


def samples_for(lengths: np.ndarray, positions: int) -> int:
    """Return the number of random samples that take about `positions` token positions when padded."""
    counts = range(1, positions // int(lengths.mean()) + 2)
    return min(counts, key=lambda count: abs(padded_positions(lengths, count) - positions))


def train_plain_loop(arguments: list[str]) -> None:
    """Train with the batches and the model of train.py in a plain loop; write train_log.jsonl for `read_log`."""
    import torch
    import train
    from sequence_packing.sequence_batches import RankBatchSampler
    from torch.nn.functional import cross_entropy, pad

    trainer = train.prepare(arguments)[0]
    args, model = trainer.args, trainer.model.train()
    betas = (args.adam_beta1, args.adam_beta2)
    optimizer = torch.optim.AdamW(
        model.parameters(), args.learning_rate, betas, args.adam_epsilon, args.weight_decay, fused="fused" in args.optim
    )
    size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    batches = RankBatchSampler(0, args.max_steps * accumulation, size, 0, 1)
    data = torch.utils.data.DataLoader(trainer.sequences, batch_sampler=batches, collate_fn=trainer.data_collator)
    loader, tokens = iter(data), 0
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    with Path(args.output_dir, "train_log.jsonl").open("w") as log:
        for step in range(1, args.max_steps + 1):
            start, micro_batches = time.perf_counter(), list(islice(loader, accumulation))
            count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in micro_batches)
            for batch in micro_batches:
                del batch["sources"]
                targets = pad(batch.pop("labels"), (0, 1), value=-100)[:, 1:].flatten()
                logits = model(**batch, use_cache=False).logits
                (cross_entropy(logits.flatten(0, 1), targets, ignore_index=-100, reduction="sum") / count).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            tokens += count
            rate = count / (time.perf_counter() - start)
            log.write(json.dumps({"step": step, "tokens": tokens, "tokens_per_second": rate}) + "\n")


def run_setting(
    name: str, scratch: Path, lengths: np.ndarray, gpu: str, shared: dict[str, Any], global_batch: int, warm_up: int
) -> dict[str, Any]:
    """Train in a process; return the figures of the setting, or {"skipped": reason}.

    gpu: index of the GPU, "" for the CPU. shared: options of train.py for all settings. global_batch: see main.
    """
    options, micro_batch = parse_setting(name)
    micro_batch = min(micro_batch, global_batch or micro_batch)
    options |= shared | {"gradient_accumulation_steps": max(global_batch // micro_batch, 1)}
    options["per_device_train_batch_size"] = micro_batch
    if "no_packing" in options:
        options["per_device_train_batch_size"] = samples_for(lengths, micro_batch * shared["block_size"])
    command: list[object] = [sys.executable]
    if "deepspeed" in options:  # on a GPU, DeepSpeed uses the one of CUDA_VISIBLE_DEVICES
        command += ["-m", "deepspeed.launcher.runner", *([] if gpu else ["--num_gpus", "1"])]
    elif not gpu:
        options["use_cpu"] = True
    command += [__file__, "plain_loop"] if name.startswith("plain") else [REPOSITORY / "pretrain/train.py"]
    command += [word for option, value in options.items() for word in (f"--{option}", value)]
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(scratch / "extensions"), "CUDA_VISIBLE_DEVICES": gpu}
    if not gpu:
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    shutil.rmtree(shared["output_dir"], ignore_errors=True)
    query = ["nvidia-smi", "-i", gpu, "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
    memory_log = subprocess.Popen(query, stdout=subprocess.PIPE, text=True) if gpu else None
    try:
        words = list(map(str, command))
        done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    finally:
        if memory_log:
            memory_log.terminate()
    if done.returncode:
        return {"skipped": failure(done.stdout + done.stderr)}
    gb = round(max(map(int, memory_log.communicate()[0].split())) * 2**20 / 1e9, 1) if memory_log else None
    return {**read_log(shared["output_dir"] / "train_log.jsonl", warm_up), "gb": gb}


def read_log(path: Path, warm_up: int) -> dict[str, float | None]:
    """Return the tokens per second of the steps after warm_up, and the median MFU or None, from train_log.jsonl."""
    entries = [entry for entry in map(json.loads, path.read_text().splitlines()) if "tokens_per_second" in entry]
    counts = np.diff([0, *(entry["tokens"] for entry in entries)])
    measured = [(count, entry) for count, entry in zip(counts, entries, strict=True) if entry["step"] > warm_up]
    seconds = sum(count / max(entry["tokens_per_second"], 1) for count, entry in measured)
    mfu = [entry["mfu"] for _, entry in measured if "mfu" in entry]
    tokens = sum(int(count) for count, _ in measured)
    return {"tokens_per_second": round(tokens / seconds, 1), "mfu": middle(mfu) if mfu else None}


def failure(output: str) -> str:
    """Return one line with the reason why a run failed."""
    if "out of memory" in output.lower():
        return "out of memory"
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    return ([line for line in lines if line.startswith("error: ") or "Error: " in line] or lines)[-1][:300]


def main(
    gpu: bool = False,
    settings: list[str] | None = None,
    rounds: int = 0,
    steps: int = 10,
    warm_up: int = 2,
    median: float = 450,
    block_size: int = 2048,
    global_batch: int = 0,
    hidden_size: int = 0,
    layers: int = 0,
) -> None:
    """Run the settings in every round.

    Args:
        gpu: use the first GPU of CUDA_VISIBLE_DEVICES.
        settings: names of settings, separated by commas; default: ON_GPU or ON_CPU.
        rounds: number of rounds; default: 1 with --gpu, else 3.
        steps: number of measured steps of a setting.
        warm_up: unmeasured steps before them.
        median: median of the lognormal document lengths, in tokens.
        block_size: tokens of a packed sequence.
        global_batch: packed sequences per step; default: 32 with --gpu, else the micro batch.
        hidden_size: width of the model, a multiple of 64; default: 2048 with --gpu, else 512.
        layers: number of layers; default: 22 with --gpu, else 2.
    """
    names, rounds = settings or (ON_GPU if gpu else ON_CPU), rounds or (1 if gpu else 3)
    global_batch = global_batch or (32 if gpu else 0)
    hidden_size, layers = hidden_size or (2048 if gpu else 512), layers or (22 if gpu else 2)
    for name in names:
        parse_setting(name)
    if hidden_size % 64:
        raise ValueError(f"--hidden_size must be a multiple of 64, not {hidden_size}")
    if gpu and not shutil.which("nvidia-smi"):
        raise ValueError("nvidia-smi is not installed; omit --gpu to measure the CPU")
    gpu_index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if gpu else ""
    shape = {
        "vocab_size": 32000 if gpu else 2048, "hidden_size": hidden_size, "intermediate_size": hidden_size * 11 // 4,
        "num_hidden_layers": layers, "num_attention_heads": hidden_size // 64, "max_position_embeddings": block_size,
        "num_key_value_heads": 4 if gpu else hidden_size // 64,
    }  # fmt: skip
    results: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory(prefix="bench-pretrain-") as folder:
        scratch = Path(folder)
        random_base(scratch / "base", shape, "bfloat16" if gpu else "float32")
        lengths = random_corpus(scratch / "corpus", scratch / "base", 20_000, median, block_size)
        shared = {
            "model_name_or_path": scratch / "base", "data_path": scratch / "corpus", "output_dir": scratch / "trained",
            "block_size": block_size, "bf16": gpu, "max_steps": warm_up + steps, "save_strategy": "no",
            "logging_steps": math.gcd(warm_up, steps), "report_to": "none",
        }  # fmt: skip
        for round_number in range(1, rounds + 1):
            print(f"round {round_number} of {rounds}", flush=True)
            results.append({})
            for name in names:
                figures = run_setting(name, scratch, lengths, gpu_index, shared, global_batch, warm_up)
                results[-1][name] = figures
                print(f"  {name:<32} " + ", ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
    print(json.dumps(summary(results) | {"rounds": rounds, "block_size": block_size, "median": median}))


def summary(results: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return the medians over the rounds, and the ratios within a round. results: {setting: figures} of each round."""
    medians: dict[str, Any] = {}
    for name, first in results[0].items():
        ran = [result[name] for result in results if "skipped" not in result[name]]
        medians[name] = {key: ran[0][key] and middle(one[key] for one in ran) for key in ran[0]} if ran else first
    ratios = {}
    for other in ("padded", "plain"):
        pair = [next((name for name in results[0] if name.startswith(kind)), "") for kind in ("packed", other)]
        speeds = [[result.get(name, {}).get("tokens_per_second") for name in pair] for result in results]
        each = [packed / rate for packed, rate in speeds if packed and rate]
        ratios[f"packed_over_{other}"] = round(middle(each), 3) if each else None
    return {"settings": medians, **ratios}


if __name__ == "__main__":
    if sys.argv[1:2] == ["plain_loop"]:
        train_plain_loop(sys.argv[2:])
    else:
        from command_line.fire_commands import run

        run(main)
