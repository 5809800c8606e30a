"""Compare packing with padding, and Trainer with a plain PyTorch loop, for a small LLaMA on the CPU.

    python benchmarks/bench_pretrain.py
    python benchmarks/bench_pretrain.py --block_size 1024 --micro_batch 8 --median 300 --rounds 5

train.py's trainer runs once with --no_packing (one sample per sequence in random order, padded to the longest of its
micro batch) and once packed, with about the same number of token positions per step. The time per position is measured;
the share of positions with a label is counted over the whole corpus, because it varies between padded steps. Documents
are random ids of lognormal length; documents longer than block_size are divided evenly. The plain loop processes the
packed batches (forward, cross_entropy, backward, clip, AdamW); its steps alternate with Trainer's, so that the load of
the machine affects both.

The ratio grows with the micro batch, because the longest of more samples is longer. It also grows with hidden_size:
attention costs block_size / (6 x hidden_size) of the other work, far more than in a large model, and packed sequences
are longer.
The last line is JSON; figures are medians over the rounds:

- packed_tokens_per_cpu_s, padded_tokens_per_cpu_s: tokens with a label per CPU second, without startup;
- ratio: the first divided by the second (goal: 1.6 at a median of 450 tokens);
- packed_slot_efficiency, padded_slot_efficiency: the share of token positions with a label;
- overhead: CPU time of a Trainer step, with a log entry, divided by that of the plain loop on the same batch, minus 1
  (goal: below 0.05).
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median as middle
from typing import Any

import fire
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "pretrain"))


# --- a random model and a random corpus -------------------------------------------------------------------------------


def random_base(folder: Path, shape: dict[str, Any], dtype: str = "float32") -> None:
    """Write a checkpoint folder: a LLaMA with random weights and a tokenizer. shape: arguments of LlamaConfig."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).to(getattr(torch, dtype)).save_pretrained(folder)
    pieces = ["<unk>", "<s>", "</s>"] + [f"piece{number}" for number in range(3, shape["vocab_size"])]
    words = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def random_corpus(prefix: Path, base: Path, documents: int, median: float, sigma: float, block_size: int) -> np.ndarray:
    """Write a corpus of two sources with random ids and lognormal lengths; return lengths in tokens, (samples,)."""
    from corpus_files.corpus import Corpus, CorpusWriter
    from corpus_tokenizer.document_encoder import fingerprint
    from tokenizers import Tokenizer

    table = Tokenizer.from_file(str(base / "tokenizer.json")).get_vocab(with_added_tokens=True)
    draw = np.random.default_rng(0)
    whole = np.maximum(draw.lognormal(np.log(median), sigma, documents).astype(np.int64), 3)
    pieces = -(-whole // block_size)
    lengths = np.concatenate([np.diff(np.arange(n + 1) * size // n) for size, n in zip(whole, pieces, strict=True)])
    ids = draw.integers(3, len(table), int(whole.sum()))
    ends = np.cumsum(whole)
    ids[ends - whole], ids[ends - 1] = 1, 2  # BOS and EOS
    half = int(pieces[: documents // 2].sum())
    sources = [
        {"name": name, "type": kind, "start": start, "end": end, "tokens": int(lengths[start:end].sum())}
        for kind, (name, start, end) in enumerate((("one", 0, half), ("two", half, len(lengths))))
    ]
    with CorpusWriter(prefix, len(table)) as writer:
        writer.add(ids, lengths, pieces)
        tokenizer = {"fingerprint": fingerprint(table), "vocab_size": len(table)}
        writer.finish(sources, tokenizer, {}, {}, block_size)
    return Corpus(prefix).lengths


def padded_slots(lengths: np.ndarray, count: int) -> float:
    """Return the expected token positions of `count` random samples, padded to the longest of them."""
    share = np.arange(len(lengths) + 1) / len(lengths)
    return count * float(np.sort(lengths) @ np.diff(share**count))


def samples_for(lengths: np.ndarray, slots: int) -> int:
    """Return the number of random samples that take about `slots` token positions when padded."""
    return min(range(1, slots // int(lengths.mean()) + 2), key=lambda count: abs(padded_slots(lengths, count) - slots))


def efficiency_by_length(lengths: np.ndarray, size: int) -> float:
    """Return the slot efficiency of micro batches of `size` samples of similar length, as with --group_by_length."""
    shuffled = np.random.default_rng(0).permutation(lengths)[: len(lengths) // (50 * size) * 50 * size]
    groups = np.sort(shuffled.reshape(-1, 50 * size), axis=1)  # Trainer sorted 50 micro batches at a time
    return float((shuffled - 1).sum() / (groups.reshape(-1, size).max(1).sum() * size))


# --- timed steps ------------------------------------------------------------------------------------------------------


def make_trainer(base: Path, prefix: Path, output: Path, packed: bool, **options: Any) -> Any:
    """Return train.py's trainer. options: of its command line."""
    import train

    given = {
        "model_name_or_path": base, "data_path": prefix, "output_dir": output, "no_packing": not packed,
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, **options,
    }  # fmt: skip
    return train.prepare([str(word) for name, value in given.items() for word in (f"--{name}", value)])[0]


def bare_steps(trainer: Any) -> Iterator[None]:
    """Run the trainer's steps in a plain loop with its batches and a copy of its model; yield after each step."""
    import copy

    import torch
    from sequence_packing.sequence_batches import RankBatchSampler
    from torch.nn.functional import cross_entropy, pad

    args, model = trainer.args, copy.deepcopy(trainer.model).train()
    betas = (args.adam_beta1, args.adam_beta2)
    optimizer = torch.optim.AdamW(
        model.parameters(), args.learning_rate, betas, args.adam_epsilon, args.weight_decay, fused="fused" in args.optim
    )
    size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    batches = RankBatchSampler(0, args.max_steps * accumulation, size, 0, 1)
    loader = iter(
        torch.utils.data.DataLoader(trainer.sequences, batch_sampler=batches, collate_fn=trainer.data_collator)
    )
    for _ in range(args.max_steps):
        step = list(islice(loader, accumulation))
        count = sum(int((batch["labels"] != -100).sum()) for batch in step)
        for batch in step:
            del batch["sources"]
            wanted = pad(batch.pop("labels"), (0, 1), value=-100)[:, 1:].flatten()
            logits = model(**batch, use_cache=False).logits
            (cross_entropy(logits.flatten(0, 1), wanted, ignore_index=-100, reduction="sum") / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield


def timed_steps(trainer: Any, beside: Iterator[None] | None) -> tuple[list[float], list[float]]:
    """Train; run one step of `beside` after each of Trainer's steps. Return the CPU seconds of both per step."""
    from transformers import TrainerCallback

    ours: list[float] = []
    theirs: list[float] = []
    begun = 0.0

    class Clock(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **more: Any) -> None:
            nonlocal begun
            begun = time.process_time()

        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            nonlocal begun
            ended = time.process_time()
            ours.append(ended - begun)
            if beside is not None:
                next(beside)
            begun = time.process_time()
            theirs.append(begun - ended)

    trainer.add_callback(Clock())
    trainer.train_until_stopped(None)
    return ours, theirs


def slots_of(trainer: Any, warm_up: int) -> int:
    """Return the number of token positions of all steps after the warm-up."""
    args, sequences = trainer.args, trainer.sequences
    size = args.per_device_train_batch_size
    first = warm_up * size * args.gradient_accumulation_steps
    batches = (sequences.__getitems__(range(at, at + size)) for at in range(first, len(sequences), size))
    return sum(trainer.data_collator(batch)["labels"].numel() for batch in batches)


# --- the rounds -------------------------------------------------------------------------------------------------------


def one_round(
    scratch: Path, lengths: np.ndarray, sizes: dict[str, int], warm_up: int, **options: Any
) -> dict[str, float]:
    """Time padded steps, then packed steps alternating with the plain loop. sizes: {kind: micro batch}."""
    useful, found, steps = int((lengths - 1).sum()), {}, options.pop("steps")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for kind, count in (("padded", 2 * steps), ("packed", steps)):
            trainer = make_trainer(
                scratch / "base", scratch / "corpus", scratch / f"{kind}-{options['seed']}", kind == "packed",
                max_steps=warm_up + count, logging_steps=1, per_device_train_batch_size=sizes[kind], **options,
            )  # fmt: skip
            ours, theirs = timed_steps(trainer, bare_steps(trainer) if kind == "packed" else None)
            if kind == "packed":
                whole = trainer.sequences.packed.train_count * options["block_size"]
            else:
                whole = padded_slots(lengths, sizes[kind]) * len(lengths) / sizes[kind]
            found[f"{kind}_tokens_per_cpu_s"] = slots_of(trainer, warm_up) / sum(ours[warm_up:]) * useful / whole
            found[f"{kind}_slot_efficiency"] = useful / whole
    found["ratio"] = found["packed_tokens_per_cpu_s"] / found["padded_tokens_per_cpu_s"]
    found["overhead"] = middle(our / their for our, their in zip(ours[warm_up:], theirs[warm_up:], strict=True)) - 1
    return found


def main(
    rounds: int = 3,
    steps: int = 2,
    warm_up: int = 1,
    median: float = 450,
    sigma: float = 1.0,
    block_size: int = 2048,
    micro_batch: int = 4,
    accumulation: int = 1,
    hidden_size: int = 512,
    layers: int = 2,
    threads: int = 1,
    **unknown: object,
) -> None:
    """Time `steps` packed steps and twice as many padded steps, which vary more, in every round.

    median, sigma: of the lognormal document lengths in tokens. micro_batch: packed sequences, by default as in
    pretrain/scripts. threads: PyTorch threads; with more than one, CPU seconds include waiting for other threads.
    """
    if unknown:
        raise ValueError(f"unknown option --{next(iter(unknown))}; see --help")
    if min(rounds, steps, micro_batch, accumulation, layers, threads) < 1 or block_size < 2 or hidden_size % 64:
        raise ValueError("counts are at least 1, --block_size at least 2, and --hidden_size a multiple of 64")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # avoids DeepSpeed's warning without a GPU
    import torch

    torch.set_num_threads(threads)
    shape = {
        "vocab_size": 2048, "hidden_size": hidden_size, "intermediate_size": hidden_size * 11 // 4,
        "num_hidden_layers": layers, "num_attention_heads": hidden_size // 64, "max_position_embeddings": block_size,
    }  # fmt: skip
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-pretrain-") as folder:
        scratch = Path(folder)
        random_base(scratch / "base", shape)
        lengths = random_corpus(scratch / "corpus", scratch / "base", 20_000, median, sigma, block_size)
        sizes = {"packed": micro_batch, "padded": samples_for(lengths, micro_batch * block_size)}
        by_length = efficiency_by_length(lengths, sizes["padded"])
        print(
            f"{len(lengths)} samples, {np.median(lengths):.0f} tokens in the median, {lengths.mean():.0f} in the mean; "
            f"a micro batch: {micro_batch} packed sequences of {block_size}, {sizes['padded']} padded samples\n"
            f"slot efficiency of padded samples of similar length instead of random order: {by_length:.3f}",
            flush=True,
        )
        for number in range(1, rounds + 1):
            found.append(
                one_round(
                    scratch, lengths, sizes, warm_up, steps=steps, seed=number, block_size=block_size,
                    gradient_accumulation_steps=accumulation,
                )
            )  # fmt: skip
            print(
                f"round {number}: " + ", ".join(f"{name} {value:.3g}" for name, value in found[-1].items()), flush=True
            )
    result = {name: round(middle(each[name] for each in found), 3) for name in found[0]}
    more = {"median": median, "block_size": block_size, "micro_batch": micro_batch, "rounds": rounds}
    print(json.dumps(result | more))


if __name__ == "__main__":
    try:
        fire.Fire(main, ["--", "--help"] if "--help" in sys.argv else None)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
