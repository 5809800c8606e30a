"""Write an exact diff in one pass over base and tuned model; hashing and compression use all cores.

Layout: tools/CHECKPOINT.md.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from io import FileIO
from pathlib import Path

import numpy as np
from blake3 import blake3
from checkpoint_io.bit_patterns import encode_difference
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensor_files import write_all, write_shards
from checkpoint_io.tensors import Tensor, check_finite, fingerprint, is_buffer, progress, tensor_hashes
from lora_merging.low_rank import Factors
from model_folders.diff_recognition import DIFF_RECORD
from partial_folders import resume_journal

from weight_diffs import number_coding
from weight_diffs.exact_diff import FORMAT, DiffEntry, find_base_tensor, predict, read_base

PAYLOADS = "payloads"  # temporary file of all payloads, until their sizes are known and the headers can be written
FindFactors = Callable[[Tensor, Tensor], Factors | None]  # (tuned, base) -> factors of the change, or None


def write_diff(
    folder: Path, tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], find_factors: FindFactors, shard_limit: int
) -> int:
    """Write diff.safetensors, or shards of it, and diff.json; return the number of tensors stored with factors.

    shard_limit: the largest size of a shard in bytes. Payloads that an interrupted run recorded in the folder's journal
    are kept. Raises ValueError, which names file and tensor, if a tuned float is NaN or infinite.
    """
    path, finished = folder / PAYLOADS, resume_journal.finished_parts(folder)
    entries, payloads, position = dict[str, DiffEntry](), dict[str, Tensor](), 0
    with FileIO(path, "r+" if path.exists() else "x+") as file:
        with progress(sum(tensor.nbytes for tensor in tuned.values()), "diff") as bar:
            for name, tensor in tuned.items():
                part = f"payload {name}"
                if part not in finished:
                    file.seek(position)
                    # a base that is saved again may lack its buffers
                    theirs = None if is_buffer(tensor) else find_base_tensor(tensor, base)
                    finished[part] = asdict(write_payload(file, tensor, theirs, find_factors))
                    resume_journal.record_part(folder, part, finished[part])
                entries[name] = DiffEntry(**finished[part])
                payloads[name] = Tensor(name, "U8", (sum(entries[name].chunks),), path, file, position)
                position += payloads[name].nbytes
                bar.update(tensor.nbytes)
        specs = list(payloads.values())
        copied = write_shards(folder, specs, lambda spec: payloads[spec.name].chunks(), shard_limit, stem="diff")
    for name, entry in entries.items():
        if copied[name] != entry.payload_blake3:  # the machine failed before the earlier run's file was on the disk
            raise ValueError(f"{path}: tensor {name} was damaged before this run resumed; run the command again")
    path.unlink()
    used = {entry.base_name: entry.base_blake3 for entry in entries.values() if entry.base_name is not None}
    unused = tensor_hashes((base[name] for name in base if name not in used), "hashing the rest of the base")
    record = {
        "format": FORMAT,
        "base": fingerprint(base.values(), {**unused, **used}),  # type: ignore[dict-item]
        "tuned": fingerprint(tuned.values(), {name: entry.blake3 for name, entry in entries.items()}),
        "tensors": {name: asdict(entry) for name, entry in entries.items()},
    }
    (folder / DIFF_RECORD).write_text(json.dumps(record))
    return sum(entry.rank > 0 for entry in entries.values())


def write_payload(file: FileIO, tuned: Tensor, base: Tensor | None, find_factors: FindFactors) -> DiffEntry:
    """Write one tensor's payload at the file's position; return its entry."""
    factors = find_factors(tuned, base) if base is not None else None
    hashes, sizes = {"tuned": blake3(), "base": blake3(), "payload": blake3()}, list[int]()
    for packed, ours, theirs in encode_chunks(tuned, base, factors):
        hashes["tuned"].update(ours.view(np.uint8).data)
        hashes["base"].update(theirs.view(np.uint8).data)
        hashes["payload"].update(packed)
        write_all(file, packed)
        sizes.append(len(packed))
    base_fields: tuple[str | None, str | None, str | None] = (None, None, None)
    if base is not None:
        for rest in base.chunks(start=tuned.elements):  # rows of the base that the tuned tensor does not have
            hashes["base"].update(rest.view(np.uint8).data)
        base_fields = base.name, base.dtype, hashes["base"].hexdigest()
    return DiffEntry(
        tuned.dtype, tuned.shape, hashes["tuned"].hexdigest(), *base_fields,
        0 if factors is None else factors.left.shape[1], factors is not None and factors.scale is not None,
        tuple(sizes), hashes["payload"].hexdigest(),
    )  # fmt: skip


def encode_chunks(
    tuned: Tensor, base: Tensor | None, factors: Factors | None
) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
    """Yield (compressed chunk, tuned bits, base bits) of one tensor, computed on all cores; the factors come first."""
    none = np.zeros(0, np.uint8)
    for part in () if factors is None else (factors.left, factors.right, factors.scale):
        if part is not None:
            numbers = np.ascontiguousarray(part, np.float32).reshape(-1).view(np.uint32)
            yield number_coding.encode(numbers), none, none

    def code(bounds: tuple[int, int]) -> tuple[bytes, np.ndarray, np.ndarray]:
        ours, theirs = tuned.read_once(*bounds), read_base(base, *bounds)
        check_finite(ours, tuned)
        predicted = predict(theirs, base, tuned, bounds, factors)
        return number_coding.encode(encode_difference(ours, predicted, tuned.dtype)), ours, theirs

    yield from in_order(code, tuned.row_ranges())


def saves_bytes(factors: Factors, tuned: Tensor, base: Tensor) -> bool:
    """Estimate from the first rows of the matrix whether the factors save more bytes than they take."""
    bounds = tuned.row_ranges()[0]
    ours, theirs = tuned.read(*bounds), base.read(*bounds)
    sizes = []
    for product in (None, factors):
        numbers = encode_difference(ours, predict(theirs, base, tuned, bounds, product), tuned.dtype)
        sizes.append(len(number_coding.encode(numbers)))
    return (sizes[0] - sizes[1]) * tuned.elements / ours.size > factors.left.nbytes + factors.right.nbytes
