"""Write tensors to safetensors files: one file or shards with an index, tensor by tensor, hashed, resumable.

the tools of this stage import it. Format: the safetensors README.
"""

import ctypes
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from checkpoint_io import resume_journal
from checkpoint_io.tensors import Spec, Tensor, digest, digests, progress, read_weights

EARLY = 1 << 25  # bytes after which the disk is told to begin
SYNC_FILE_RANGE_WRITE = 2  # of sync_file_range(2): begin, do not wait
Produce = Callable[[Spec], Iterable[np.ndarray]]  # a tensor's bit pattern in flat chunks


def header(tensors: Sequence[Spec], metadata: Mapping[str, str]) -> bytes:
    """A safetensors header with its length in front, padded to 8 bytes; the tensors lie one behind the other."""
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
    """Consecutive runs of tensors of at most `limit` bytes each (a larger tensor gets a shard of its own)."""
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
    """{stem}.safetensors.index.json; places: the file of each tensor."""
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
    """Write model.safetensors, or its shards and index, in the order given; returns each tensor's BLAKE3.

    expected: the hashes where they are known before; the caller then compares what lies on the disk (`differing`), and
    nothing is hashed on its way there. Where the folder's journal names tensors that an interrupted run had written,
    they are hashed instead of made again.
    """
    shards = plan_shards(tensors, limit)
    names = shard_names(len(shards))
    hashes: dict[str, str] = {}
    with progress(sum(tensor.nbytes for tensor in tensors), folder.name.removesuffix(".partial")) as bar:
        for name, shard in zip(names, shards, strict=True):
            hashes |= write_file(folder / name, shard, produce, {"format": "pt", **(metadata or {})}, bar, expected)
    if len(shards) > 1:
        places = {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard}
        write_index(folder, places, sum(tensor.nbytes for tensor in tensors))
    return hashes


def write_file(
    path: Path,
    tensors: Sequence[Spec],
    produce: Produce,
    metadata: Mapping[str, str],
    bar: Any,
    expected: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write one safetensors file, or what is missing of it; returns each tensor's BLAKE3."""
    head = header(tensors, metadata)
    hashes, position = written_already(path, head, tensors), len(head)
    with FileIO(path, "r+" if path.exists() else "x") as file:
        for spec in tensors[: len(hashes)]:
            position += spec.nbytes
            bar.update(spec.nbytes)
        if not hashes:
            write_all(file, head)
        file.seek(position)
        file.truncate()
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
            resume_journal.record(path.parent, spec.name, {"blake3": hashes[spec.name]})
        os.fsync(file.fileno())  # on the disk before the folder is given its name
    return hashes


def written_already(path: Path, head: bytes, tensors: Sequence[Spec]) -> dict[str, str]:
    """The BLAKE3 of those first tensors of a file that lie there as the journal says."""
    done = resume_journal.finished(path.parent)
    hashes: dict[str, str] = {}
    if not done or not path.is_file() or path.open("rb").read(len(head)) != head:
        return hashes
    source, position = FileIO(path), len(head)
    for spec in tensors:
        recorded = done.get(spec.name, {}).get("blake3")
        there = position + spec.nbytes <= path.stat().st_size
        if not (
            recorded and there and digest(Tensor(spec.name, spec.dtype, spec.shape, path, source, position)) == recorded
        ):
            break
        hashes[spec.name] = recorded
        position += spec.nbytes
    return hashes


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write all of it: one call to the system may take less, and takes at most 2 GiB."""
    view, start = memoryview(data).cast("B"), file.tell()
    while view:
        view = view[file.write(view) :]
    end = file.tell()
    if end // EARLY != start // EARLY:
        begin_writing(file, end // EARLY * EARLY)


def begin_writing(file: FileIO, end: int) -> None:
    """Have the disk begin with the last EARLY bytes before `end`; the system itself would wait for many more."""
    with suppress(OSError, AttributeError):  # another C library than glibc
        offset, count = ctypes.c_int64(max(0, end - EARLY)), ctypes.c_int64(EARLY)
        ctypes.CDLL(None).sync_file_range(file.fileno(), offset, count, SYNC_FILE_RANGE_WRITE)


def differing(folder: Path, hashes: Mapping[str, str]) -> list[Tensor]:
    """Read a written folder back: the tensors whose bytes on the disk have another hash. ValueError where some lack."""
    tensors = read_weights(folder)
    if tensors.keys() != hashes.keys():
        raise ValueError(f"{folder} does not hold the tensors that were written; look at the disk and write it again")
    found = digests(tensors.values(), f"verifying {folder.name.removesuffix('.partial')}")
    return [tensors[name] for name, value in hashes.items() if found[name] != value]


def verify_written(folder: Path, hashes: Mapping[str, str]) -> None:
    """ValueError names the file and the tensor that does not lie on the disk as it was written."""
    for tensor in differing(folder, hashes):
        raise not_as_written(tensor)


def not_as_written(tensor: Tensor) -> ValueError:
    return ValueError(f"{tensor.file}: tensor {tensor.name} is not on the disk as it was written; look at the disk")


def parse_size(size: str) -> int:
    """Bytes of `5GB`, `400MB`, `2GiB` or a plain number."""
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
