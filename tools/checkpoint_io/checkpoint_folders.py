"""Checkpoint folders: their JSON files, links, and the record of the run that wrote them."""

import json
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hub_download.checkpoint_names import checkpoint_folder


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
    """Return the positive integer under `key`; ValueError for other values. config: content of config.json `path`."""
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise ValueError(f"{path} is damaged ({key} is {value!r}, not a positive integer); download it again")
    return value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def existing_folder(path: object, option: str, required: str = "") -> Path:
    """Return the folder that an option gives: a path, or the name of a repository, which is downloaded to the cache.

    Raises FileNotFoundError if the folder does not exist or lacks the file `required`, and ValueError if the download
    fails.
    """
    folder = checkpoint_folder(str(path), option)
    if required and not (folder / required).is_file():
        kind = "an adapter" if required == "adapter_config.json" else "a complete checkpoint"
        raise FileNotFoundError(f"{folder} has no {required}; {option} takes {kind} folder")
    return folder


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
    """Write run.json: arguments, package versions, and the run.json of each parent folder under its role."""
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
