"""Checkpoint folders as files: which small files travel with the weights, and a new folder that appears whole.

the tools of this stage import it.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from checkpoint_io import resume_journal

CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them makes a tokenizer
PROMPT_FILES = ("chat_template.jinja", "extraction.json")
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
SMALL_FILES = (*CONFIG_FILES, *TOKENIZER_FILES, *PROMPT_FILES)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; FileNotFoundError and ValueError name the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {path.parent} is incomplete or no checkpoint folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); get it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; get it again")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def existing(path: object, option: str, holding: str = "") -> Path:
    """The folder that an option names; FileNotFoundError where there is none, or where it lacks the file `holding`."""
    folder = Path(str(path))
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder here; {option} takes a folder (fetch one: tools/download.py)")
    if holding and not (folder / holding).is_file():
        raise FileNotFoundError(f"{folder} has no {holding}; {option} takes a complete folder of that kind")
    return folder


@contextmanager
def new_folder(target: str | Path, needed: int, run: str = "") -> Iterator[Path]:
    """Yield `<target>.partial`, which becomes `target` when the block ends well and is removed when it does not.

    needed: bytes that will be written; checked against the free space before anything is.
    run: what identifies this run (resume_journal.py). A killed or interrupted run then leaves its partial folder, and
    the same run finds it as it was, with its journal; what another run left is removed.

    Raises ValueError on a target that holds files already, that cannot be written, that another process is writing, or
    whose disk is too small.
    """
    target = Path(str(target))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists already and is not an empty folder; name a new one or remove it")
    partial = target.with_name(target.name + ".partial")
    try:
        with resume_journal.opened(partial, run):
            check_space(target, needed - sum(path.stat().st_size for path in partial.iterdir()))
            yield partial
            resume_journal.remove(partial)
            for path in (*partial.iterdir(), partial):
                sync(path)
            partial.replace(target)
    except BaseException as error:
        if not (isinstance(error, BlockingIOError) or (isinstance(error, KeyboardInterrupt) and run)):
            shutil.rmtree(partial, ignore_errors=True)
        if (better := unwritable(target, error)) is not error:
            raise better from None
        raise


def unwritable(target: Path, error: BaseException) -> BaseException:
    """The same error, or one that says what to do where the disk or its permissions are the reason."""
    if isinstance(error, BlockingIOError):
        return ValueError(f"{target}.partial is being written by another process; wait for it or name another folder")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ValueError(f"{target}: {error.strerror} while writing it; nothing was kept: make room")
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        place = str(error.filename)
        if place.startswith(f"{target}.partial") or f"{target}.partial".startswith(place):
            return ValueError(f"{target} cannot be written ({error.strerror}: {place}); write elsewhere")
    return error


def sync(path: Path) -> None:
    """Have a file, or a folder's list of names, on the disk and not only in memory."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def check_space(target: Path, needed: int) -> None:
    """ValueError where the disk that target will be on has less than `needed` bytes free."""
    above = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(above).free
    if needed > free:
        raise ValueError(
            f"{target} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; "
            "make room or write elsewhere"
        )


def carry(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copy those of the named files that source has; they replace what target has of them."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def check_tokenizer(*folders: Path) -> None:
    """FileNotFoundError where none of the folders has a tokenizer: libraries make one up for a model without."""
    if not any((folder / name).is_file() for folder in folders for name in TOKENIZERS):
        raise FileNotFoundError(
            f"{' and '.join(map(str, folders))} have no tokenizer ({', '.join(TOKENIZERS)}); copy the model's there"
        )


def link(source: Path, target: Path) -> None:
    """The same file under a second name where the disk allows it, a copy where not."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def set_dtype(folder: Path, dtype: str) -> None:
    """Let config.json say in which type the weights now lie ("float16", …)."""
    config = read_json(folder / "config.json")
    key = "torch_dtype" if "torch_dtype" in config else "dtype"  # the older name is still everywhere
    write_json(folder / "config.json", config | {key: dtype})


def write_run(folder: Path, script: str, arguments: Mapping[str, object], parents: Mapping[str, Path]) -> None:
    """Write run.json: what the tool was told, and the run.json of each folder that it read, under its role."""
    versions = {}
    for name in ("numpy", "pyarrow", "torch", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    history = {role: parent / "run.json" for role, parent in parents.items()}
    content = {
        "script": script,
        "arguments": {
            name: value if isinstance(value, bool | int) else str(value) for name, value in arguments.items()
        },
        "seed": None,
        "versions": versions,
        "data": {},
        "parents": {role: read_json(path) if path.is_file() else None for role, path in history.items()},
    }
    write_json(folder / "run.json", content)
