"""Checks and plans before anything is loaded: launch, corpus, rows, their proportions, where the run starts."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from corpus_files.corpus import Corpus
from resumable_checkpoints.complete_checkpoints import step_of
from resumable_checkpoints.run_state import RunState, check_same_run, differences
from sequence_packing.packed_batches import Streams
from sequence_packing.packed_rows import Packing, Rows, open_rows
from sequence_packing.sampler import Schedule, parse_weights

from pretraining.memory_estimate import SPEEDS, flops_per_token, read_shape
from pretraining.pretraining_arguments import PretrainingArguments
from pretraining.pretraining_trainer import StartPoint

BATCH = "rows of a step (--per_device_train_batch_size x --gradient_accumulation_steps x ranks)"
WEIGHTS = "--source_weights"
LONGEST_ROW = 4096  # tokens, without --block_size


# --- launch and corpus ------------------------------------------------------------------------------------------------


def check_launch(args: PretrainingArguments) -> None:
    """Raise ValueError where the ranks that were launched are not the ranks that Trainer sees."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != launched:
        raise ValueError(
            f"{launched} ranks were launched and Trainer sees {args.world_size}; "
            "start them with deepspeed, torchrun or accelerate launch"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs; start one for each: deepspeed --num_gpus {args.n_gpu} "
            "pretrain/train.py …, or name one: CUDA_VISIBLE_DEVICES=0"
        )


def check_corpus(corpus: Corpus, base: str, block_size: int) -> int:
    """The tokens of a row; raises ValueError on a corpus made for another tokenizer, vocabulary or context."""
    from tokenizers import Tokenizer

    config = json.loads(Path(base, "config.json").read_text(encoding="utf-8"))
    pieces = Tokenizer.from_file(f"{base}/tokenizer.json").get_vocab(with_added_tokens=True)
    table = "".join(f"{i}\t{json.dumps(piece)}\n" for piece, i in sorted(pieces.items(), key=lambda item: item[1]))
    if hashlib.sha256(table.encode()).hexdigest() != corpus.fingerprint:
        raise ValueError(
            f"{corpus.prefix} was written with another tokenizer than that of {base}; "
            f"write it again: python pretrain/preprocess.py --mode write --tokenizer_path {base} …"
        )
    if corpus.vocab_size > config["vocab_size"]:
        raise ValueError(
            f"{corpus.prefix} may hold ids up to {corpus.vocab_size - 1}, and {base} has {config['vocab_size']} "
            "embeddings; it is the wrong checkpoint, or its embeddings were not enlarged with its tokenizer"
        )
    context = config.get("max_position_embeddings", max(LONGEST_ROW, block_size))
    if block_size > context:
        raise ValueError(f"--block_size {block_size} is over the context of {base}, {context}; lower it")
    return block_size or min(context, LONGEST_ROW)


def seconds_per_token(args: PretrainingArguments, corpus: Corpus) -> float:
    """Seconds that a token takes at the GPUs' peak of floating-point operations; 0 where the peak is not known.

    A token attends to those before it in its sample, however samples share rows.
    """
    known = [peak for name, (peak, _) in SPEEDS.items() if name in gpu_name(args).lower()]
    peak = args.peak_tflops * 1e12 or max(known, default=0.0)
    try:
        shape = read_shape(Path(args.model_name_or_path))
    except ValueError:  # of another family
        return 0.0
    lengths = corpus.lengths[:1_000_000].astype(float)
    flops = flops_per_token(shape, int((lengths**2).sum() / lengths.sum()))
    return flops / (peak * args.world_size) if peak else 0.0


def gpu_name(args: PretrainingArguments) -> str:
    """The name that the GPU reports; empty without a GPU."""
    import torch

    return torch.cuda.get_device_name() if args.device.type == "cuda" else ""


# --- rows and their order ---------------------------------------------------------------------------------------------


def source_weights(args: PretrainingArguments, rows: Rows) -> tuple[Streams, dict[str, Any], list[str]]:
    """Streams, their weights, and notices. Raises ValueError where the options do not fit the corpus."""
    by_name, by_type = Streams.of(rows, "rows"), Streams.of(rows, "rows", by_type=True)
    if not args.global_batch_distributed:
        names = {pair.partition("=")[0].strip() for pair in args.source_weights.split(",")}
        streams = by_type if names & {*by_type.names} and not names & {*by_name.names} else by_name
        return streams, parse_weights(args.source_weights, streams.sizes), []
    if args.source_weights != "size":
        raise ValueError("--global_batch_distributed and --source_weights say the same thing; give one of them")
    words = args.global_batch_distributed.strip("[]() ").split(",")
    types = sorted(by_type.names, key=int)
    if not all(word.strip().isdecimal() for word in words) or len(words) != len(types):
        raise ValueError(
            f"--global_batch_distributed {args.global_batch_distributed} is not a list of {len(types)} numbers, "
            f"one for each of the corpus's types {', '.join(types)}"
        )
    weights = dict(zip(types, map(int, words), strict=True))
    batch = args.per_device_train_batch_size * args.world_size
    notice = (
        f"--global_batch_distributed {args.global_batch_distributed} sums to {sum(weights.values())}, and "
        f"{args.world_size} ranks x {args.per_device_train_batch_size} rows are {batch}; it is read as proportions"
    )
    return by_type, weights, [notice] if sum(weights.values()) != batch else []


def plan_rows(args: PretrainingArguments, corpus: Corpus, packing: Packing) -> Rows:
    """The rows of the corpus; one process of each machine makes them where they are not there yet."""
    with args.main_process_first(local=True, desc="packing samples into rows"):
        rows = open_rows(corpus, packing, Path(str(args.output_dir)))
    check_rows(rows, args.world_size)
    return rows


def check_rows(rows: Rows, ranks: int) -> None:
    """Raise ValueError where there are fewer rows than ranks."""
    if rows.to_train_on < ranks:
        raise ValueError(
            f"there are {rows.to_train_on} rows of {rows.packing.block_size} tokens for {ranks} ranks; "
            "start fewer, lower --block_size, or take a larger corpus"
        )


def run_identity(corpus: Corpus, packing: Packing, global_batch: int, schedule: Schedule) -> dict[str, Any]:
    """What must be equal for a run to be the continuation of another one; see RunState."""
    return {
        "--data_path": "-".join(digest[:16] for digest in corpus.sidecar["sha256"].values()),
        "--block_size": packing.block_size,
        "--no_packing": not packing.packed,
        "--eval_fraction": packing.eval_fraction,
        "--seed": schedule.seed,
        BATCH: global_batch,
        WEIGHTS: dict(zip(schedule.names, schedule.segments[-1].counts, strict=True)),
    }


def start_point(
    identity: dict[str, Any], schedule: Schedule, weights: dict[str, Any], checkpoint: Path | None, accept_changes: bool
) -> tuple[StartPoint, Schedule]:
    """Where the run starts or resumes, and the schedule from there on.

    Raises ValueError where the checkpoint is of another run, unless changes are accepted: other weights then begin a
    new segment of its schedule, and another corpus, packing, seed or list of sources begins the new schedule.
    """
    if not checkpoint:
        return StartPoint(), schedule
    if not accept_changes:
        check_same_run(checkpoint, identity, "to resume it with these changes, give --accept_changes")
    saved = RunState.read(checkpoint)
    changes = differences(saved.identity, identity)
    step, tokens = step_of(checkpoint), saved.progress["tokens"]
    if changes.keys() - {BATCH, WEIGHTS} or saved.identity[WEIGHTS].keys() != identity[WEIGHTS].keys():
        return StartPoint(step, 0, tokens), schedule
    resumed = Schedule.restore(saved.progress["schedule"])
    resumed.reweighted(weights, saved.progress["next_row"])
    return StartPoint(step, saved.progress["next_row"], tokens), resumed
