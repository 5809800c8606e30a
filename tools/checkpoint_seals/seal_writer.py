"""Seal a checkpoint folder: hash its files and tensors, record its parents, and write checkpoint.json."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3
from checkpoint_io.checkpoint_folders import read_json, write_json
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensors import (
    ADAPTER_FILES,
    DIFF_FILES,
    MODEL_FILES,
    Tensor,
    fingerprint,
    has_weights,
    progress,
    read_safetensors,
    read_weights,
    tensor_hashes,
)

from checkpoint_seals import signatures
from checkpoint_seals.seal_check import SEAL, hash_file, sealed_files

ALL_FILES = (*MODEL_FILES, *ADAPTER_FILES, *DIFF_FILES)


def kind_of(folder: Path) -> str:
    """Return full, adapter, diff or quantised, according to the files of a folder."""
    if has_weights(folder, DIFF_FILES):
        return "diff"
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    for file in sorted(folder.glob("model*.safetensors"))[:1]:
        if read_safetensors(file)[1].get("kind") == "additive-diff":
            return "diff"
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


def write_seal(folder: Path, parents: Sequence[Path], sign_key: str = "") -> str:
    """Write checkpoint.json, and a signature if the PEM key `sign_key` is given; return a summary line.

    An older seal and its signature are kept until the new seal is complete.
    """
    if sign_key:
        signatures.require_package()  # fails before anything is hashed or written
    _, tensors, weights = hashed_weights(folder)
    files = sealed_files(folder)
    table = {}
    with progress(sum(file.stat().st_size for file in files.values()), "hashing files") as bar:
        hashes = in_order(lambda file: hash_file(file, blake3(), hashlib.sha256()), files.values())
        for (name, file), (ours, published) in zip(files.items(), hashes, strict=True):
            table[name] = {"size": file.stat().st_size, "blake3": ours, "sha256": published}
            bar.update(file.stat().st_size)
    content = {
        "format": 2, "kind": kind_of(folder), "weights": weights,
        "parents": [parent_entry(parent) for parent in parents], "files": table, "tensors": tensors,
    }  # fmt: skip
    write_json(folder / f".{SEAL}.partial", content)
    signatures.remove(folder)
    (folder / f".{SEAL}.partial").replace(folder / SEAL)
    signed = f", signed in {signatures.sign(folder, sign_key)}" if sign_key else ""
    return f"{folder / SEAL}: {content['kind']}, {len(table)} files, weights {weights[:16]}{signed}"
