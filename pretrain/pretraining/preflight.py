"""Checks before the model is loaded: launch, corpus, packed sequences, source weights, start of the run."""

import json
import os
from math import ceil
from pathlib import Path
from typing import Any

from corpus_files.corpus import Corpus
from memory_estimate.model_shape import DEFAULTS, read_shape
from resumable_checkpoints.complete_checkpoints import list_complete, step_of
from resumable_checkpoints.run_state import RunState, check_same_run, differences
from sequence_packing.packed_sequences import PackedSequences, Packing, open_packed_sequences
from sequence_packing.sampler import SequenceOrder, parse_weights
from sequence_packing.sequence_batches import SourceGroups

from pretraining.pretraining_arguments import PretrainingArguments
from pretraining.pretraining_options import MAX_DEFAULT_BLOCK
from pretraining.pretraining_trainer import StartPoint
from pretraining.training_speed import SPEEDS, flops_per_token

BATCH = "global batch (--per_device_train_batch_size x --gradient_accumulation_steps x ranks)"
WEIGHTS = "--source_weights"


def check_launch(args: PretrainingArguments) -> None:
    """Raise ValueError if Trainer does not see the launched number of ranks, or a process sees several GPUs."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != launched:
        raise ValueError(
            f"{launched} ranks were launched, but Trainer sees {args.world_size}; "
            "start them with deepspeed, torchrun or accelerate launch"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs; start a process for each GPU: deepspeed --num_gpus {args.n_gpu} "
            "pretrain/train.py …, or name one GPU: CUDA_VISIBLE_DEVICES=0"
        )


def check_not_finished(output: Path) -> None:
    """Raise ValueError if the output folder holds a finished run; the message says how to train it further."""
    if (output / "config.json").exists():
        options = f"--model_name_or_path {output} and a new --output_dir"
        if complete := list_complete(output):
            options = f"a new --output_dir, --resume_from_checkpoint {complete[-1]} and a larger --max_steps"
        raise ValueError(f"{output} holds a finished run, so nothing was done; to train it further, give {options}")


def check_corpus(corpus: Corpus, base: str, block_size: int) -> int:
    """Check that a corpus and --block_size fit the base; return the block size: the default if `block_size` is 0.

    Raises ValueError if the corpus has another tokenizer or a larger vocabulary than the base, or block_size exceeds
    the context length of the base, FileNotFoundError if the base has no tokenizer.
    """
    from corpus_tokenizer.document_encoder import load_encoder
    from corpus_tokenizer.tokenizer_identity import identity_differences
    from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder

    config = json.loads(Path(base, "config.json").read_text(encoding="utf-8"))
    folder = exact_tokenizer_folder(base)
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{base} has neither a tokenizer.json nor a SentencePiece tokenizer.model; add its tokenizer.json"
        )
    different = identity_differences(corpus.sidecar["tokenizer"], load_encoder(folder, "reference").identity)
    if different:
        raise ValueError(
            f"{corpus.prefix} was not written with the tokenizer of {base}: they differ in {different}; "
            f"write it again: python pretrain/preprocess.py --mode write --tokenizer_path {base} …"
        )
    if corpus.vocab_size > config["vocab_size"]:
        raise ValueError(
            f"{corpus.prefix} may have ids up to {corpus.vocab_size - 1}, but {base} has {config['vocab_size']} "
            "embeddings; use another checkpoint, or enlarge its embeddings"
        )
    *_, default = DEFAULTS.get(config.get("model_type"), (None, None, max(MAX_DEFAULT_BLOCK, block_size)))
    context = config.get("max_position_embeddings") or default
    if block_size > context:
        raise ValueError(f"--block_size {block_size} exceeds the context of {base}, {context} tokens; lower it")
    return block_size or min(context, MAX_DEFAULT_BLOCK)


def seconds_per_token(args: PretrainingArguments, corpus: Corpus) -> float:
    """Return the time per token at the peak FLOP/s of all GPUs, in seconds; 0 if peak or architecture is not known.

    Attention is counted within samples only, since the samples of a packed sequence do not attend to each other.
    """
    import torch

    gpu = torch.cuda.get_device_name().lower() if args.device.type == "cuda" else ""
    known = [peak for name, (peak, _) in SPEEDS.items() if name in gpu]
    peak = args.peak_tflops * 1e12 or max(known, default=0.0)
    try:
        shape = read_shape(Path(args.model_name_or_path))
    except ValueError:  # another architecture
        return 0.0
    lengths = corpus.lengths[:1_000_000].astype(float)
    flops = flops_per_token(shape, int((lengths**2).sum() / lengths.sum()))
    return flops / (peak * args.world_size) if peak else 0.0


def source_weights(
    args: PretrainingArguments, sequences: PackedSequences
) -> tuple[SourceGroups, dict[str, Any], list[str]]:
    """Return the source groups, the weight of each, and notices for the user.

    Raises ValueError if the options do not fit the corpus.
    """
    by_name, by_type = (SourceGroups.of_split(sequences, "train", by_type=by_type) for by_type in (False, True))
    if not args.global_batch_distributed:
        names = {pair.partition("=")[0].strip() for pair in args.source_weights.split(",")}
        groups = by_type if names & {*by_type.names} and not names & {*by_name.names} else by_name
        return groups, parse_weights(args.source_weights, groups.sizes), []
    if args.source_weights != "size":
        raise ValueError("--global_batch_distributed and --source_weights exclude each other; give one of them")
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
        f"--global_batch_distributed {args.global_batch_distributed} sums to {sum(weights.values())}, but "
        f"{args.world_size} ranks x {args.per_device_train_batch_size} sequences are {batch}; its numbers are used as "
        "proportions"
    )
    return by_type, weights, [notice] if sum(weights.values()) != batch else []


def pack_corpus(args: PretrainingArguments, corpus: Corpus, packing: Packing) -> PackedSequences:
    """Open the packed sequences of the corpus; one process of each machine packs them if necessary.

    Raises ValueError if there are fewer training sequences than ranks.
    """
    with args.main_process_first(local=True, desc="packing samples into sequences"):
        sequences = open_packed_sequences(corpus, packing, Path(str(args.output_dir)))
    if sequences.train_count < args.world_size:
        raise ValueError(
            f"the corpus has fewer training sequences of {packing.block_size} tokens ({sequences.train_count}) than "
            f"ranks ({args.world_size}); start fewer ranks, lower --block_size, or use a larger corpus"
        )
    return sequences


def steps_of_epochs(epochs: float, groups: SourceGroups, weights: dict[str, Any], global_batch: int) -> int:
    """Return the number of steps in `epochs` epochs; an epoch has the sequences of all groups with a weight above 0."""
    return ceil(epochs * sum(size for name, size in groups.sizes.items() if weights.get(name)) / global_batch)


def pretraining_identity(
    corpus: Corpus, packing: Packing, global_batch: int, order: SequenceOrder, seed_option: str = "--seed"
) -> dict[str, Any]:
    """Return the settings that must be equal in a run and in the run that resumes it; see RunState.

    seed_option: the option that gives the seed of the order, --seed or --data_seed.
    """
    return {
        "--data_path": "-".join(digest[:16] for digest in corpus.sidecar["sha256"].values()),
        "--block_size": packing.block_size,
        "--no_packing": not packing.packed,
        "--eval_fraction": packing.eval_fraction,
        seed_option: order.seed,
        BATCH: global_batch,
        WEIGHTS: dict(zip(order.names, order.phases[-1].counts, strict=True)),
    }


def start_point(
    identity: dict[str, Any],
    order: SequenceOrder,
    weights: dict[str, Any],
    checkpoint: Path | None,
    accept_changes: bool,
) -> tuple[StartPoint, SequenceOrder]:
    """Return where the run starts or resumes, and the order of the sequences from there on.

    order: the order of a new run. Raises ValueError if the checkpoint belongs to a run with other settings and
    accept_changes is False. If at most the weights or the global batch differ, the order of the checkpoint continues,
    with any new weights from there on. If anything else differs, step and token count continue, but the run trains on
    `order` from its first sequence.
    """
    if not checkpoint:
        return StartPoint(), order
    if not accept_changes:
        check_same_run(checkpoint, identity, "to resume it with these changes, give --accept_changes")
    saved = RunState.read(checkpoint)
    changes = differences(saved.identity, identity)
    step, tokens = step_of(checkpoint), saved.progress["tokens"]
    if changes.keys() - {BATCH, WEIGHTS} or saved.identity[WEIGHTS].keys() != identity[WEIGHTS].keys():
        return StartPoint(step, 0, tokens), order
    resumed = SequenceOrder.restore(saved.progress["schedule"])
    resumed.change_weights(weights, saved.progress["next_index"])
    return StartPoint(step, saved.progress["next_index"], tokens), resumed
