"""Seal a checkpoint folder: hash its files and tensors, record its parents, and write checkpoint.json."""

from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3
from checkpoint_io.checkpoint_folders import read_json, write_json
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensors import (
    ADAPTER_FILES,
    DIFF_FILES,
    DIFF_RECORD,
    MODEL_FILES,
    Tensor,
    fingerprint,
    progress,
    read_weights,
    tensor_hashes,
)

from checkpoint_seals.seal_check import SEAL, hash_file, sealed_files

ALL_FILES = (*MODEL_FILES, *ADAPTER_FILES, *DIFF_FILES)


def kind_of(folder: Path) -> str:
    """Return full, adapter, diff or quantised, according to the files of a folder."""
    if (folder / DIFF_RECORD).is_file():
        return "diff"
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    config = folder / "config.json"
    return "quantised" if config.is_file() and read_json(config).get("quantization_config") else "full"


def hashed_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Read a folder's weights; return the tensors, their hashes and the fingerprint of all weights."""
    tensors = read_weights(folder, ALL_FILES)
    hashes = tensor_hashes(tensors.values(), f"hashing {folder.name}")
    return tensors, hashes, fingerprint(tensors.values(), hashes)


def parent_entry(folder: Path) -> dict[str, str]:
    """Return a parent's name and its weight fingerprint, from its seal if present, else computed."""
    seal = folder / SEAL
    weights = read_json(seal).get("weights") if seal.is_file() else hashed_weights(folder)[2]
    return {"name": folder.resolve().name, "weights": str(weights)}


def write_seal(folder: Path, parents: Sequence[Path]) -> str:
    """Write checkpoint.json; return a summary line. An older seal is kept until the new one is complete."""
    _, tensors, weights = hashed_weights(folder)
    files, table = sealed_files(folder), {}
    with progress(sum(file.stat().st_size for file in files.values()), "hashing files") as bar:
        hashes = in_order(lambda file: hash_file(file, blake3), files.values())
        for (name, file), value in zip(files.items(), hashes, strict=True):
            table[name] = {"size": file.stat().st_size, "blake3": value}
            bar.update(file.stat().st_size)
    content = {
        "format": 3, "kind": kind_of(folder), "weights": weights,
        "parents": [parent_entry(parent) for parent in parents], "files": table, "tensors": tensors,
    }  # fmt: skip
    write_json(folder / f".{SEAL}.partial", content)
    (folder / f".{SEAL}.partial").replace(folder / SEAL)
    return f"{folder / SEAL}: {content['kind']}, {len(table)} files, weights {weights[:16]}"
