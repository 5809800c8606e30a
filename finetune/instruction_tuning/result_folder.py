"""What a run leaves: the adapter or model with all that belongs to it, checked before it takes its place.

finetune.py saves through it.
"""

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruction_data.row_files import Source

from instruction_tuning.adapters import START, check_adapter, plain_lora, tensor_names
from instruction_tuning.tuning_log import draw_curves

if TYPE_CHECKING:
    from instruction_tuning.tuning_arguments import TuningArguments
    from instruction_tuning.tuning_data import Data


def sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_records(folder: Path, args: "TuningArguments", sources: list[Source], data: "Data", trainer: Any) -> None:
    """run.json and training_curves.png."""
    run = {
        "script": "finetune/finetune.py",
        "arguments": args.to_sanitized_dict() | {"gradient_accumulation_steps": args.accumulation},
        "seed": args.seed,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        "data": {str(source.path): sha256(str(source.path)) for source in sources},
        "rows": {part.name: {**vars(part.report), "dropped": dict(part.report.dropped)} for part in data.rows.parts},
        "held_out": len(data.held_out),
        "packed": trainer.layout.packed,
        "best_checkpoint": {"step": trainer.state.best_global_step, "metric": trainer.state.best_metric},
    }
    (folder / "run.json").write_text(json.dumps(run, indent=2, default=str, ensure_ascii=False) + "\n")
    draw_curves(trainer.state.log_history, folder / "training_curves.png")


def stop_at(model: Any, ids: list[int]) -> bool:
    """Let generation stop on these ids, besides those of the base's generation config; whether any of them is new."""
    config = model.generation_config
    own = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    new = [index for index in ids if index not in own]
    if new:
        config.eos_token_id = [*(index for index in own if index is not None), *new]
    return bool(new)


def save(trainer: Any, tokenizer: Any, args: "TuningArguments", sources: list[Source], adds_end: bool) -> None:
    """Write the whole result beside its place, check it, then move it file by file into --output_dir, weights last.

    adds_end: answers end in a token that the base's generation config lacks, so an adapter needs its own.
    """
    output = Path(args.output_dir or "")
    scratch = output / ".partial"
    if args.should_save:
        shutil.rmtree(scratch, ignore_errors=True)
    trainer.save_model(str(scratch))
    if not args.should_save:
        return
    for needless in ("training_args.bin", "README.md"):  # a pickle, and peft's form of a model card with nothing in it
        (scratch / needless).unlink(missing_ok=True)
    if args.method != "full":
        if adds_end:
            trainer.model.generation_config.save_pretrained(scratch)
        check_adapter(scratch / "adapter_model.safetensors", tensor_names(trainer.model))
    if args.lora_init.startswith("pissa"):
        plain_lora(scratch, output / START)
    tokenizer.save_pretrained(scratch)
    sentencepiece = Path(args.base_model, "tokenizer.model")
    for source, name in ((sentencepiece, "tokenizer.model"), (Path(args.extraction_path), "extraction.json")):
        if source.is_file():
            shutil.copyfile(source, scratch / name)
    write_records(scratch, args, sources, trainer.data, trainer)
    for file in sorted(scratch.iterdir(), key=lambda file: (file.suffix == ".safetensors", file.name)):
        file.chmod(0o644)  # safetensors makes its file private
        file.replace(output / file.name)
    scratch.rmdir()
    (output / START).unlink(missing_ok=True)
