"""Tune a checkpoint on instruction rows: a LoRA adapter (or all weights), supervised to the token.

    python finetune/finetune.py --base_model checkpoints/base --data_path train.jsonl --output_dir adapters/ie
    torchrun --nproc_per_node 8 finetune/finetune.py --base_model B --data_path D --output_dir O --bf16 \
        --batch_size 128 --micro_batch_size 4 --lora_target_modules [q_proj,k_proj,v_proj,o_proj]

The folder it writes is an adapter with everything that belongs to it: weights, tokenizer, chat_template.jinja (the
prompt format travels with the weights), extraction.json where given, run.json, the loss as train_log.jsonl and PNG.
The loss of a step is the mean over all supervised tokens of the global batch, whatever the micro batches and ranks.
Rows to ids: instructions.py; ids to batches: row_batches.py; options: tuning_arguments.py.
"""

import hashlib
import json
import os
import shutil
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructions import Example, Report, encode_rows, load_template, read_rows

if TYPE_CHECKING:
    from tuning_arguments import TuningArguments


def check_folders(args: "TuningArguments") -> None:
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
    if args.extraction_path:
        if not Path(args.extraction_path).is_file():
            raise FileNotFoundError(
                f"{args.extraction_path} does not exist; --extraction_path takes an extraction.json"
            )
        json.loads(Path(args.extraction_path).read_text(encoding="utf-8"))
    args.resume_from_checkpoint = resume_point(args.resume_from_checkpoint, output)
    if not args.resume_from_checkpoint and output.exists() and (not output.is_dir() or any(output.iterdir())):
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


def describe(report: Report) -> str:
    """The lines printed before training: what became of the rows, and how much of them is supervised."""
    reasons = "; ".join(f"{count}: {reason}" for reason, count in report.dropped.most_common())
    return (
        f"rows: {report.kept} kept, {report.truncated} of them truncated, {report.dropped.total()} dropped"
        + (f" ({reasons})" if reasons else "")
        + f"\ntokens: {report.tokens}, {report.supervised / max(report.tokens, 1):.1%} of them supervised; "
        f"longest row {report.longest}"
    )


def load_data(args: "TuningArguments", tokenizer: Any) -> tuple[list[Example], list[Example], Report]:
    """Training and validation rows; ValueError where nothing is left to train on."""
    from row_batches import split_validation

    rows = read_rows(args.data_path)
    examples, report = encode_rows(tokenizer, rows, args.cutoff_len, args.train_on_inputs)
    if not examples:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in report.dropped.items())
        raise ValueError(f"{args.data_path} leaves no row to train on ({reasons}); raise --cutoff_len or mend the data")
    return *split_validation(examples, args.val_set_size, args.seed), report


def load_model(args: "TuningArguments") -> Any:
    """The base in the precision of the run, with a fresh adapter unless all weights are tuned.

    Raises ValueError where the checkpoint lacks weights (transformers would draw them at random) and where
    --lora_target_modules names none of its modules.
    """
    import torch
    from transformers import AutoModelForCausalLM

    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    dtype = half if args.method == "lora" else torch.float32  # a frozen base needs no master weights
    loading: Any = AutoModelForCausalLM.from_pretrained(
        args.base_model, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    model, loaded = loading
    wrong = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
    if wrong:
        raise ValueError(f"{args.base_model} lacks {len(wrong)} weights, {wrong[0]} for one; get the checkpoint again")
    if args.gradient_checkpointing:
        model.enable_input_require_grads()
    return model if args.method == "full" else add_adapter(model, args)


def add_adapter(model: Any, args: "TuningArguments") -> Any:
    """The model with a LoRA adapter on the wanted linear layers; adapter weights are float32."""
    import torch
    from peft import LoraConfig, get_peft_model

    names = args.lora_target_modules
    linear = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    missing = [name for name in names if name != "all-linear" and name.split(".")[-1] not in linear]
    if missing:
        raise ValueError(
            f"--lora_target_modules: the model has no linear module {missing[0]}; it has {', '.join(sorted(linear))}"
        )
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules="all-linear" if "all-linear" in names else names,
        task_type="CAUSAL_LM",
    )
    tuned = get_peft_model(model, config)
    # peft's "auto" would store the whole of an embedding or output matrix whose adapter is trained; no row was added.
    tuned.save_pretrained = partial(tuned.save_pretrained, save_embedding_layers=False)  # type: ignore[method-assign]
    return tuned


def check_adapter(file: Path, parameters: list[str]) -> None:
    """Raise ValueError unless the file holds every adapter weight of the model, finite and non-zero.

    parameters: names in the model, "….lora_A.default.weight"; files leave the adapter's name out.
    """
    from safetensors import safe_open

    expected = {name.replace(".default.", ".") for name in parameters if ".lora_" in name}
    with safe_open(file, framework="pt") as tensors:
        found = set(tensors.keys())
        if found != expected:
            example = sorted(found ^ expected)[0]
            raise ValueError(
                f"{file} holds {len(found)} of {len(expected)} adapter tensors; {example} is one that differs"
            )
        for name in sorted(expected):
            weight = tensors.get_tensor(name)
            if not weight.isfinite().all() or not weight.any():
                raise ValueError(
                    f"{name} in {file} is {'zero' if weight.isfinite().all() else 'not finite'} after training; "
                    "train for more steps, or at another --learning_rate"
                )


def sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_records(folder: Path, args: "TuningArguments", report: Report, history: list[dict[str, float]]) -> None:
    """run.json, train_log.jsonl and training_curves.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    run = {
        "script": "finetune/finetune.py",
        "arguments": args.to_sanitized_dict(),
        "seed": args.seed,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        "data": {args.data_path: sha256(args.data_path)},
        "rows": {**vars(report), "dropped": dict(report.dropped)},
    }
    (folder / "run.json").write_text(json.dumps(run, indent=2, default=str, ensure_ascii=False) + "\n")
    (folder / "train_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for key, style in (("loss", "-"), ("eval_loss", "o-")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=key)
    axes.set(xlabel="step", ylabel="loss per supervised token", ylim=(0, None))
    axes.legend()
    figure.savefig(folder / "training_curves.png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def save(trainer: Any, tokenizer: Any, args: "TuningArguments", report: Report) -> None:
    """Write the whole result beside its place, check it, then move it file by file into --output_dir, weights last."""
    output = Path(args.output_dir or "")
    scratch = output / ".partial"
    if args.should_save:
        shutil.rmtree(scratch, ignore_errors=True)
    trainer.save_model(str(scratch))
    if not args.should_save:
        return
    for needless in ("training_args.bin", "README.md"):  # a pickle, and peft's form of a model card with nothing in it
        (scratch / needless).unlink(missing_ok=True)
    if args.method == "lora":
        check_adapter(scratch / "adapter_model.safetensors", [name for name, _ in trainer.model.named_parameters()])
    tokenizer.save_pretrained(scratch)
    sentencepiece = Path(args.base_model, "tokenizer.model")
    for source, name in ((sentencepiece, "tokenizer.model"), (Path(args.extraction_path), "extraction.json")):
        if source.is_file():
            shutil.copyfile(source, scratch / name)
    write_records(scratch, args, report, trainer.state.log_history)
    for file in sorted(scratch.iterdir(), key=lambda file: (file.suffix == ".safetensors", file.name)):
        file.chmod(0o644)  # safetensors makes its file private
        file.replace(output / file.name)
    scratch.rmdir()


def next_step(args: "TuningArguments") -> str:
    """The line that says how to go on from here."""
    if args.method == "full":
        return f"serve it: python inference/launch_vllm.py --model {args.output_dir} --port 8090"
    output = (args.output_dir or "").rstrip("/")
    return (
        f"merge and serve it: python tools/weight_diff.py merge --path_zhixi {args.base_model} --path_lora {output} "
        f"--path_sfted {output}-merged && python inference/launch_vllm.py --model {output}-merged --port 8090"
    )


def main(argv: list[str]) -> None:
    """Parse, check, load, train, save."""
    from tuning_arguments import parse

    args, notices = parse(argv, __doc__ or "")
    is_main = int(os.environ.get("RANK", "0")) == 0
    for notice in notices if is_main else ():
        print(f"notice: {notice}", file=sys.stderr)
    template = load_template(args.prompt_template_name)
    check_folders(args)

    from instruction_trainer import make_trainer
    from transformers import AutoTokenizer, set_seed
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(args.base_model, local_files_only=True)
    tokenizer.chat_template = template
    train, validation, report = load_data(args, tokenizer)
    if is_main:
        print(describe(report) + (f"; {len(validation)} rows held out" if validation else ""), flush=True)
    set_seed(args.seed)
    model = load_model(args)
    trainer = make_trainer(args, model, tokenizer, train, validation)
    if is_main:
        tuned = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        print(
            f"tuning {tuned} of {sum(weight.numel() for weight in model.parameters())} weights on {args.device}, "
            f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps} x {args.world_size} = "
            f"{args.batch_size} rows a step (micro batch x accumulation x ranks)",
            flush=True,
        )
    result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    save(trainer, tokenizer, args, report)
    if is_main:
        seconds = result.metrics["train_runtime"]
        print(f"{args.output_dir}: {result.global_step} steps in {seconds:.0f} s, loss {result.training_loss:.4f}")
        print(next_step(args))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
