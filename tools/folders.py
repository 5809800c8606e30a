"""Checkpoint folders as files: which small files travel with the weights, and a new folder that appears whole.

Not a script: the tools of this stage import it.
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

CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip
PROMPT_FILES = ("chat_template.jinja", "extraction.json")
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
def new_folder(target: str | Path, needed: int) -> Iterator[Path]:
    """Yield `<target>.partial`, which becomes `target` when the block ends well and is removed when it does not.

    needed: bytes that will be written; checked against the free space before anything is. Raises ValueError on a
    target that holds files already, and where the disk is too small.
    """
    target = Path(str(target))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists already and is not an empty folder; name a new one or remove it")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
    parents = [parent for parent in partial.absolute().parents if parent.exists()]
    free = shutil.disk_usage(parents[0]).free
    if needed > free:
        raise ValueError(
            f"{target} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; "
            "make room or write elsewhere"
        )
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.replace(target)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ValueError(f"{target}: {error.strerror} while writing it; nothing was kept: make room") from None
        raise


def carry(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copy those of the named files that source has; they replace what target has of them."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


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


def refuse(unknown: Mapping[str, object]) -> None:
    """Raise ValueError on an option that the command does not have (fire itself would notice only afterwards)."""
    if unknown:
        raise ValueError(f"unknown option --{next(iter(unknown))}; see --help")


def flag(value: object, option: str) -> bool:
    """A yes-or-no option as fire gives it: True, False, or their spelling."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if not isinstance(value, bool):
        raise ValueError(f"{option} takes True or False, not {value!r}")
    return value


def parse_size(size: str | int) -> int:
    """Bytes of `5GB`, `400MB`, `2GiB` or a plain number."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1, "": 1}
    text = str(size).strip().upper()
    digits = text.rstrip("KMGIB ")
    try:
        result = int(float(digits) * units[text[len(digits) :].strip()])
    except (ValueError, KeyError):
        raise ValueError(f"{size!r} is no size; write it as 5GB, 400MB or a number of bytes") from None
    if result <= 0:
        raise ValueError(f"{size!r} is no size for a shard; write it as 5GB, 400MB or a number of bytes")
    return result
