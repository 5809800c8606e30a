"""Verify the seal of a checkpoint folder (format: tools/CHECKPOINT.md; written by seal_writer.py)."""

import hashlib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from blake3 import blake3
from checkpoint_io.checkpoint_folders import read_json
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensors import progress, read_safetensors, tensor_hash

SEAL = "checkpoint.json"
SIGNATURE = "model.sig"  # covers all other files, including the seal
WEIGHTS = (".safetensors", ".bin")
# Signatures and lists of hashes, in the formats of this repository and of others; each is valid for one folder only.
SEALS = (SEAL, "*.sig", "*.sigstore*", "*.asc", "*.chk", "*.md5", "*.sha256", "md5sum*", "*sha256sum*")


def is_seal(name: str) -> bool:
    """Return whether a file of this name is a seal, a signature or a list of hashes."""
    return any(fnmatchcase(name.lower(), pattern) for pattern in SEALS)


def sealed_files(folder: Path) -> dict[str, Path]:
    """Return {relative name: path} of all files, except seal, signature and hidden files (.git, .cache)."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in files.items() if name not in (SEAL, SIGNATURE) and "/." not in f"/{name}"}


def hash_file(path: Path, algorithm: Any) -> str:
    """Return the file's hexadecimal hash. algorithm: a constructor such as blake3, or a name of hashlib."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def hash_files(files: Mapping[str, Path], algorithm: Any, label: str) -> Iterator[tuple[str, str]]:
    """Yield (name, hexadecimal hash) of each file. algorithm: as for `hash_file`; label: text of the progress bar."""
    sizes = [file.stat().st_size for file in files.values()]
    with progress(sum(sizes), label) as bar:
        hashes = in_order(lambda file: hash_file(file, algorithm), files.values())
        for name, size, value in zip(files, sizes, hashes, strict=True):
            yield name, value
            bar.update(size)


def read_seal(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's seal; ValueError if it is malformed."""
    sealed = read_json(folder / SEAL)
    table, parents = sealed.get("files"), sealed.setdefault("parents", [])
    if not isinstance(table, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("blake3"), str) and type(entry.get("size")) is int
        for entry in table.values()
    ):
        raise ValueError(f"{folder / SEAL} has no list of files with hashes; seal the original folder again")
    has_parents = isinstance(parents, list) and all(
        isinstance(parent, dict) and isinstance(parent.get("name"), str) for parent in parents
    )
    if not has_parents or not isinstance(sealed.setdefault("tensors", {}), dict):
        raise ValueError(f"{folder / SEAL} is damaged (parents or tensors); seal the original folder again")
    return sealed


def verify_seal(folder: Path, weights: bool = True) -> int:
    """Verify a folder's seal; return the number of sealed files, 0 without a seal.

    weights: False if the caller verifies the tensors; then only the sizes of weight files are checked. Raises
    FileNotFoundError or ValueError for the first file (and tensor) that is missing, changed or not listed.
    """
    if not (folder / SEAL).is_file():
        return 0
    sealed = read_seal(folder)
    table = sealed["files"]
    files = sealed_files(folder)
    for name, entry in table.items():  # sizes first: they reveal most damage without reading
        if name not in files:
            raise FileNotFoundError(f"{folder / name}, which the seal lists, is missing; download it again")
        size = files[name].stat().st_size
        if size != entry["size"]:
            raise ValueError(f"{folder / name} has {size:,} bytes, the seal says {entry['size']:,}; download it again")
    for name in files:
        if name not in table:
            raise ValueError(f"{folder / name} is not in the seal; remove it, or seal the folder again")
    checked = {name: files[name] for name in table if weights or Path(name).suffix not in WEIGHTS}
    for name, value in hash_files(checked, blake3, f"verifying {folder.name}"):
        if value != table[name]["blake3"]:
            change = changed_tensor(files[name], sealed["tensors"]) or "other bytes"
            raise ValueError(f"{folder / name} differs from its seal ({change}); download it again")
    return len(table)


def changed_tensor(path: Path, hashes: dict[str, str]) -> str:
    """Return a phrase that names the changed part of a safetensors file: its first changed tensor, else its header.

    Returns the error if the file cannot be read, and "" for other files.
    """
    if path.suffix != ".safetensors":
        return ""
    try:
        tensors = read_safetensors(path)
    except ValueError as error:
        return str(error)
    return next(
        (f"tensor {name}" for name, tensor in tensors.items() if tensor_hash(tensor) != hashes.get(name)), "its header"
    )
