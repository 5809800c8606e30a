"""Tune a checkpoint on instruction data: a LoRA adapter or all weights, with the loss on the answers only.

    python finetune/finetune.py --base_model checkpoints/base --data_path train.jsonl --output_dir adapters/ie
    torchrun --nproc_per_node 8 finetune/finetune.py --base_model B --data_path D --output_dir O --bf16 \\
        --batch_size 128 --micro_batch_size 4 --lora_target_modules [q_proj,k_proj,v_proj,o_proj]

The output folder has the adapter or model, the tokenizer with chat_template.jinja (the prompt format), extraction.json
if there is one, run.json, and the losses as train_log.jsonl and PNG. The loss of a step is the mean over all supervised
tokens of the global batch, for any micro batch size and number of ranks. SIGTERM, SIGHUP or Ctrl-C ends a run after the
current step with a checkpoint and exit status 143; the same command with --resume_from_checkpoint True resumes it.
"""

from command_line.command_errors import run_command

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chat_prompts.prompt_encoding import PromptEncoder
from chat_prompts.template_files import read_templates
from instruction_data.data_sources import Source, find_sources
from instruction_data.named_templates import choose_template
from instruction_tuning.tuning_options import TuningOptions
from json_rows.row_files import read_json
from partial_folders.resume_journal import JOURNAL
from rank_group.rank_errors import user_errors_in_turn
from training_loop.trainer_options import help_text

if TYPE_CHECKING:
    from instruction_tuning.tuning_arguments import TuningArguments

# Files and folders that a run without a checkpoint may leave in its output folder; a new run may replace them.
FILES_BEFORE_TRAINING = {"train_log.jsonl", "runs", ".partial", "pissa_start.safetensors", JOURNAL}


def check_inputs(args: "TuningArguments", sources: list[Source]) -> None:
    """Raise FileNotFoundError or ValueError if an input is missing or unusable.

    If --extraction_path is not given, it is set to the extraction.json beside the first data file, if there is one.
    """
    from instruction_tuning.adapters import check_module_names
    from model_folders.own_code import from_folder
    from training_loop.run_folders import check_base
    from transformers import AutoConfig

    check_base(Path(args.base_model), "--base_model", args.trust_remote_code)
    config = from_folder(AutoConfig, Path(args.base_model), args.trust_remote_code).get_text_config()
    context = getattr(config, "max_position_embeddings", None) or args.cutoff_len
    if args.cutoff_len > context:
        raise ValueError(
            f"--cutoff_len {args.cutoff_len} is more than the context of {args.base_model}, {context} tokens; lower it"
        )
    check_module_names(args)
    if args.eval_data_path and not Path(args.eval_data_path).is_file():
        raise FileNotFoundError(f"{args.eval_data_path} does not exist; --eval_data_path takes a file of examples")
    default = sources[0].path.parent / "extraction.json"
    if not args.extraction_path and default.is_file():
        args.extraction_path = str(default)
    if args.extraction_path:
        read_json(args.extraction_path, "--extraction_path takes an extraction.json")


def check_output_dir(args: "TuningArguments") -> Path | None:
    """Return the checkpoint to resume from, or None for a new run.

    Raises ValueError if a new run would write into a folder with a finished run, checkpoints or other files, and
    FileNotFoundError or ValueError if there is no complete checkpoint to resume from.
    """
    from resumable_checkpoints.complete_checkpoints import is_new_run, list_checkpoints, list_complete, resume_point

    output = Path(args.output_dir or "")
    is_finished = any((output / name).is_file() for name in ("adapter_config.json", "config.json"))
    if is_finished and is_new_run(args.resume_from_checkpoint):
        more = "to train it further, give --resume_from_checkpoint True and a larger --num_epochs or --max_steps; or "
        raise ValueError(
            f"{output} holds a finished run, so nothing was done; {more * bool(list_complete(output))}name a new folder"
        )
    checkpoint = resume_point(args.resume_from_checkpoint, output)
    existing = {file.name for file in output.iterdir()} if output.exists() else set()
    incomplete = {folder.name for folder in list_checkpoints(output)}
    if not checkpoint and existing - incomplete - FILES_BEFORE_TRAINING:
        raise ValueError(
            f"{output} exists and is not empty; name a new folder, or resume with --resume_from_checkpoint True"
        )
    return checkpoint


@user_errors_in_turn()
def main(argv: list[str]) -> int:
    """Parse and check the options, then train; return the exit status."""
    arguments_module = partial(import_module, "instruction_tuning.tuning_arguments")  # imports torch
    if text := help_text(argv, TuningOptions, lambda: arguments_module().TuningArguments, __doc__ or "", "finetune.py"):
        print(text)
        return 0
    from instruction_tuning.tuning_arguments import parse
    from rank_group.ranks import is_first, leave_ranks
    from training_loop.run_folders import locked_output
    from transformers.utils import logging as transformers_logging

    args, notices = parse(argv, __doc__ or "")
    for notice in notices if is_first() else ():
        print(f"notice: {notice}", file=sys.stderr)
    sources = find_sources(args.data_path)
    check_inputs(args, sources)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    with locked_output(Path(args.output_dir or ""), Path(args.base_model)):
        status = train(args, sources, check_output_dir(args), is_first())
        leave_ranks()
    return status


def train(args: "TuningArguments", sources: list[Source], checkpoint: Path | None, is_main: bool) -> int:
    """Encode the data, load the model, train and save the result; return 0, or 143 after a stop signal."""
    from answer_generation.answer_scorer import AnswerScorer
    from exact_tokenizers.special_ids import correct_model_ids
    from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder
    from instruction_tuning.adapters import load_model_to_tune, save_pissa_start
    from instruction_tuning.instruction_trainer import make_trainer, tuning_identity
    from instruction_tuning.result_folder import add_stop_ids, complete_result
    from instruction_tuning.run_messages import preview, run_summary, untied_notice
    from instruction_tuning.tuning_data import encode_sources, held_out_rows, split_and_order
    from model_folders.own_code import from_folder
    from resumable_checkpoints.complete_checkpoints import remove_incomplete, step_of
    from resumable_checkpoints.run_state import check_same_run
    from training_loop.run_folders import check_savable
    from training_loop.source_trainer import STOPPED
    from transformers import AutoTokenizer, set_seed

    output = Path(args.output_dir or "")
    exact = exact_tokenizer_folder(args.base_model, args.trust_remote_code)
    tokenizer = from_folder(AutoTokenizer, exact, args.trust_remote_code)
    resumed = str(checkpoint) if checkpoint else None
    template, origin = choose_template(args.prompt_template_name, tokenizer, args.base_model, resumed)
    named = read_templates(args.base_model, named_only=True)
    tokenizer.chat_template = named | {"default": template} if named else template
    check_savable(tokenizer, f"the tokenizer of {args.base_model}")
    encoder = PromptEncoder(tokenizer)
    if is_main:
        print(f"prompt template: {origin}")
    held_out = [Source("held_out", Path(args.eval_data_path))] if args.eval_data_path else []
    data = split_and_order(args, encode_sources(args, encoder, sources), encode_sources(args, encoder, held_out))
    identity = tuning_identity(args, data)
    if checkpoint:
        check_same_run(checkpoint, identity, "give the same options, or start in a new folder")
    if is_main:
        for notice in remove_incomplete(output):
            print(f"notice: {notice}", file=sys.stderr)
        print(preview(args, tokenizer, data), flush=True)
    scorer = None
    if args.eval_generate:
        rows = held_out_rows(data, sources + held_out)
        scorer = AnswerScorer(encoder, rows, args.per_device_eval_batch_size, args.eval_max_new_tokens)
    set_seed(args.seed)
    model = load_model_to_tune(args)
    correct_model_ids(model, tokenizer, args.base_model)
    new_stop_ids = add_stop_ids(model, encoder.stop_ids)
    if new_stop_ids or args.method == "full":
        check_savable(model.generation_config, f"{args.base_model}/generation_config.json")
    if args.lora_init.startswith("pissa") and is_main:
        save_pissa_start(model, output, bool(checkpoint))
    trainer = make_trainer(args, model, tokenizer, data, identity, step_of(checkpoint) if checkpoint else 0)
    trainer.answer_scorer = scorer
    if is_main:
        if notice := untied_notice(args, model):
            print(f"notice: {notice}", file=sys.stderr)
        print(run_summary(args, trainer), flush=True)
    result = trainer.train_until_stopped(checkpoint)
    if trainer.stopped:
        return STOPPED
    complete = partial(complete_result, trainer, args, sources, new_stop_ids)
    save_tuned(args, trainer, complete, result, checkpoint, is_main)
    return 0


def save_tuned(
    args: "TuningArguments", trainer: Any, complete: Callable[[Path], None], result: Any, checkpoint: Path | None,
    is_main: bool,
) -> None:  # fmt: skip
    """Save the tuned model; print the summary and the next commands on the main process.

    complete: adds the other files of the result to the folder of the weights. result: returned by Trainer.train.
    checkpoint: the checkpoint from which the run was resumed, if any.
    """
    from instruction_tuning.adapters import PISSA_START
    from instruction_tuning.run_messages import next_commands
    from training_loop.run_folders import save_result

    save_result(trainer, complete, last=lambda file: file.suffix == ".safetensors")
    if not is_main:
        return
    output = Path(args.output_dir or "")
    (output / PISSA_START).unlink(missing_ok=True)
    best = trainer.state.best_global_step if args.load_best_model_at_end else None
    selected = f"; the weights of step {best}, the best by {args.metric_for_best_model}" if best else ""
    seconds = result.metrics["train_runtime"]
    steps = f"{result.global_step} step{'s' * (result.global_step != 1)}"
    since = f" since {checkpoint.name}" if checkpoint else ""
    loss = f", loss {result.training_loss:.4f}" if result.training_loss else ""  # 0 if no step remained
    print(f"{output}: {steps} in {seconds:.0f} s{since}{loss}{selected}")
    print(next_commands(args))


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
