"""Check the base checkpoint of a run, and save its result."""

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from model_weights.weight_files import weight_files


def check_base(base: Path, option: str) -> None:
    """Raise FileNotFoundError or ValueError if `base`, the value of `option`, is not one checkpoint with tokenizer."""
    if not base.is_dir():
        raise FileNotFoundError(f"{base} does not exist; {option} takes a checkpoint folder (tools/download.py)")
    weights = weight_files(base)
    if (base / "adapter_config.json").is_file():
        raise ValueError(f"{base} is an adapter; merge it first: python tools/weight_diff.py merge …")
    if not (base / "config.json").is_file():
        raise FileNotFoundError(f"{base} has no config.json, so it is not a checkpoint folder; name one with {option}")
    if not any((base / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise FileNotFoundError(f"{base} has no tokenizer.json and no tokenizer.model; copy its tokenizer files there")
    if not weights:
        raise FileNotFoundError(f"{base} has no weights (model.safetensors, or shards with their index); copy it again")


def run_record(script: str, args: Any, packages: Sequence[str], **more: Any) -> str:
    """Return the content of run.json: script, arguments, seed, package versions, and the entries of `more`."""
    run = {
        "script": script,
        "arguments": args.to_sanitized_dict(),
        "seed": args.seed,
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", *packages)},
        **more,
    }
    return json.dumps(run, indent=2, default=str, ensure_ascii=False) + "\n"


def save_result(trainer: Any, finish: Callable[[Path], None], last: Callable[[Path], bool]) -> None:
    """Save model and tokenizer to `.partial` in --output_dir, call `finish` on it, then move its files up.

    All ranks call it, since ZeRO-3 gathers weights; only rank 0 calls `finish` and moves files. last: returns True for
    the files to move last, whose presence marks the result as complete.
    """
    output = Path(trainer.args.output_dir)
    scratch = output / ".partial"
    if trainer.args.should_save:
        shutil.rmtree(scratch, ignore_errors=True)
    trainer.save_model(str(scratch))
    if not trainer.args.should_save:
        return
    for needless in ("training_args.bin", "README.md"):  # a pickle (run.json has its values), PEFT's empty model card
        (scratch / needless).unlink(missing_ok=True)
    trainer.processing_class.save_pretrained(scratch)
    finish(scratch)
    for file in sorted(scratch.iterdir(), key=lambda file: (last(file), file.name)):
        file.chmod(0o644)  # safetensors writes files that only the owner can read
        file.replace(output / file.name)
    scratch.rmdir()


def copy_if_there(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target)
