"""Write an exact diff in one pass over base and tuned model; hashing and compression use all cores.

Layout: tools/CHECKPOINT.md.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from checkpoint_io import resume_journal
from checkpoint_io.bit_patterns import cast, difference
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensor_files import header, intact_parts, plan_shards, shard_names, write_all, write_index
from checkpoint_io.tensors import CHUNK, Spec, Tensor, check_finite, fingerprint, progress, tensor_hashes
from lora_merging.low_rank import Factors, Sum

from weight_diffs import number_coding
from weight_diffs.exact_diff import FORMAT, Entry, PayloadPart, counterpart, from_base, predicted
from weight_diffs.rank_search import RankSearch

Known = Callable[[Tensor], Factors | None]  # known factors of a tensor's change, or None
Added = Callable[[Tensor, Tensor], Factors | None]  # factors to store for (tuned, base), known or found; None: none


@dataclass(frozen=True)
class Piece:
    """A compressed part of a payload, and the bit patterns from which it was computed."""

    packed: bytes
    tuned: np.ndarray | None = None
    base: np.ndarray | None = None


def write(
    folder: Path,
    tuned: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    known: Known,
    limit: int,
    search: RankSearch | None,
) -> int:
    """Write the diff to diff.safetensors or to shards; return the number of tensors stored with low-rank factors.

    known: returns the known factors of a change. limit: bytes of tuned weights per shard. search: finds unknown
    factors; None: no search. Payloads that an interrupted run wrote are hashed instead of written again. Raises
    ValueError, naming file and tensor, if a tuned float is NaN or infinite.
    """
    shards = plan_shards(list(tuned.values()), limit)
    names = shard_names(len(shards), "diff")

    def added(ours: Tensor, theirs: Tensor) -> Factors | None:
        factors = known(ours) or (search.find(ours, theirs) if search else None)
        return factors if factors is not None and is_worth(factors, ours, theirs) else None

    entries: list[dict[str, Entry]] = []
    heads: list[tuple[list[Spec], int]] = []  # payloads of each file, and bytes reserved for its header
    with progress(sum(tensor.nbytes for tensor in tuned.values()), "diff") as bar:
        for name, shard in zip(names, shards, strict=True):
            payloads, table, room = write_payloads(folder / name, [tuned[s.name] for s in shard], base, added, bar)
            entries.append(table)
            heads.append((payloads, room))
    every = {name: entry for table in entries for name, entry in table.items()}
    used = {entry.base_name: entry.base_blake3 for entry in every.values() if entry.base_name is not None}
    unused = tensor_hashes(
        (tensor for name, tensor in base.items() if name not in used), "hashing the rest of the base"
    )
    common = {
        "format": FORMAT, "chunk": str(CHUNK),
        "base": fingerprint(base.values(), {**unused, **used}),  # type: ignore[dict-item]
        "tuned": fingerprint(tuned.values(), {name: entry.blake3 for name, entry in every.items()}),
    }  # fmt: skip
    for name, (payloads, room), table in zip(names, heads, entries, strict=True):
        write_head(folder / name, payloads, common | {"tensors": table_text(table)}, room)
    if len(shards) > 1:
        places = {spec.name: name for name, (payloads, _) in zip(names, heads, strict=True) for spec in payloads}
        write_index(folder, places, sum(s.nbytes for payloads, _ in heads for s in payloads), "diff")
    return sum(entry.rank > 0 for entry in every.values())


def table_text(entries: Mapping[str, Entry]) -> str:
    return json.dumps({name: asdict(entry) for name, entry in entries.items()})


def head_room(tensors: list[Tensor]) -> int:
    """Return the bytes to reserve for a file's header, whose sizes and hashes are known only at the end."""
    longest = Entry("F8_E4M3", (), "0" * 64, 10**18, "", "F8_E4M3", "0" * 64, 10**6, False)
    entries = {t.name: replace(longest, shape=t.shape, base_name=t.name + "." * 32) for t in tensors}
    facts = {"format": FORMAT, "chunk": "0" * 9, "base": "0" * 64, "tuned": "0" * 64, "tensors": table_text(entries)}
    return len(header([Spec(tensor.name, "U8", (10**15,)) for tensor in tensors], facts))


def write_head(path: Path, payloads: list[Spec], metadata: Mapping[str, str], room: int) -> None:
    """Write the header into the reserved bytes at the start of the file."""
    final = header(payloads, metadata)
    assert len(final) <= room, f"{path}: a header of {len(final)} bytes in the room for {room}"
    with FileIO(path, "r+") as file:
        write_all(file, (room - 8).to_bytes(8, "little") + final[8:] + b" " * (room - len(final)))
        os.fsync(file.fileno())


def write_payloads(
    path: Path, tensors: list[Tensor], base: Mapping[str, Tensor], added: Added, bar: Any
) -> tuple[list[Spec], dict[str, Entry], int]:
    """Write the payloads of one file after the reserved header; return payloads, entries and reserved bytes."""
    room, payloads, entries = head_room(tensors), list[Spec](), dict[str, Entry]()
    done = finished_payloads(path, tensors, room)
    with FileIO(path, "r+" if path.exists() else "x") as file:
        for tensor in tensors:
            if tensor.name in done:
                entry, size = done[tensor.name]
            else:
                file.seek(room + sum(spec.nbytes for spec in payloads))
                file.truncate()
                entry, size = write_payload(file, tensor, counterpart(tensor.name, base), added)
            entries[tensor.name] = entry
            payloads.append(Spec(tensor.name, "U8", (size,)))
            bar.update(tensor.nbytes)
    return payloads, entries, room


def finished_payloads(path: Path, tensors: list[Tensor], room: int) -> dict[str, tuple[Entry, int]]:
    """Return {name: (entry, payload bytes)} of the leading payloads that an interrupted run wrote correctly."""
    facts = resume_journal.finished_parts(path.parent)
    done = [tensor for tensor in tensors if tensor.name in facts] if path.is_file() else []
    sizes = {tensor.name: facts[tensor.name]["bytes"] for tensor in done}
    hashes = {tensor.name: facts[tensor.name]["payload"] for tensor in done}
    intact = intact_parts(path, room, sizes, hashes) if done else {}
    return {
        tensor.name: (replace(Entry(**facts[tensor.name]["entry"]), shape=tensor.shape), sizes[tensor.name])
        for tensor in done[: len(intact)]
    }


def write_payload(file: FileIO, tuned: Tensor, base: Tensor | None, added: Added) -> tuple[Entry, int]:
    """Write one tensor's payload at the file's position; return its entry and the payload size in bytes."""
    start = from_base(tuned, base)
    base = base if start else None
    factors = added(tuned, base) if base is not None else None
    entry = Entry(tuned.dtype, tuned.shape, "", start)
    if base is not None:
        scaled = factors is not None and factors.scale is not None
        entry = replace(
            entry, base_name=base.name, base_dtype=base.dtype, rank=factors.rank if factors else 0, scaled=scaled
        )
    states = {"tuned": blake3(), "base": blake3(), "payload": blake3()}
    lengths = []
    for piece in pieces(entry, tuned, base, factors):
        for what, data in (("tuned", piece.tuned), ("base", piece.base)):
            if data is not None:
                states[what].update(data.view(np.uint8).data)
        states["payload"].update(piece.packed)
        write_all(file, piece.packed)
        lengths.append(len(piece.packed))
    table = np.array(lengths, "<u4").tobytes()
    states["payload"].update(table)
    write_all(file, table)
    entry = replace(entry, blake3=states["tuned"].hexdigest())
    if base is not None:
        for rest in base.chunks(start=start):  # rows of the base that the tuned tensor does not have
            states["base"].update(rest.view(np.uint8).data)
        entry = replace(entry, base_blake3=states["base"].hexdigest())
    size = sum(lengths) + len(table)
    fact = {"entry": asdict(entry), "bytes": size, "payload": states["payload"].hexdigest()}
    resume_journal.record_part(Path(str(file.name)).parent, tuned.name, fact)
    return entry, size


def pieces(entry: Entry, tuned: Tensor, base: Tensor | None, factors: Factors | None) -> Iterator[Piece]:
    """Yield the parts of one tensor's payload in order, computed on all cores."""
    zstd = number_coding.codec()
    total = Sum(factors) if factors else None
    stored = {} if factors is None else {"left": factors.left, "right": factors.right, "scale": factors.scale}

    def numbers(part: PayloadPart, ours: np.ndarray, theirs: np.ndarray | None) -> np.ndarray:
        if base is None or theirs is None:
            return ours
        return difference(ours, predicted(theirs, base.dtype, part.first, entry, total), tuned.dtype)

    def piece(part: PayloadPart) -> Piece:
        if part.what in stored:
            values = np.asarray(stored[part.what], np.float32).reshape(-1)[part.first : part.last]
            return Piece(number_coding.encode(values.view(np.uint32), zstd))
        ours = tuned.read_once(part.first, part.last)
        check_finite(ours, tuned)
        theirs = base.read_once(part.first, part.last) if base and part.what == "difference" else None
        return Piece(number_coding.encode(numbers(part, ours, theirs), zstd), ours, theirs)

    return in_order(piece, entry.parts(CHUNK))


def is_worth(factors: Factors, tuned: Tensor, base: Tensor) -> bool:
    """Estimate from the first rows of the matrix whether the factors save more bytes than they take."""
    zstd, columns = number_coding.codec(), tuned.shape[1]
    rows = min(tuned.shape[0], max(1, CHUNK // columns))
    ours, theirs = tuned.read(0, rows * columns), base.read(0, rows * columns)
    sizes = [
        len(number_coding.encode(difference(ours, below, tuned.dtype), zstd))
        for below in (cast(theirs, base.dtype, tuned.dtype), Sum(factors).rows(theirs, base.dtype, 0, tuned.dtype))
    ]
    saved = (sizes[0] - sizes[1]) * tuned.shape[0] / rows
    stored = (np.ascontiguousarray(part).reshape(-1)[:CHUNK] for part in (factors.left, factors.right))
    shares = [len(number_coding.encode(part.view(np.uint32), zstd)) / part.nbytes for part in stored]
    return saved > factors.left.nbytes * shares[0] + factors.right.nbytes * shares[1]
