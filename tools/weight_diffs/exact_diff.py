"""Read exact diffs: the compressed, bit-exact difference between two sets of weights.

In floating point, (tuned - base) + base does not always equal tuned, so bit patterns are subtracted. Floats are mapped
to integers that sort like their values, so that neighbouring floats differ by 1; the zigzagged difference modulo 2^n is
small for a small change. If a matrix changed by a low-rank matrix, the low-rank factors are stored, and the difference
is taken to base + product. The hashes of all tuned and base tensors are stored. diff_writer.py writes exact diffs.
Layout: tools/CHECKPOINT.md.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from blake3 import blake3
from checkpoint_io.bit_patterns import FLOATS, apply, cast
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensors import (
    DIFF_FILES,
    ITEMSIZE,
    Spec,
    Tensor,
    progress,
    ranges,
    read_header,
    read_weights,
    tensor_hash,
)
from lora_merging.low_rank import Factors, Sum

from weight_diffs import number_coding

FORMAT = "exact-diff-2"
TIED = {"lm_head.weight": "model.embed_tokens.weight"}  # output -> embedding, for a base with a tied output


@dataclass(frozen=True)
class Entry:
    """A tuned tensor: its first `from_base` elements are stored as differences to the base, the others directly."""

    dtype: str
    shape: tuple[int, ...]
    blake3: str  # hash of the tuned tensor's bytes
    from_base: int = 0  # elements
    base_name: str | None = None
    base_dtype: str | None = None  # cast to dtype before subtracting
    base_blake3: str | None = None  # hash of the whole base tensor
    rank: int = 0  # rank of the product added to the base before subtracting; 0: no product
    scaled: bool = False  # whether the rows of base + product are scaled

    def parts(self, chunk: int) -> list["PayloadPart"]:
        """Return the parts of the payload in order, in chunks of about `chunk` elements."""
        rows, columns = (self.shape[0], self.from_base // self.shape[0]) if self.rank else (0, 0)
        parts = [PayloadPart("left", 4, *cut) for cut in ranges(rows * self.rank, chunk)]
        parts += [PayloadPart("right", 4, *cut) for cut in ranges(columns * self.rank, chunk)]
        parts += [PayloadPart("scale", 4, *cut) for cut in ranges(rows if self.scaled else 0, chunk)]
        step = max(1, chunk // columns) * columns if self.rank else chunk  # whole rows if there is a product
        parts += [PayloadPart("difference", ITEMSIZE[self.dtype], *cut) for cut in ranges(self.from_base, step)]
        whole = ranges(math.prod(self.shape), chunk, self.from_base)
        return parts + [PayloadPart("whole", ITEMSIZE[self.dtype], *cut) for cut in whole]


@dataclass(frozen=True)
class PayloadPart:
    """One compressed chunk of a payload: elements first to last of `what`."""

    what: str  # left, right, scale, difference, whole
    itemsize: int
    first: int
    last: int


Place = tuple[PayloadPart, int, int]  # a part and its byte range in the payload


@dataclass(frozen=True)
class ExactDiff:
    """An opened exact diff."""

    folder: Path
    chunk: int  # elements per compressed chunk
    entries: dict[str, Entry]
    payloads: dict[str, Tensor]
    base: str  # fingerprint of all weights of the base
    tuned: str  # fingerprint of all tuned weights


def counterpart(name: str, base: Mapping[str, Tensor]) -> Tensor | None:
    """Return the base tensor of a tuned tensor: of the same name, or the embedding for a tied output; or None."""
    return base.get(name) or base.get(TIED.get(name, ""))


def from_base(tuned: Spec, base: Spec | None) -> int:
    """Return the number of leading elements of the tuned tensor that have a counterpart in the base.

    Added rows have no counterpart. The number is 0 if the base lacks the tensor or its type is incompatible. Raises
    ValueError if the shapes are incompatible.
    """
    if base is None:
        return 0
    same_rows = len(tuned.shape) == len(base.shape) == 2 and tuned.shape[1] == base.shape[1]
    if tuned.shape != base.shape and not same_rows:
        raise ValueError(
            f"tensor {tuned.name} is {list(base.shape)} in the base and {list(tuned.shape)} in the tuned model; "
            "use the base of the tuned model"
        )
    if tuned.dtype != base.dtype and not (tuned.dtype in FLOATS and base.dtype in FLOATS):
        return 0
    return min(tuned.elements, base.elements)


def predicted(base: np.ndarray, base_dtype: str, first: int, entry: Entry, total: Sum | None) -> np.ndarray:
    """Return the bit patterns of base (+ product) in the tuned type. first: index of the first element of `base`."""
    if total is None:
        return cast(base, base_dtype, entry.dtype)
    return total.rows(base, base_dtype, first // total.factors.right.shape[1], entry.dtype)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_diff(folder: Path) -> ExactDiff:
    """Open an exact diff; ValueError if a file is damaged or has another format."""
    payloads = read_weights(folder, DIFF_FILES)
    entries: dict[str, Entry] = {}
    facts: dict[str, str] = {}
    for path in dict.fromkeys(payload.file for payload in payloads.values()):
        _, metadata, _ = read_header(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path} is of format {metadata.get('format')!r}, this version reads {FORMAT}; make the diff again"
            )
        try:
            table = json.loads(metadata.pop("tensors"))
            entries |= {name: replace(Entry(**entry), shape=tuple(entry["shape"])) for name, entry in table.items()}
            facts = facts or metadata
            number = int(metadata["chunk"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} has damaged metadata ({error!r}); download it again") from None
        if metadata != facts or not 1 <= number <= 1 << 24 or "base" not in facts or "tuned" not in facts:
            raise ValueError(f"{path} does not belong to the other files of its diff; download all of them again")
    number = int(facts["chunk"])
    sound = (is_sound(entry, number, payloads[name].elements) for name, entry in entries.items() if name in payloads)
    if entries.keys() != payloads.keys() or not all(sound):
        raise ValueError(
            f"{folder}: its diff has damaged metadata (the table of tensors does not fit); download it again"
        )
    return ExactDiff(folder, number, entries, payloads, facts["base"], facts["tuned"])


def is_sound(entry: Entry, chunk: int, payload: int) -> bool:
    """Return whether an entry's numbers are consistent, so that a damaged entry cannot cause huge allocations.

    payload: its size in bytes; the length of each chunk takes four of them.
    """
    sizes = all(type(side) is int and side >= 0 for side in entry.shape)
    if not sizes or entry.dtype not in ITEMSIZE or not 0 <= entry.from_base <= math.prod(entry.shape):
        return False
    if math.prod(entry.shape) // chunk * 4 > payload:
        return False
    if entry.from_base and None in (entry.base_name, entry.base_blake3, entry.base_dtype):
        return False
    low_rank = len(entry.shape) == 2 and entry.from_base == math.prod(entry.shape) and entry.dtype in FLOATS
    return entry.rank == 0 or (low_rank and entry.base_dtype in FLOATS and 0 < entry.rank <= min(entry.shape))


def payload_chunks(diff: ExactDiff, name: str) -> list[Place]:
    """Return [(part, first byte, end)] of a payload, from the chunk lengths at its end; ValueError if damaged."""
    parts, payload = diff.entries[name].parts(diff.chunk), diff.payloads[name]
    table = payload.elements - 4 * len(parts)
    lengths = payload.read(table).view("<u4").tolist() if table >= 0 else []
    if sum(lengths) != table:
        raise damaged(diff, name, "its chunks do not fill it")
    ends = np.cumsum(lengths).tolist()
    return [(part, end - length, end) for part, end, length in zip(parts, ends, lengths, strict=True)]


def damaged(diff: ExactDiff, name: str, reason: object) -> ValueError:
    return ValueError(f"{diff.payloads[name].file}: tensor {name} is damaged ({reason}); download it again")


def decode(diff: ExactDiff, name: str, weights: Mapping[str, Tensor]) -> Iterator[np.ndarray]:
    """Yield the tuned tensor's bit patterns in chunks; ValueError if the payload is damaged.

    weights: the base's tensors.
    """
    entry, payload, zstd = diff.entries[name], diff.payloads[name], number_coding.codec()
    base = weights[entry.base_name] if entry.base_name is not None else None

    def numbers(place: Place) -> np.ndarray:
        part, start, end = place
        try:
            return number_coding.decode(payload.read(start, end).data, part.last - part.first, part.itemsize, zstd)
        except Exception as error:  # zstd raises its own exception types
            raise damaged(diff, name, error) from None

    places = payload_chunks(diff, name)
    total = Sum(read_factors(entry, places, numbers)) if entry.rank else None

    def bits(place: Place) -> np.ndarray:
        part = place[0]
        if part.what == "whole" or base is None:
            return numbers(place)
        below = predicted(base.read_once(part.first, part.last), base.dtype, part.first, entry, total)
        return apply(numbers(place), below, entry.dtype)

    yield from in_order(bits, [place for place in places if place[0].what in ("difference", "whole")])


def check_payload(diff: ExactDiff, name: str, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError if the decoded payload does not have the recorded hash."""
    state = blake3()
    for bits in decode(diff, name, weights):
        state.update(bits.view(np.uint8).data)
    if state.hexdigest() != diff.entries[name].blake3:
        raise damaged(diff, name, "its content does not have the recorded hash")


def read_factors(entry: Entry, places: list[Place], numbers: Callable[[Place], np.ndarray]) -> Factors:
    """Return the factors at the start of a payload. numbers: decodes one chunk."""

    def matrix(what: str) -> np.ndarray:
        return np.concatenate([numbers(place) for place in places if place[0].what == what]).view(np.float32)

    left, right = matrix("left").reshape(entry.shape[0], -1), matrix("right").reshape(entry.rank, -1)
    return Factors(left, right, matrix("scale") if entry.scaled else None)


def check_base(diff: ExactDiff, base: Mapping[str, Tensor], folder: Path) -> None:
    """Hash the base tensors that the diff refers to; ValueError for the first that is missing or differs."""
    wanted = {e.base_name: e for e in diff.entries.values() if e.base_name is not None}
    for name, entry in wanted.items():
        if name not in base:
            raise ValueError(f"{folder} has no tensor {name}, which {diff.folder} refers to; use the diff's base")
        if base[name].dtype != entry.base_dtype:
            raise wrong_base(diff, base[name], folder, f"{base[name].dtype}, it was made from {entry.base_dtype}")
    with progress(sum(base[name].nbytes for name in wanted), "checking the base") as bar:
        for name, found in zip(wanted, in_order(tensor_hash, [base[name] for name in wanted]), strict=True):
            if found != wanted[name].base_blake3:
                raise wrong_base(diff, base[name], folder, "different values")
            bar.update(base[name].nbytes)


def wrong_base(diff: ExactDiff, tensor: Tensor, folder: Path, reason: str) -> ValueError:
    return ValueError(
        f"{folder} is not the base of {diff.folder}: tensor {tensor.name} in {tensor.file.name} differs ({reason}); "
        f"it was made from weights {diff.base[:16]}"
    )
