"""The seal of a checkpoint folder, read: are all its files as they were when it was sealed?

Not a script: the tools of this stage import it. `tools/checkpoint.py` writes seals; tools/CHECKPOINT.md has the format.
"""

import hashlib
from pathlib import Path
from typing import Any

from folders import read_json
from tensors import progress

SEAL = "checkpoint.json"
BLOCK = 1 << 22  # bytes


def files_of(folder: Path) -> dict[str, Path]:
    """Every file below the folder by its relative name, without the seal and what is hidden (.git, .cache)."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.as_posix() != SEAL and not any(part.startswith(".") for part in name.parts):
            found[name.as_posix()] = path
    return found


def hash_file(path: Path, bar: Any) -> str:
    """sha256 of a file, in hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
            bar.update(len(block))
    return state.hexdigest()


def verify_seal(folder: Path) -> int:
    """How many files the seal covers, all as sealed; 0 where there is no seal.

    Raises FileNotFoundError or ValueError with the first file that is missing, changed or not listed.
    """
    if not (folder / SEAL).is_file():
        return 0
    table = read_json(folder / SEAL).get("files")
    if not isinstance(table, dict):
        raise ValueError(f"{folder / SEAL} lists no files; get it again")
    files = files_of(folder)
    for name, entry in table.items():  # sizes first: most damage shows without reading
        if name not in files:
            raise FileNotFoundError(f"{folder / name} is missing, which the seal lists; get it again")
        size = files[name].stat().st_size
        if size != entry["size"]:
            raise ValueError(f"{folder / name} has {size:,} bytes, the seal says {entry['size']:,}; get it again")
    for name in files:
        if name not in table:
            raise ValueError(f"{folder / name} is not in the seal; remove it, or seal the folder again")
    with progress(sum(entry["size"] for entry in table.values()), f"verifying {folder.name}") as bar:
        for name, entry in table.items():
            if hash_file(files[name], bar) != entry["sha256"]:
                raise ValueError(f"{folder / name} is not as it was sealed (another sha256); get it again")
    return len(table)
