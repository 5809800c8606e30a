"""Continue pretraining: train all weights of a LLaMA-family checkpoint on a corpus, with Trainer and DeepSpeed ZeRO.

    python pretrain/train.py --model_name_or_path base --data_path corpus/all --output_dir trained
    deepspeed --num_gpus 2 pretrain/train.py --deepspeed pretrain/configs/zero3.json --bf16 \\
        --model_name_or_path base --data_path corpus/all --output_dir trained --source_weights zh=0.6,en=0.4

The second command starts two ranks; it also runs without a GPU. Samples are packed into sequences. --source_weights
gives the proportions of the sources; the order of the sequences depends on the seed, but not on the number of ranks.
The result is a checkpoint folder. --resume_from_checkpoint True resumes from the newest complete checkpoint-* in
--output_dir and gives, on the same number of ranks, the same final weights as an uninterrupted run. SIGTERM, SIGHUP or
Ctrl-C ends a run after the current step with a checkpoint and exit status 143.
Options: pretraining/pretraining_options.py. Packing: sequence_packing/. Loss: pretraining/pretraining_trainer.py.
"""

from command_line.command_errors import run_command

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining.pretraining_options import PretrainingOptions
from rank_group.rank_errors import user_errors_in_turn
from training_loop.trainer_options import help_text

if TYPE_CHECKING:
    from corpus_files.corpus import Corpus
    from pretraining.pretraining_arguments import PretrainingArguments
    from sequence_packing.packed_sequences import PackedSequences


def load_base(args: "PretrainingArguments") -> tuple[Any, Any]:
    """Load model and tokenizer of the base; weights are float32, as mixed precision requires.

    Raises ValueError if weights are missing or have other shapes than in config.json (transformers would initialise
    them at random), if the attention backend is not available, or if transformers could not save the tokenizer or the
    generation config.
    """
    import torch
    from exact_tokenizers.special_ids import correct_model_ids
    from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder
    from model_folders.attention_backends import attention_backend
    from model_folders.own_code import from_folder
    from packed_attention import segment_attention
    from training_loop.run_folders import check_savable, tying_options
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import is_flash_attn_2_available

    segment_attention.register()
    flash = args.device.type == "cuda" and (args.bf16 or args.fp16) and is_flash_attn_2_available()
    # sdpa_by_segment is not used without packing, which has no segments, nor with torch.compile, which would recompile
    # for every combination of segment lengths.
    default = None if args.no_packing or args.torch_compile else segment_attention.NAME
    requested = args.attn_implementation or ("flash_attention_2" if flash else default)
    config = from_folder(AutoConfig, args.model_name_or_path, args.trust_remote_code)
    backend = attention_backend(config, requested) or "sdpa"
    try:
        loading: Any = from_folder(
            AutoModelForCausalLM, args.model_name_or_path, args.trust_remote_code, dtype=torch.float32,
            output_loading_info=True, attn_implementation=backend, **tying_options(Path(args.model_name_or_path)),
        )  # fmt: skip
    except ImportError as error:
        raise ValueError(f"--attn_implementation {backend} is not available here: {error}") from None
    model, loaded = loading
    wrong = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
    if wrong:
        raise ValueError(
            f"{args.model_name_or_path}: weights are missing or have another shape than in config.json: "
            f"{len(wrong)}, such as {wrong[0]}; download the checkpoint again"
        )
    if (unknown := sorted(loaded["unexpected_keys"])) and args.should_save:
        line = f"{len(unknown)} tensors of {args.model_name_or_path} are not part of the model, such as {unknown[0]}"
        print(f"notice: {line}; they are not read", file=sys.stderr)
    folder = exact_tokenizer_folder(args.model_name_or_path, args.trust_remote_code)
    tokenizer = from_folder(AutoTokenizer, folder, args.trust_remote_code)
    check_savable(tokenizer, f"the tokenizer of {args.model_name_or_path}")
    correct_model_ids(model, tokenizer, args.model_name_or_path)
    check_savable(model.generation_config, f"{args.model_name_or_path}/generation_config.json")
    return model, tokenizer


def run_summary(
    args: "PretrainingArguments", corpus: "Corpus", sequences: "PackedSequences", batch: int, checkpoint: Path | None
) -> str:
    """Return a line about data, global batch and steps of the run. batch: sequences per step."""
    from corpus_files.corpus import counted

    return (
        f"{args.data_path}: {counted(len(corpus), 'sample')}, {counted(corpus.sidecar['tokens'], 'token')} in "
        f"{counted(sequences.train_count, 'sequence')} of {args.block_size} ({sequences.efficiency:.1%} full); "
        f"{counted(batch, 'sequence')} per step on {counted(args.world_size, 'rank')} ({args.device.type}), "
        f"{counted(args.max_steps, 'step')}" + (f" from {checkpoint}" if checkpoint else "")
    )


def make_trainer(args: "PretrainingArguments", notices: list[str]) -> tuple[Any, Path | None]:
    """Check the options, pack the corpus and load the model.

    notices: lines to print. Returns the trainer, and the checkpoint to resume from (None for a new run). Raises
    ValueError or OSError if the options do not fit the corpus, the base or the checkpoint.
    """
    from corpus_files.corpus import Corpus
    from pretraining import preflight, universal_checkpoint
    from pretraining.pretraining_trainer import PretrainingTrainer
    from resumable_checkpoints.complete_checkpoints import remove_incomplete, resume_point
    from sequence_packing.packed_sequences import Packing
    from sequence_packing.sampler import SequenceOrder
    from sequence_packing.sequence_batches import Collator, HeldOutSequences, SourceGroups, TrainingSequences
    from training_loop.resumed_settings import check_steps
    from training_loop.run_folders import check_base
    from training_loop.trainer_options import count_epochs_in_steps
    from transformers import set_seed
    from transformers.utils import logging as transformers_logging

    preflight.check_launch(args)
    check_base(Path(args.model_name_or_path), "--model_name_or_path", args.trust_remote_code)
    output = Path(str(args.output_dir))
    preflight.check_not_finished(output)
    checkpoint = resume_point(args.resume_from_checkpoint, output)
    corpus = Corpus(args.data_path)
    args.block_size = preflight.check_corpus(corpus, args.model_name_or_path, args.block_size)
    seed, seed_option = (args.seed, "--seed") if args.data_seed is None else (args.data_seed, "--data_seed")
    packing = Packing(args.block_size, not args.no_packing, args.eval_fraction, seed if args.eval_fraction else 0)
    sequences = preflight.pack_corpus(args, corpus, packing)
    groups, weights, weight_notices = preflight.source_weights(args, sequences)
    order = SequenceOrder(groups.sizes, weights, seed)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    identity = preflight.pretraining_identity(corpus, packing, batch, order, seed_option)
    start, order = preflight.start_point(identity, order, weights, checkpoint, args.accept_changes)
    if args.max_steps <= 0:
        args.max_steps = preflight.steps_of_epochs(args.num_train_epochs, groups, weights, batch)
    check_steps(args.max_steps, start.step)
    count_epochs_in_steps(args, preflight.steps_of_epochs(1, groups, weights, batch))
    args.warmup_steps *= args.max_steps > 1  # the only step of a run with a warm-up would have learning rate 0
    if args.should_save:
        for notice in [*notices, *weight_notices, *remove_incomplete(output)]:
            print(f"notice: {notice}", file=sys.stderr)
        print(run_summary(args, corpus, sequences, batch, checkpoint), flush=True)
    if args.disable_tqdm:
        transformers_logging.disable_progress_bar()
    set_seed(args.seed)
    model, tokenizer = load_base(args)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    training_data = TrainingSequences(corpus, sequences, groups, order, args.max_steps * batch)
    held_out = HeldOutSequences(corpus, sequences, SourceGroups.of_split(sequences, "held_out", groups.by_type))
    trainer = PretrainingTrainer(
        training_data, held_out if len(held_out) else None, identity, start, preflight.seconds_per_token(args, corpus),
        log_path=output / "train_log.jsonl", model=model, args=args, processing_class=tokenizer,
        data_collator=Collator(args.block_size, pad_id, packing.packed),
        callbacks=universal_checkpoint.prepare(args, checkpoint) if checkpoint else None,
    )  # fmt: skip
    return trainer, checkpoint


def arguments_class() -> type:
    """Return the dataclass of all options, for --help=all; imports torch and transformers."""
    from pretraining.pretraining_arguments import PretrainingArguments

    return PretrainingArguments


def finish(trainer: Any, folder: Path) -> None:
    """Add run.json and training_curves.png to a saved model, and copy small files of the base."""
    from exact_tokenizers.special_ids import has_old_ids
    from exact_tokenizers.tokenizer_folders import read_object
    from training_loop.run_folders import copy_if_there, copy_model_code, run_record
    from training_loop.training_log import draw_curves

    args = trainer.args
    base = Path(args.model_name_or_path)
    copy_if_there(base / "tokenizer.model", folder / "tokenizer.model")
    if not has_old_ids(read_object(base / "generation_config.json")):  # otherwise Trainer has saved the corrected file
        copy_if_there(base / "generation_config.json", folder / "generation_config.json")
    copy_model_code(base, folder)
    data = {args.data_path: trainer.sequences.corpus.sidecar["sha256"]}
    (folder / "run.json").write_text(run_record("pretrain/train.py", args, ["deepspeed"], data=data))
    draw_curves(trainer.state.log_history, folder / "training_curves.png", args.data_path)


@user_errors_in_turn()
def main(argv: list[str]) -> int:
    """Parse the options, lock the output folder, and train; return the exit status."""
    if text := help_text(argv, PretrainingOptions, arguments_class, __doc__ or "", "train.py"):
        print(text)
        return 0
    from pretraining.pretraining_arguments import parse
    from rank_group.ranks import leave_ranks
    from training_loop.run_folders import locked_output

    args, notices = parse(argv, __doc__ or "")
    with locked_output(Path(str(args.output_dir)), Path(args.model_name_or_path)):
        status = train(args, notices)
        leave_ranks()
    return status


def train(args: "PretrainingArguments", notices: list[str]) -> int:
    """Train and save the result; return 0, or 143 after a stop signal."""
    trainer, checkpoint = make_trainer(args, notices)
    from corpus_files.corpus import counted
    from training_loop.run_folders import save_result
    from training_loop.source_trainer import STOPPED

    if args.eval_only:
        metrics = trainer.evaluate_untrained()
        if args.should_save:
            found = ", ".join(
                f"{name.removeprefix('eval_')} {value:.4f}" for name, value in metrics.items() if name != "epoch"
            )
            print(f"{args.model_name_or_path}: {found}")
        return 0
    result = trainer.train_until_stopped(checkpoint)
    if not trainer.stopped:
        save_result(trainer, partial(finish, trainer), last=lambda file: file.name == "config.json")
        if args.should_save:
            seconds = result.metrics["train_runtime"]
            time = f"{seconds:.0f} s{f' since {checkpoint.name}' if checkpoint else ''}"
            steps = counted(result.global_step, "step")
            loss = f", loss {result.training_loss:.4f}" if result.training_loss else ""  # 0 if no step remained
            print(f"{args.output_dir}: {steps} in {time}{loss}")
    return STOPPED if trainer.stopped else 0


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
