"""Continue pretraining: all weights of a LLaMA-family checkpoint on a corpus, with Trainer and DeepSpeed ZeRO.

    python pretrain/train.py --model_name_or_path base --data_path corpus/all --output_dir trained
    deepspeed --num_gpus 2 pretrain/train.py --deepspeed pretrain/configs/zero3.json --bf16 \
        --model_name_or_path base --data_path corpus/all --output_dir trained --source_weights zh=0.6,en=0.4

The second line is also the one for two ranks on a machine without a GPU. Samples are packed into rows, and rows come in
the proportions of --source_weights, in an order that the seed alone decides. The result is a checkpoint folder;
checkpoint-* in it serve --resume_from_checkpoint True, which goes on as if nothing had happened.
Options: pretraining_arguments.py. Rows: sequence_packing/. The loop: pretraining_trainer.py, checkpointing.py.
"""

from command_line.command_errors import run_command
from command_line.trainer_options import help_text

import json
import os
import shutil
import sys
from dataclasses import asdict
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining.pretraining_options import PretrainingOptions

if TYPE_CHECKING:
    from corpus_files.corpus import Corpus
    from pretraining.pretraining_arguments import PretrainingArguments

STOPPED = 128 + 15  # the exit status of a program that SIGTERM ends


# --- training ---------------------------------------------------------------------------------------------------------


def load_model(args: "PretrainingArguments") -> Any:
    """The base with float32 weights, partitioned while loading under ZeRO-3.

    Mixed precision keeps them so beside 16-bit ones; under DeepSpeed it makes its float32 ones from the 16-bit ones.

    Raises ValueError where the checkpoint lacks weights (transformers would draw them at random), or there is no such
    attention backend.
    """
    import torch
    from sequence_packing import packed_attention
    from transformers import AutoModelForCausalLM
    from transformers.utils import is_flash_attn_2_available

    packed_attention.register()
    flash = args.device.type == "cuda" and (args.bf16 or args.fp16) and is_flash_attn_2_available()
    plain = (
        "sdpa" if args.no_packing or args.torch_compile else packed_attention.NAME
    )  # what is compiled keeps its shapes
    backend = args.attn_implementation or ("flash_attention_2" if flash else plain)
    try:
        loading: Any = AutoModelForCausalLM.from_pretrained(
            args.model_name_or_path, dtype=torch.float32, local_files_only=True, output_loading_info=True,
            attn_implementation=backend,
        )  # fmt: skip
    except ImportError as error:
        raise ValueError(f"--attn_implementation {backend} cannot be had here: {error}") from None
    model, loaded = loading
    wrong = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
    if wrong:
        raise ValueError(f"{args.model_name_or_path} lacks {len(wrong)} weights, {wrong[0]} for one; get it again")
    return model


# --- the result -------------------------------------------------------------------------------------------------------


def write_records(
    folder: Path, args: "PretrainingArguments", corpus: "Corpus", history: list[dict[str, float]]
) -> None:
    """run.json and training_curves.png."""
    from pretraining.training_log import draw_curves

    run = {
        "script": "pretrain/train.py",
        "arguments": args.to_sanitized_dict(),
        "seed": args.seed,
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed", "accelerate")},
        "data": {args.data_path: corpus.sidecar["sha256"]},
    }
    (folder / "run.json").write_text(json.dumps(run, indent=2, default=str, ensure_ascii=False) + "\n")
    draw_curves(history, folder / "training_curves.png", args.data_path)


def save(trainer: Any, tokenizer: Any, args: "PretrainingArguments", corpus: "Corpus") -> None:
    """Write the whole result beside its place, then move it file by file into --output_dir, config.json last.

    Every rank calls this: gathering the weights is a joint step. A folder without config.json is not finished.
    """
    output = Path(str(args.output_dir))
    scratch = output / ".partial"
    if args.should_save:
        shutil.rmtree(scratch, ignore_errors=True)
    trainer.save_model(str(scratch))
    if not args.should_save:
        return
    (scratch / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same
    tokenizer.save_pretrained(scratch)
    for name in ("tokenizer.model", "generation_config.json"):
        if Path(args.model_name_or_path, name).is_file():
            shutil.copyfile(Path(args.model_name_or_path, name), scratch / name)
    write_records(scratch, args, corpus, trainer.state.log_history)
    for file in sorted(scratch.iterdir(), key=lambda file: (file.name == "config.json", file.name)):
        file.chmod(0o644)  # safetensors writes files that only their owner may read
        file.replace(output / file.name)
    scratch.rmdir()


def join_ranks(argv: list[str]) -> list[str]:
    """Let the ranks that a launcher started meet; returns the options that they need on a machine without a GPU.

    There, Trainer would run each rank by itself unless it is told that the device is the CPU, accelerate would forget
    DeepSpeed unless its environment names it, and zero.Init sees a world of one unless the ranks have met before
    from_pretrained.
    """
    if "LOCAL_RANK" not in os.environ:
        return []
    import torch

    under_deepspeed = any(word.partition("=")[0] == "--deepspeed" for word in argv)
    if under_deepspeed:
        import deepspeed

        try:
            deepspeed.init_distributed()
        except torch.distributed.DistNetworkError:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise ValueError(
                f"the ranks cannot meet at {where}, perhaps since another run does; try deepspeed --master_port N"
            ) from None
    if torch.cuda.is_available():
        return []
    if under_deepspeed:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        forget_shared_memory()
    return ["--use_cpu", "True"]


def forget_shared_memory() -> None:
    """Let the memory that ranks without a GPU share go with them; DeepSpeed leaves some 60 MB a rank in /dev/shm.

    Every rank has opened it once all of them have met; from then on its name is of no use.
    """
    import torch

    torch.distributed.barrier()
    port, rank = os.environ.get("MASTER_PORT"), os.environ.get("RANK")
    for file in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*_{port}_{rank}"):
        file.unlink(missing_ok=True)


def leave_ranks() -> None:
    """Wait for the other ranks and part in order: one that ends while others still save may abort on its way out."""
    from pretraining.checkpointing import wait_for_ranks
    from torch import distributed

    wait_for_ranks()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def prepare(argv: list[str]) -> Any:
    """Everything before the first step: parse, check, plan, load. Returns the trainer and where it goes on from."""
    from corpus_files.corpus import Corpus
    from pretraining import checkpointing, preflight, universal_checkpoint
    from pretraining.pretraining_arguments import parse
    from pretraining.pretraining_trainer import PretrainingTrainer
    from pretraining.training_log import TrainingLog
    from sequence_packing.packed_batches import Collator, HeldOutRows, ScheduledRows, Streams
    from sequence_packing.packed_rows import Packing
    from sequence_packing.sampler import Schedule
    from transformers import AutoTokenizer, set_seed
    from transformers.utils import logging as transformers_logging

    args, notices = parse(argv + join_ranks(argv), __doc__ or "")
    preflight.check_launch(args)
    preflight.check_folders(args)
    output = Path(str(args.output_dir))
    checkpoint = preflight.checkpoint_of(args, output)
    corpus = Corpus(args.data_path)
    args.block_size = preflight.check_corpus(corpus, args.model_name_or_path, args.block_size)
    packing = Packing(args.block_size, not args.no_packing, args.eval_fraction, args.seed if args.eval_fraction else 0)
    rows = preflight.plan_rows(args, corpus, packing)
    streams, weights, more = preflight.source_weights(args, rows)
    schedule = Schedule(streams.sizes, weights, args.seed)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    now = checkpointing.RunState(
        corpus.sidecar["sha256"], asdict(packing), batch, args.seed, schedule.state(), 0, 0, args.world_size
    )
    begun, schedule = preflight.beginning(args.accept_changes, now, schedule, weights, checkpoint)
    if args.max_steps <= 0:
        taken = sum(size for name, size in streams.sizes.items() if weights.get(name))
        args.max_steps = ceil(args.num_train_epochs * taken / batch)
    if args.should_save:
        broken = checkpointing.remove_broken(output)
        for notice in [*notices, *more, *broken]:
            print(f"notice: {notice}", file=sys.stderr)
        print(
            f"{args.data_path}: {len(corpus)} samples, {corpus.sidecar['tokens']} tokens in {rows.to_train_on} rows of "
            f"{args.block_size} ({rows.efficiency:.1%} full); {batch} rows a step on {args.world_size} ranks "
            f"({args.device.type}), {args.max_steps} steps" + (f" from {checkpoint}" if checkpoint else ""),
            flush=True,
        )
    if args.disable_tqdm:
        transformers_logging.disable_progress_bar()
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path, local_files_only=True)
    model = load_model(args)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    backend = str(model.config._attn_implementation)
    held_out = HeldOutRows(corpus, rows, Streams.of(rows, "held_out", streams.by_type))
    trainer = PretrainingTrainer(
        ScheduledRows(corpus, rows, streams, schedule, args.max_steps * batch), held_out if len(held_out) else None,
        begun, checkpointing.step_of(checkpoint) if checkpoint else 0, TrainingLog(output / "train_log.jsonl"),
        preflight.seconds_per_token(args, corpus),
        model=model, args=args, data_collator=Collator(args.block_size, pad_id, packing.packed, backend),
        processing_class=tokenizer, callbacks=universal_checkpoint.prepare(args, checkpoint) if checkpoint else None,
    )  # fmt: skip
    return trainer, checkpoint


def load_arguments() -> type:
    """The class of all options; imports torch and transformers."""
    from pretraining.pretraining_arguments import PretrainingArguments

    return PretrainingArguments


def main(argv: list[str]) -> int:
    """Train and save; returns the exit status."""
    if text := help_text(argv, PretrainingOptions, load_arguments, __doc__ or "", "train.py"):
        print(text)
        return 0
    trainer, checkpoint = prepare(argv)
    args = trainer.args
    result = trainer.train_until_stopped(checkpoint)
    if trainer.stopped:
        if args.should_save:
            print(
                f"stopped by SIGTERM after step {result.global_step}, with a checkpoint; "
                "the same command with --resume_from_checkpoint True goes on",
                file=sys.stderr,
            )
    else:
        trainer.evaluate_at_end()
        save(trainer, trainer.processing_class, args, trainer.rows.corpus)
        if args.should_save:
            seconds = result.metrics["train_runtime"]
            print(f"{args.output_dir}: {result.global_step} steps in {seconds:.0f} s, loss {result.training_loss:.4f}")
    leave_ranks()
    return STOPPED if trainer.stopped else 0


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
