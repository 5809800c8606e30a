"""Tune a checkpoint on instruction rows: a LoRA adapter (or all weights), supervised to the token.

    python finetune/finetune.py --base_model checkpoints/base --data_path train.jsonl --output_dir adapters/ie
    torchrun --nproc_per_node 8 finetune/finetune.py --base_model B --data_path D --output_dir O --bf16 \
        --batch_size 128 --micro_batch_size 4 --lora_target_modules [q_proj,k_proj,v_proj,o_proj]

The folder it writes is an adapter with everything that belongs to it: weights, tokenizer, chat_template.jinja (the
prompt format travels with the weights), extraction.json where given, run.json, the loss as train_log.jsonl and PNG.
The loss of a step is the mean over all supervised tokens of the global batch, whatever the micro batches and ranks.
"""

from command_line.command_errors import run_command
from command_line.trainer_options import help_text

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chat_prompts.prompt_encoding import PromptEncoder
from instruction_data.named_templates import choose_template, load_template
from instruction_data.row_files import Source, find_sources
from instruction_tuning.ranks import is_first, launched, part
from instruction_tuning.tuning_data import Data, arrange, encode_all, questions
from instruction_tuning.tuning_log import TuningLog, decoded, describe, draw_lengths
from instruction_tuning.tuning_options import TuningOptions

if TYPE_CHECKING:
    from instruction_tuning.tuning_arguments import TuningArguments

LEFT_BY_A_FAILED_START = {"train_log.jsonl", "row_lengths.png", "runs", ".partial", "pissa_start.safetensors"}


def check_folders(args: "TuningArguments", sources: list[Source]) -> None:
    """Raise FileNotFoundError or ValueError on what would fail later, before anything is loaded or written."""
    base, output = Path(args.base_model), Path(args.output_dir or "")
    if not base.is_dir():
        raise FileNotFoundError(f"{base} does not exist; --base_model takes a checkpoint folder (tools/download.py)")
    if not (base / "config.json").is_file():
        if (base / "adapter_config.json").is_file():
            raise ValueError(f"{base} is an adapter; merge it first: python tools/weight_diff.py merge …")
        raise FileNotFoundError(f"{base} has no config.json, so it is no checkpoint folder; name one with --base_model")
    if not (base / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{base} has no tokenizer.json; build it: python tools/build_tokenizer.py "
            f"--tokenizer_model {base}/tokenizer.model --output_dir {base}"
        )
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
    args.resume_from_checkpoint = resume_point(args.resume_from_checkpoint, output)
    left = {file.name for file in output.iterdir()} if output.is_dir() else {""} if output.exists() else set()
    if not args.resume_from_checkpoint and left - LEFT_BY_A_FAILED_START:
        raise ValueError(
            f"{output} exists and is not empty; name a new folder, or go on with --resume_from_checkpoint True"
        )


def resume_point(given: str | None, output: Path) -> str | None:
    """The checkpoint to go on from: a path as it is, "last" as the newest in `output`; it must be there."""
    if not given:
        return None
    if given == "last":
        found = sorted(output.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
        if not found:
            raise FileNotFoundError(f"{output} holds no checkpoint-*; start without --resume_from_checkpoint")
        return str(found[-1].parent)
    if not Path(given, "trainer_state.json").is_file():
        raise FileNotFoundError(f"{given} is no checkpoint to resume from (no trainer_state.json); name a checkpoint-*")
    return given


def step_of(checkpoint: str) -> int:
    """The step after which a checkpoint was written."""
    return json.loads(Path(checkpoint, "trainer_state.json").read_text())["global_step"]


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


def main(argv: list[str]) -> None:
    """Parse, check, load, train, save."""
    if text := help_text(argv, TuningOptions, load_arguments, __doc__ or "", "finetune.py"):
        print(text)
        return
    from instruction_tuning.adapters import keep_pissa_start, load_model, refuse_unservable
    from instruction_tuning.tuning_arguments import parse

    args, notices = parse(argv, __doc__ or "")
    is_main = is_first()
    for notice in notices if is_main else ():
        print(f"notice: {notice}", file=sys.stderr)
    if args.prompt_template_name:
        load_template(args.prompt_template_name)  # which must exist before anything is loaded
    sources, skipped = find_sources(args.data_path)
    apart = [Source("held_out", Path(args.eval_data_path))] if args.eval_data_path else []
    check_folders(args, sources)
    if args.servable:
        refuse_unservable(args)

    from extraction_scores.held_out_answers import HeldOutAnswers
    from instruction_tuning.instruction_trainer import make_trainer
    from instruction_tuning.result_folder import save, stop_at
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
    if is_main:
        show(args, tokenizer, data, skipped)
    if args.eval_generate:
        asked = questions(args, encoder, data, sources + apart)
        data.scores = HeldOutAnswers(encoder, asked, args.per_device_eval_batch_size, args.eval_max_new_tokens)
    set_seed(args.seed)
    model = load_model(args)
    adds_end = stop_at(model, encoder.stop_ids)
    output = Path(args.output_dir or "")
    resumed = args.resume_from_checkpoint
    if args.lora_init.startswith("pissa") and is_main:
        keep_pissa_start(model, output, bool(resumed))
    first = step_of(resumed) if resumed else 0
    trainer = make_trainer(args, model, tokenizer, data, TuningLog(output / "train_log.jsonl"), first)
    if is_main:
        output.mkdir(parents=True, exist_ok=True)
        draw_lengths(data.rows.parts, output / "row_lengths.png")
        announce(args, trainer)
    result = trainer.train(resume_from_checkpoint=resumed)
    save(trainer, tokenizer, args, sources, adds_end)
    if is_main:
        seconds = result.metrics["train_runtime"]
        best = trainer.state.best_global_step if args.load_best_model_at_end else None
        chosen = f"; the weights of step {best}, the best by {args.metric_for_best_model}" if best else ""
        print(f"{output}: {result.global_step} steps in {seconds:.0f} s, loss {result.training_loss:.4f}{chosen}")
        print(next_steps(args))
    if launched():
        part()


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
