"""Write tensors to safetensors files: one file or shards with an index, hashed, resumable after an interruption.

Format: the safetensors README.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from partial_folders import resume_journal

from checkpoint_io.checkpoint_folders import write_json
from checkpoint_io.tensors import Spec, Tensor, progress, read_weights, tensor_hash, tensor_hashes

Produce = Callable[[Spec], Iterable[np.ndarray]]  # yields a tensor's bit patterns in flat chunks


def header(tensors: Sequence[Spec], metadata: Mapping[str, str]) -> bytes:
    """Return the safetensors header of contiguous tensors in this order: length field and JSON, padded to 8 bytes."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for spec in tensors:
        end = position + spec.nbytes
        content[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shards(
    folder: Path,
    tensors: Sequence[Spec],
    produce: Produce,
    shard_limit: int,
    expected: Mapping[str, str] | None = None,
    stem: str = "model",
) -> dict[str, str]:
    """Write {stem}.safetensors, or shards and their index; return {tensor name: BLAKE3}.

    shard_limit: the largest size of a shard in bytes; a larger tensor gets its own shard. expected: the hashes, if they
    are known in advance; then nothing is hashed during writing, and the caller runs `verify_written` with them.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    specs, hashes = {tensor.name: tensor for tensor in tensors}, dict[str, str]()
    plan = split_state_dict_into_shards_factory(
        specs,
        get_storage_size=lambda spec: spec.nbytes,
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=shard_limit,
    )
    with progress(plan.metadata["total_size"], folder.name.removesuffix(".partial")) as bar:
        for file, names in plan.filename_to_tensors.items():
            shard = [specs[name] for name in names]
            hashes |= write_file(folder / file, header(shard, {"format": "pt"}), shard, produce, bar, expected)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / f"{stem}.safetensors.index.json", index)
    return hashes


def write_file(
    path: Path,
    head: bytes,
    tensors: Sequence[Spec],
    produce: Produce,
    bar: Any,
    expected: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write `head` and the contiguous bytes of the tensors to a file; return {tensor name: BLAKE3}.

    Tensors that an interrupted run wrote, according to the folder's journal, are hashed instead of produced again.
    """
    same_head = path.is_file() and path.open("rb").read(len(head)) == head
    hashes = intact_tensors(path, len(head), tensors) if same_head else {}
    sizes = {spec.name: spec.nbytes for spec in tensors}
    with FileIO(path, "r+" if path.exists() else "x") as file:
        if not same_head:
            write_all(file, head)
        file.seek(len(head) + sum(sizes[name] for name in hashes))
        file.truncate()
        bar.update(sum(sizes[name] for name in hashes))
        for spec in tensors[len(hashes) :]:
            state, written = blake3(), 0
            for chunk in produce(spec):
                write_all(file, chunk.data)
                if expected is None:
                    state.update(chunk.view(np.uint8).data)
                written += chunk.nbytes
                bar.update(chunk.nbytes)
            assert written == spec.nbytes, f"{spec.name}: {written} bytes produced for {spec.nbytes}"
            hashes[spec.name] = state.hexdigest() if expected is None else expected[spec.name]
            resume_journal.record_part(path.parent, spec.name, {"blake3": hashes[spec.name]})
        os.fsync(file.fileno())  # flushed before the folder is renamed
    return hashes


def intact_tensors(path: Path, start: int, tensors: Sequence[Spec]) -> dict[str, str]:
    """Return {name: BLAKE3} of a file's leading tensors whose bytes match the hash in the journal of its folder.

    start: the position of the first tensor in the file.
    """
    recorded, intact = resume_journal.finished_parts(path.parent), dict[str, str]()
    source, end = FileIO(path), path.stat().st_size
    for spec in tensors:
        stored = Tensor(spec.name, "U8", (spec.nbytes,), path, source, start)
        start += spec.nbytes
        value = recorded.get(spec.name, {}).get("blake3")
        if value is None or start > end or tensor_hash(stored) != value:
            break
        intact[spec.name] = value
    return intact


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write all bytes, in several system calls if necessary (one call writes at most 2 GiB)."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


def verify_written(folder: Path, hashes: Mapping[str, str], remedy: str = "check the disk") -> None:
    """Read a written folder back; raise ValueError, with `remedy`, for the first tensor that differs from `hashes`."""
    tensors = read_weights(folder)
    if tensors.keys() != hashes.keys():
        raise ValueError(f"{folder} does not hold the tensors that were written; check the disk")
    actual = tensor_hashes(tensors.values(), f"verifying {folder.name.removesuffix('.partial')}")
    for name, tensor in tensors.items():
        if actual[name] != hashes[name]:
            raise ValueError(f"{tensor.file}: tensor {name} does not have the expected content; {remedy}")


def parse_size(size: str) -> int:
    """Return the bytes in `5GB`, `400MB`, `300KB` or a plain number; ValueError otherwise."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "": 1}
    match = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) *([KMG]B|)", size.upper())
    result = int(Fraction(Decimal(match[1])) * units[match[2]]) if match else 0
    if not result:
        raise ValueError(f"{size!r} is not a size for a shard; write it as 5GB, 400MB or a number of bytes")
    return result
