"""Seal a checkpoint folder: hash its files and tensors, record its parents, and write checkpoint.json."""

from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3
from checkpoint_io import tensors
from checkpoint_io.checkpoint_folders import read_json, write_json
from model_folders.diff_recognition import DIFF_RECORD
from partial_folders import resume_journal
from partial_folders.atomic_outputs import fsync_path

from checkpoint_seals.seal_check import SEAL, hash_files, read_seal, sealed_files

ALL_FILES = (*tensors.MODEL_FILES, *tensors.ADAPTER_FILES, *tensors.DIFF_FILES)


def kind_of(folder: Path) -> str:
    """Return full, adapter, diff or quantised, according to the files of a folder."""
    if (folder / DIFF_RECORD).is_file():
        return "diff"
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    config = folder / "config.json"
    return "quantised" if config.is_file() and read_json(config).get("quantization_config") else "full"


def hashed_weights(folder: Path) -> tuple[dict[str, tensors.Tensor], dict[str, str], str]:
    """Read a folder's weights; return the tensors, their hashes and the fingerprint of all weights."""
    weights = tensors.read_weights(folder, ALL_FILES)
    hashes = tensors.tensor_hashes(weights.values(), f"hashing {folder.name}")
    return weights, hashes, tensors.fingerprint(weights.values(), hashes)


def parent_entry(parent: Path) -> dict[str, str]:
    """Return a parent's name and fingerprint: the BLAKE3 of a file, or the fingerprint of a folder's weights.

    The fingerprint of a folder is read from its seal if it has one, else computed.
    """
    if parent.is_file():
        return {"name": parent.name, "blake3": next(hash_files({parent.name: parent}, blake3, "hashing"))[1]}
    folder, seal = parent, parent / SEAL
    weights = read_seal(folder).get("weights") if seal.is_file() else None
    return {"name": folder.resolve().name, "weights": str(weights or hashed_weights(folder)[2])}


def write_seal(folder: Path, parents: Sequence[Path]) -> str:
    """Write checkpoint.json; return a summary line. An older seal is kept until the new one is complete.

    parents: the checkpoint folders, or the file, that the folder was made from.
    """
    _, tensor_hashes, fingerprint = hashed_weights(folder)
    files = sealed_files(folder)
    hashes = hash_files(files, blake3, "hashing files")
    table = {name: {"size": files[name].stat().st_size, "blake3": value} for name, value in hashes}
    content = {
        "format": 3, "kind": kind_of(folder), "weights": fingerprint,
        "parents": [parent_entry(parent) for parent in parents], "files": table, "tensors": tensor_hashes,
    }  # fmt: skip
    partial = folder / f".{SEAL}.partial"  # hidden, so not part of a seal
    with resume_journal.locked_folder(partial, ""):
        try:
            write_json(partial / SEAL, content)
            fsync_path(partial / SEAL)
            (partial / SEAL).replace(folder / SEAL)
        finally:
            resume_journal.remove_folder(partial)
    return f"{folder / SEAL}: {content['kind']}, {len(table)} files, weights {fingerprint[:16]}"
