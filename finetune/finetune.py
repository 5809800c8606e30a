"""Tune a checkpoint on instruction rows: a LoRA adapter (or all weights), supervised to the token.

    python finetune/finetune.py --base_model checkpoints/base --data_path train.jsonl --output_dir adapters/ie
    torchrun --nproc_per_node 8 finetune/finetune.py --base_model B --data_path D --output_dir O --bf16 \
        --batch_size 128 --micro_batch_size 4 --lora_target_modules [q_proj,k_proj,v_proj,o_proj]

The folder it writes is an adapter with everything that belongs to it: weights, tokenizer, chat_template.jinja (the
prompt format travels with the weights), extraction.json where given, run.json, the loss as train_log.jsonl and PNG.
The loss of a step is the mean over all supervised tokens of the global batch, whatever the micro batches and ranks.
SIGTERM ends a run after the current step with a checkpoint and exit status 143; the same command with
--resume_from_checkpoint True resumes it.
"""

from command_line.command_errors import run_command
from command_line.trainer_options import help_text

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chat_prompts.prompt_encoding import PromptEncoder
from instruction_data.data_sources import Source, find_sources
from instruction_data.named_templates import choose_template, load_template
from instruction_tuning.tuning_data import Data, arrange, encode_all, questions
from instruction_tuning.tuning_options import TuningOptions
from instruction_tuning.tuning_preview import decoded, describe, draw_lengths
from rank_group.rank_errors import user_errors_in_turn

if TYPE_CHECKING:
    from instruction_tuning.tuning_arguments import TuningArguments

# A run that failed before its first checkpoint leaves no other files.
FILES_BEFORE_TRAINING = {"train_log.jsonl", "row_lengths.png", "runs", ".partial", "pissa_start.safetensors"}


def check_folders(args: "TuningArguments", sources: list[Source]) -> Path | None:
    """The checkpoint to resume from; raises FileNotFoundError or ValueError on missing or unusable files and folders.

    Sets --extraction_path to the extraction.json beside the data, if it is not given.
    """
    from resumable_checkpoints.complete_checkpoints import list_checkpoints, resume_point
    from training_loop.run_folders import check_base

    check_base(Path(args.base_model), "--base_model")
    if args.eval_data_path and not Path(args.eval_data_path).is_file():
        raise FileNotFoundError(f"{args.eval_data_path} does not exist; --eval_data_path takes a file of rows")
    beside = sources[0].path.parent / "extraction.json"
    if not args.extraction_path and beside.is_file():
        args.extraction_path = str(beside)  # ie_build.py writes it beside the rows
    if args.extraction_path:
        if not Path(args.extraction_path).is_file():
            raise FileNotFoundError(
                f"{args.extraction_path} does not exist; --extraction_path takes an extraction.json"
            )
        json.loads(Path(args.extraction_path).read_text(encoding="utf-8"))
    output = Path(args.output_dir or "")
    checkpoint = resume_point(args.resume_from_checkpoint, output)
    found = {file.name for file in output.iterdir()} if output.is_dir() else {""} if output.exists() else set()
    incomplete = {folder.name for folder in list_checkpoints(output)}
    if not checkpoint and found - incomplete - FILES_BEFORE_TRAINING:
        raise ValueError(
            f"{output} exists and is not empty; name a new folder, or resume with --resume_from_checkpoint True"
        )
    return checkpoint


def next_steps(args: "TuningArguments") -> str:
    """The lines that say how to try the result and how to serve it."""
    output = (args.output_dir or "").rstrip("/")
    if args.method == "full":
        return (
            f"try it: python examples/generate_finetune.py --base_model {output} --interactive\n"
            f"serve it: python inference/launch_vllm.py --model {output} --port 8090"
        )
    return (
        f"try it: python examples/generate_lora.py --base_model {args.base_model} --lora_weights {output} "
        "--interactive\n"
        f"merge and serve it: python tools/weight_diff.py merge --path_zhixi {args.base_model} --path_lora {output} "
        f"--path_sfted {output}-merged && python inference/launch_vllm.py --model {output}-merged --port 8090"
    )


def show(args: "TuningArguments", tokenizer: Any, data: Data, skipped: list[str]) -> None:
    """Before training: what became of the rows, what was skipped, three rows as the model sees them."""
    colour = sys.stdout.isatty()
    for path in skipped:
        print(f"skipped {path}: not a file of rows")
    known = len(data.order.takes)
    print(describe(data.rows.parts[:known], len(data.held_out), data.rows.parts[known:]))
    takes = zip(data.rows.names, data.order.takes, strict=False)
    if args.mix:
        print("an epoch: " + ", ".join(f"{count} rows of {name}" for name, count in takes))
    for row in data.order.epoch(0)[:3] if args.show_rows else ():
        print("─" * 40 + "\n" + decoded(tokenizer, *data.rows[int(row)], colour))
    print("─" * 40, flush=True)


def announce(args: "TuningArguments", trainer: Any) -> None:
    """What is tuned, on what, in which steps."""
    weights = [getattr(weight, "ds_numel", weight.numel()) for weight in trainer.model.parameters()]
    tuned = [
        getattr(weight, "ds_numel", weight.numel()) for weight in trainer.model.parameters() if weight.requires_grad
    ]
    layout = trainer.layout
    micro = f"packed into lines of at most {layout.capacity} tokens" if layout.packed else f"{layout.micro} at a time"
    print(
        f"tuning {sum(tuned)} of {sum(weights)} weights on {args.device}: {args.max_steps} steps of {args.batch_size} "
        f"rows, {micro}, on {args.world_size} rank{'s' * (args.world_size > 1)}",
        flush=True,
    )


def load_arguments() -> type:
    """The class of all options; imports torch and transformers."""
    from instruction_tuning.tuning_arguments import TuningArguments

    return TuningArguments


@user_errors_in_turn()
def main(argv: list[str]) -> int:
    """Parse, check, load, train, save; returns the exit status."""
    if text := help_text(argv, TuningOptions, load_arguments, __doc__ or "", "finetune.py"):
        print(text)
        return 0
    from instruction_tuning.adapters import START, keep_pissa_start, load_model, refuse_unservable
    from instruction_tuning.tuning_arguments import parse
    from rank_group.ranks import is_first, leave_ranks

    args, notices = parse(argv, __doc__ or "")
    is_main = is_first()
    for notice in notices if is_main else ():
        print(f"notice: {notice}", file=sys.stderr)
    if args.prompt_template_name:
        load_template(args.prompt_template_name)  # which must exist before anything is loaded
    sources, skipped = find_sources(args.data_path)
    apart = [Source("held_out", Path(args.eval_data_path))] if args.eval_data_path else []
    checkpoint = check_folders(args, sources)
    if args.servable:
        refuse_unservable(args)

    from extraction_scores.held_out_answers import HeldOutAnswers
    from instruction_tuning.instruction_trainer import make_trainer, run_identity
    from instruction_tuning.result_folder import finish, stop_at
    from resumable_checkpoints.complete_checkpoints import remove_incomplete, step_of
    from resumable_checkpoints.run_state import check_same_run
    from training_loop.run_folders import save_result
    from training_loop.source_trainer import STOPPED
    from transformers import AutoTokenizer, set_seed
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.base_model, local_files_only=True)
    tokenizer.chat_template, origin = choose_template(
        args.prompt_template_name, tokenizer, args.base_model, args.resume_from_checkpoint
    )
    encoder = PromptEncoder(tokenizer)
    if is_main:
        print(f"prompt template: {origin}")
    data = arrange(args, encode_all(args, encoder, sources), encode_all(args, encoder, apart))
    identity = run_identity(args, data)
    if checkpoint:
        check_same_run(checkpoint, identity, "give the same options, or start in a new folder")
    output = Path(args.output_dir or "")
    if is_main:
        for notice in remove_incomplete(output):
            print(f"notice: {notice}", file=sys.stderr)
        show(args, tokenizer, data, skipped)
    if args.eval_generate:
        asked = questions(args, encoder, data, sources + apart)
        data.scores = HeldOutAnswers(encoder, asked, args.per_device_eval_batch_size, args.eval_max_new_tokens)
    set_seed(args.seed)
    model = load_model(args)
    adds_end = stop_at(model, encoder.stop_ids)
    if args.lora_init.startswith("pissa") and is_main:
        keep_pissa_start(model, output, bool(checkpoint))
    trainer = make_trainer(args, model, tokenizer, data, identity, step_of(checkpoint) if checkpoint else 0)
    if is_main:
        output.mkdir(parents=True, exist_ok=True)
        draw_lengths(data.rows.parts, output / "row_lengths.png")
        announce(args, trainer)
    result = trainer.train_until_stopped(checkpoint)
    if not trainer.stopped:
        add = partial(finish, trainer, args, sources, adds_end)
        save_result(trainer, add, last=lambda file: file.suffix == ".safetensors")
        if is_main:
            (output / START).unlink(missing_ok=True)
            seconds = result.metrics["train_runtime"]
            best = trainer.state.best_global_step if args.load_best_model_at_end else None
            chosen = f"; the weights of step {best}, the best by {args.metric_for_best_model}" if best else ""
            print(f"{output}: {result.global_step} steps in {seconds:.0f} s, loss {result.training_loss:.4f}{chosen}")
            print(next_steps(args))
    leave_ranks()
    return STOPPED if trainer.stopped else 0


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
