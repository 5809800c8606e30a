"""Checkpoint folders: the small files beside the weights, and atomic writing of new folders and files."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hub_download.checkpoint_names import checkpoint_folder
from partial_folders import resume_journal
from partial_folders.disk_space import check_space

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {path.parent} is incomplete or not a checkpoint folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object; download it again")
    return content


def config_number(path: Path, config: Mapping[str, Any], key: str) -> int:
    """Return a positive number of a config.json, the file `path` with the content `config`; ValueError otherwise."""
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ValueError(f"{path} is damaged ({key} is {value!r}, not a positive number); download it again")
    return value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def existing_folder(path: object, option: str, required: str = "") -> Path:
    """Return the folder given by an option: its path, or the name of a repository, which is downloaded to the cache.

    Raises FileNotFoundError if it does not exist or lacks the file `required`, ValueError if the download fails.
    """
    folder = checkpoint_folder(str(path), option)
    if required and not (folder / required).is_file():
        raise FileNotFoundError(f"{folder} has no {required}; {option} takes a complete checkpoint folder")
    return folder


@contextmanager
def new_folder(target: str | Path, needed: int, run: str = "", inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield the folder `<target>.partial` and rename it to `target` if the block ends without an error.

    needed: bytes that will be written; the free space is checked first. run: see `partial_folder`. inputs: folders that
    must not change. Raises ValueError if the target contains files, is inside an input or cannot be written, another
    process is writing it, or its disk is too small.
    """
    target = Path(str(target))
    refuse_inside(target, inputs)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists already and is not an empty folder; name a new folder or remove it")
    with partial_folder(target, needed, run) as partial:
        yield partial
        (partial / resume_journal.JOURNAL).unlink()
        for path in (*partial.iterdir(), partial):
            fsync_path(path)
        partial.replace(target)


def refuse_inside(target: Path, inputs: Iterable[Path]) -> None:
    """Raise ValueError if a new file or folder would be inside one of the input folders."""
    for folder in inputs:
        if folder.resolve() in target.resolve().parents:
            raise ValueError(f"{target} is inside the input folder {folder}, which must not change; write elsewhere")


@contextmanager
def new_file(target: Path, needed: int, run: str = "") -> Iterator[Path]:
    """Yield a file path in the folder `<target>.partial` and move the file to `target`; otherwise like `new_folder`."""
    if target.exists():
        raise ValueError(f"{target} exists already; name a new file or remove it")
    with partial_folder(target, needed, run) as partial:
        yield partial / target.name
        fsync_path(partial / target.name)
        (partial / target.name).replace(target)
        shutil.rmtree(partial)


@contextmanager
def partial_folder(target: Path, needed: int, run: str) -> Iterator[Path]:
    """Yield the locked folder `<target>.partial`; it is removed after an error.

    run: the identity of a resumable run (`resume_journal.run_identity`), or "". If a resumable run is killed or
    interrupted, its folder is kept, and the same run continues from its journal; a different run empties the folder.
    The message of KeyboardInterrupt says whether the same command resumes.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        with resume_journal.locked_folder(partial, run):
            check_space(target, needed - sum(path.stat().st_size for path in partial.iterdir()))
            yield partial
    except BlockingIOError:
        raise ValueError(f"{partial} is being written by another process; wait for it or write elsewhere") from None
    except KeyboardInterrupt:
        if run:
            raise KeyboardInterrupt(f"interrupted; the same command resumes from {partial}") from None
        shutil.rmtree(partial, ignore_errors=True)
        raise KeyboardInterrupt("interrupted; nothing was kept, the same command starts over") from None
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if found := re.search(r"\(os error (\d+)\)", str(error)):  # libraries in Rust: safetensors, tokenizers
            error = OSError(int(found[1]), os.strerror(int(found[1])))
        if not isinstance(error, OSError):
            raise
        place = str(error.filename or target)
        is_output = place.startswith(str(target)) or f"{target}.partial".startswith(place)
        if error.errno in DISK_FULL or (error.filename and is_output):
            raise ValueError(
                f"{target} cannot be written ({error.strerror}: {place}); make room or write elsewhere"
            ) from None
        raise error


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it if the file system does not allow that."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def set_dtype(folder: Path, dtype: str) -> None:
    """Set the type of the weights ("float16", …) in config.json."""
    config = read_json(folder / "config.json")
    key = "torch_dtype" if "torch_dtype" in config else "dtype"  # the older key is still common
    write_json(folder / "config.json", config | {key: dtype})


def write_run_record(folder: Path, script: str, arguments: Mapping[str, object], parents: Mapping[str, Path]) -> None:
    """Write run.json: arguments, package versions, and under each parent's role the content of its run.json."""
    packages = [name for name in ("numpy", "pyarrow", "torch", "transformers") if find_spec(name)]
    history = {role: parent / "run.json" for role, parent in parents.items()}
    content = {
        "script": script,
        "arguments": {
            name: value if isinstance(value, bool | int) else str(value) for name, value in arguments.items()
        },
        "seed": None,
        "versions": {name: version(name) for name in packages},
        "data": {},
        "parents": {role: read_json(path) if path.is_file() else None for role, path in history.items()},
    }
    write_json(folder / "run.json", content)
