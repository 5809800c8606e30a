"""Write tensors to safetensors files: one file or shards with an index, hashed, resumable after an interruption.

Format: the safetensors README.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from checkpoint_io import resume_journal
from checkpoint_io.tensors import Spec, Tensor, progress, read_weights, tensor_hash, tensor_hashes

Produce = Callable[[Spec], Iterable[np.ndarray]]  # yields a tensor's bit patterns in flat chunks


def header(tensors: Sequence[Spec], metadata: Mapping[str, str]) -> bytes:
    """Return the safetensors header (with length, padded to 8 bytes) of contiguous tensors in this order."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for spec in tensors:
        end = position + spec.nbytes
        content[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def plan_shards(tensors: Sequence[Spec], limit: int) -> list[list[Spec]]:
    """Return consecutive shards of at most `limit` bytes each; a larger tensor gets its own shard."""
    shards: list[list[Spec]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def shard_names(count: int, stem: str = "model") -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_index(folder: Path, places: Mapping[str, str], size: int, stem: str = "model") -> None:
    """Write {stem}.safetensors.index.json. places: {tensor name: file name}; size: bytes of all tensors."""
    index = {"metadata": {"total_size": size}, "weight_map": dict(places)}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_shards(
    folder: Path,
    tensors: Sequence[Spec],
    produce: Produce,
    limit: int,
    metadata: Mapping[str, str] | None = None,
    expected: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write model.safetensors, or shards and their index, in the given order; return {tensor name: BLAKE3}.

    limit: bytes of a shard. expected: the hashes if known in advance; then nothing is hashed while writing, and the
    caller compares the written files with them (`mismatched_tensors`).
    """
    shards = plan_shards(tensors, limit)
    names = shard_names(len(shards))
    hashes: dict[str, str] = {}
    with progress(sum(tensor.nbytes for tensor in tensors), folder.name.removesuffix(".partial")) as bar:
        for name, shard in zip(names, shards, strict=True):
            head = header(shard, {"format": "pt", **(metadata or {})})
            hashes |= write_file(folder / name, head, shard, produce, bar, expected)
    if len(shards) > 1:
        places = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
        write_index(folder, places, sum(tensor.nbytes for tensor in tensors))
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
    done = resume_journal.finished_parts(path.parent)
    same_head = bool(done) and path.is_file() and path.open("rb").read(len(head)) == head
    sizes = {spec.name: spec.nbytes for spec in tensors}
    recorded = {name: str(facts.get("blake3")) for name, facts in done.items()}
    hashes = intact_parts(path, len(head), sizes, recorded) if same_head else {}
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


def intact_parts(path: Path, start: int, sizes: Mapping[str, int], recorded: Mapping[str, str]) -> dict[str, str]:
    """Return {name: BLAKE3} of the leading parts of a file whose bytes still match the recorded hash.

    sizes: bytes of each part in file order; the first part begins at byte `start`.
    """
    source, end, intact = FileIO(path), path.stat().st_size, dict[str, str]()
    for name, size in sizes.items():
        part = Tensor(name, "U8", (size,), path, source, start)
        if name not in recorded or start + size > end or tensor_hash(part) != recorded[name]:
            break
        intact[name] = recorded[name]
        start += size
    return intact


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write all bytes, in several system calls if necessary (one call writes at most 2 GiB)."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


def mismatched_tensors(folder: Path, hashes: Mapping[str, str]) -> list[Tensor]:
    """Read a written folder back; return the tensors whose hash differs. ValueError if the names differ."""
    tensors = read_weights(folder)
    if tensors.keys() != hashes.keys():
        raise ValueError(f"{folder} does not hold the tensors that were written; check the disk")
    found = tensor_hashes(tensors.values(), f"verifying {folder.name.removesuffix('.partial')}")
    return [tensors[name] for name, value in hashes.items() if found[name] != value]


def verify_written(folder: Path, hashes: Mapping[str, str]) -> None:
    """Read a written folder back; raise ValueError for the first tensor that differs from `hashes`."""
    for tensor in mismatched_tensors(folder, hashes):
        raise read_back_error(tensor)


def read_back_error(tensor: Tensor) -> ValueError:
    return ValueError(f"{tensor.file}: tensor {tensor.name} differs on the disk from what was written; check the disk")


def parse_size(size: str) -> int:
    """Return the bytes in `5GB`, `400MB`, `2GiB` or a plain number; ValueError otherwise."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1, "": 1}
    text = size.strip().upper()
    digits = text.rstrip("KMGIB ")
    try:
        result = int(float(digits) * units[text[len(digits) :].strip()])
    except (ValueError, KeyError):
        raise ValueError(f"{size!r} is not a size; write it as 5GB, 400MB or a number of bytes") from None
    if result <= 0:
        raise ValueError(f"{size!r} is not a size for a shard; write it as 5GB, 400MB or a number of bytes")
    return result
