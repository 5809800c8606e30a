"""Check the base checkpoint of a run, lock its output folder, and save its result."""

from command_line.command_errors import DISK_ERRORS

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import is_zipfile

from model_folders.diff_recognition import refuse_diff
from model_folders.own_code import from_folder
from model_folders.weight_files import weight_files
from partial_folders import resume_journal
from partial_folders.atomic_outputs import rust_errno
from partial_folders.output_paths import check_place, follow_last_link
from rank_group import rank_errors
from rank_group.ranks import is_first
from resumable_checkpoints.complete_checkpoints import flush

TORCH_WRITE_ERROR = re.compile(r"PytorchStreamWriter failed|inline_container\.cc|iostream error")  # of torch.save


def check_base(base: Path, option: str, trust_remote_code: bool) -> None:
    """Raise FileNotFoundError or ValueError if `base` is not the checkpoint folder of a model with its tokenizer.

    option: the option that names `base`, for messages. trust_remote_code: if false, a base that needs Python code
    of its own is refused.
    """
    if not base.is_dir():
        raise FileNotFoundError(f"{base} does not exist; {option} takes a checkpoint folder (tools/download.py)")
    weights = weight_files(base)
    if (base / "adapter_config.json").is_file():
        raise ValueError(f"{base} is an adapter; merge it first: python tools/weight_diff.py merge …")
    if not (base / "config.json").is_file():
        raise FileNotFoundError(f"{base} has no config.json, so it is not a checkpoint folder; name one with {option}")
    refuse_diff(base)
    if not any((base / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise FileNotFoundError(f"{base} has no tokenizer.json and no tokenizer.model; copy its tokenizer files there")
    if not weights:
        raise FileNotFoundError(f"{base} has no weights (model.safetensors, or shards with their index); copy it again")
    from transformers import AutoConfig

    from_folder(AutoConfig, base, trust_remote_code)


@contextmanager
def locked_output(output: Path, base: Path) -> Iterator[None]:
    """Check and lock --output_dir, which may exist already; rank 0 locks it for all ranks.

    A new folder that stays empty is removed. Raises ValueError if the folder is the base or inside it, is sealed
    or inside a sealed folder, or cannot be written, and if another run is writing it.
    """
    path = follow_last_link(output)
    check_place(path, output, [base], may_exist=True)
    if not is_first():
        yield
        return
    new = [folder for folder in (path, *path.parents) if not folder.exists()]

    def remove_lock() -> None:
        with suppress(OSError):
            (path / resume_journal.JOURNAL).unlink()
            for folder in new:
                folder.rmdir()  # fails if it has files

    with resume_journal.locked_journal(path):
        rank_errors.clean_up_at_stop.append(remove_lock)
        try:
            yield
        finally:
            rank_errors.clean_up_at_stop.remove(remove_lock)
            remove_lock()


def check_savable(part: Any, name: str) -> None:
    """Save a tokenizer or generation config to a temporary folder; raise ValueError now if it cannot be saved.

    name: the files of the base that it was read from, for the message.
    """
    with TemporaryDirectory() as scratch:
        try:
            part.save_pretrained(scratch)
        except (ValueError, TypeError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{name} cannot be saved by transformers ({reason}); correct it") from None


def tying_options(base: Path) -> dict[str, bool]:
    """Return options of from_pretrained: tie_word_embeddings=False if embedding and output matrix differ, else none.

    For a base that config.json marks as tied, transformers 5 compares the two matrices. Under ZeRO-3 it would compare
    empty placeholders, find them equal, and drop the output matrix.
    """
    with suppress(Exception):  # loading the model reports damaged files
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        if config.get("tie_word_embeddings") is not False:
            output, embedding = (stored_tensor(base, f"{name}.weight") for name in ("lm_head", "embed_tokens"))
            if output is not None and embedding is not None and not output.equal(embedding):
                return {"tie_word_embeddings": False}
    return {}


def stored_tensor(folder: Path, end: str) -> Any:
    """Return the first tensor of a checkpoint folder whose name ends with `end`; None if there is none."""
    import torch
    from safetensors import safe_open

    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as stored:
                if name := next((name for name in stored.keys() if name.endswith(end)), ""):  # noqa: SIM118
                    return stored.get_tensor(name)
        else:
            weights = torch.load(file, map_location="cpu", mmap=is_zipfile(file), weights_only=True)
            if name := next((name for name in weights if name.endswith(end)), ""):
                return weights[name]
    return None


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


@contextmanager
def write_errors_of(output: Path) -> Iterator[None]:
    """Context manager that raises ValueError, instead of the errors of libraries, if a file cannot be written.

    output: the folder of the run. torch.save raises RuntimeError without the cause; tokenizers raises Exception.
    """
    try:
        yield
    except Exception as error:
        number = rust_errno(error) or getattr(error, "errno", None)
        is_torch = isinstance(error, RuntimeError) and bool(TORCH_WRITE_ERROR.search(str(error)))
        if number not in DISK_ERRORS and not is_torch:
            raise
        reason = "torch.save failed" if is_torch else " ".join(str(error).split())
        free = shutil.disk_usage(next(path for path in (output, *output.absolute().parents) if path.exists())).free
        raise ValueError(
            f"{output} cannot be written ({reason}; {free / 1e9:.2f} GB free); make room or "
            "check the disk, then give --resume_from_checkpoint True (without a complete checkpoint: start again)"
        ) from None


def save_result(trainer: Any, finish: Callable[[Path], None], last: Callable[[Path], bool]) -> None:
    """Save model and tokenizer to `.partial` in --output_dir, call `finish` on it, and move its files to --output_dir.

    All ranks call it, since ZeRO-3 gathers weights; only rank 0 calls `finish` and moves files. last: returns True for
    the files to move last, whose presence marks the result as complete.
    """
    output = Path(trainer.args.output_dir)
    scratch = output / ".partial"
    with write_errors_of(output):
        if trainer.args.should_save:
            shutil.rmtree(scratch, ignore_errors=True)
        trainer.save_model(str(scratch))
        if not trainer.args.should_save:
            return
        # a pickle, whose values are also in run.json, and PEFT's empty model card
        for needless in ("training_args.bin", "README.md"):
            (scratch / needless).unlink(missing_ok=True)
        trainer.processing_class.save_pretrained(scratch)
        finish(scratch)
        flush(scratch)
        for file in sorted(scratch.iterdir(), key=lambda file: (last(file), file.name)):
            if file.is_dir():  # additional_chat_templates
                shutil.rmtree(output / file.name, ignore_errors=True)
            else:
                file.chmod(0o644)  # safetensors writes files that only the owner can read
            file.replace(output / file.name)
        scratch.rmdir()


def copy_model_code(base: Path, folder: Path) -> None:
    """Copy the Python files of the base if a result names code of its own; transformers saves only executed code."""
    configs = [folder / name for name in ("config.json", "tokenizer_config.json")]
    if any(file.is_file() and '"auto_map"' in file.read_text(encoding="utf-8") for file in configs):
        for file in base.glob("*.py"):
            copy_if_there(file, folder / file.name)


def copy_if_there(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target)
