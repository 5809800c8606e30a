"""Exact diffs: what turns one set of weights into another, bit for bit, in about as many bits as that tells.

(tuned - base) + base is not tuned in floating point. So bit patterns are subtracted: those of floats are first mapped
to integers in the order of the values, where neighbours differ by 1; the difference modulo 2^n, zigzagged, is a small
number for a small change. Where a matrix changed by a matrix of small rank, its factors are stored, and the difference
is taken to the base with their product. Every tensor's hash is kept, and that of the base's it refers to.
Layout: tools/CHECKPOINT.md.

weight_diff.py and checkpoint.py import it; diff_writer.py makes the files.
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
from checkpoint_io.tensors import ITEMSIZE, Spec, Tensor, cuts, digest, progress, read_header, read_weights
from lora_merging.low_rank import Factors, Sum

from weight_diffs import number_coding

DIFF_FILES = ("diff.safetensors",)
FORMAT = "exact-diff-2"
TIED = {"lm_head.weight": "model.embed_tokens.weight"}  # the output that a tied base does not store


@dataclass(frozen=True)
class Entry:
    """How one tuned tensor is stored: its first `from_base` elements as differences, the others whole."""

    dtype: str
    shape: tuple[int, ...]
    blake3: str  # of the tuned tensor's bytes
    from_base: int = 0  # elements
    base_name: str | None = None
    base_dtype: str | None = None  # cast to dtype before subtracting where it is another
    base_blake3: str | None = None  # of the whole base tensor
    rank: int = 0  # of what is added to the base before subtracting; 0: nothing
    scaled: bool = False  # whether the rows of that sum are scaled, too

    def parts(self, chunk: int) -> list["Part"]:
        """What the payload is made of, in its order."""
        rows, columns = (self.shape[0], self.from_base // self.shape[0]) if self.rank else (0, 0)
        parts = [Part("left", 4, *cut) for cut in cuts(rows * self.rank, chunk)]
        parts += [Part("right", 4, *cut) for cut in cuts(columns * self.rank, chunk)]
        parts += [Part("scale", 4, *cut) for cut in cuts(rows if self.scaled else 0, chunk)]
        step = max(1, chunk // columns) * columns if self.rank else chunk  # whole rows where rows are multiplied
        parts += [Part("difference", ITEMSIZE[self.dtype], *cut) for cut in cuts(self.from_base, step)]
        whole = cuts(math.prod(self.shape), chunk, self.from_base)
        return parts + [Part("whole", ITEMSIZE[self.dtype], *cut) for cut in whole]


@dataclass(frozen=True)
class Part:
    """One compressed chunk of a payload: elements first … last of `what`."""

    what: str  # left, right, scale, difference, whole
    itemsize: int
    first: int
    last: int


Place = tuple[Part, int, int]  # with the first and the last byte of the payload


@dataclass(frozen=True)
class Diff:
    """An opened exact diff."""

    folder: Path
    chunk: int  # elements that are compressed together
    entries: dict[str, Entry]
    payloads: dict[str, Tensor]
    base: str  # fingerprint of all weights of the base
    tuned: str


def counterpart(name: str, base: Mapping[str, Tensor]) -> Tensor | None:
    """The base's tensor that a tuned one is compared with: of the same name, or what the output was tied to."""
    return base.get(name) or base.get(TIED.get(name, ""))


def from_base(tuned: Spec, base: Spec | None) -> int:
    """How many of the tuned tensor's elements, from the first on, have a counterpart in the base.

    Rows added to a matrix have none; nor has a tensor that the base lacks, or whose type is neither the same nor a
    float of the same kind. Raises ValueError where the shapes do not belong together.
    """
    if base is None:
        return 0
    same_rows = len(tuned.shape) == len(base.shape) == 2 and tuned.shape[1] == base.shape[1]
    if tuned.shape != base.shape and not same_rows:
        raise ValueError(
            f"tensor {tuned.name} is {list(base.shape)} in the base and {list(tuned.shape)} in the tuned model; "
            "these two are not one model before and after tuning"
        )
    if tuned.dtype != base.dtype and not (tuned.dtype in FLOATS and base.dtype in FLOATS):
        return 0
    return min(tuned.elements, base.elements)


def predicted(base: np.ndarray, base_dtype: str, first: int, entry: Entry, total: Sum | None) -> np.ndarray:
    """What the tuned elements from `first` on are compared with: the base in their type, what was added included."""
    if total is None:
        return cast(base, base_dtype, entry.dtype)
    return total.rows(base, base_dtype, first // total.factors.right.shape[1], entry.dtype)


# --- reading ----------------------------------------------------------------------------------------------------------


def is_exact(folder: Path) -> bool:
    """Whether the folder holds an exact diff (any other diff is additive)."""
    return any((folder / name).is_file() for file in DIFF_FILES for name in (file, f"{file}.index.json"))


def read(folder: Path) -> Diff:
    """Open an exact diff. ValueError names the file where it is damaged or of another format."""
    payloads = read_weights(folder, DIFF_FILES)
    entries: dict[str, Entry] = {}
    facts: dict[str, str] = {}
    for path in dict.fromkeys(payload.file for payload in payloads.values()):
        _, metadata, _ = read_header(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is of format {metadata.get('format')!r}, this tool reads {FORMAT}; make it again")
        try:
            table = json.loads(metadata.pop("tensors"))
            entries |= {name: replace(Entry(**entry), shape=tuple(entry["shape"])) for name, entry in table.items()}
            facts = facts or metadata
            number = int(metadata["chunk"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} has damaged metadata ({error!r}); get it again") from None
        if metadata != facts or not 1 <= number <= 1 << 24 or "base" not in facts or "tuned" not in facts:
            raise ValueError(f"{path} does not belong to the other files of its diff; get all of them again")
    number = int(facts["chunk"])
    sound = (is_sound(entry, number, payloads[name].elements) for name, entry in entries.items() if name in payloads)
    if entries.keys() != payloads.keys() or not all(sound):
        raise ValueError(f"{folder}: its diff has damaged metadata (the table of tensors does not fit); get it again")
    return Diff(folder, number, entries, payloads, facts["base"], facts["tuned"])


def is_sound(entry: Entry, chunk: int, payload: int) -> bool:
    """Whether an entry's numbers fit each other, so that nothing of a size that it does not need is made from them.

    payload: bytes; four of them tell the length of each chunk.
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


def payload_chunks(diff: Diff, name: str) -> list[Place]:
    """[(part, first byte, last byte)] of a payload, whose last bytes are the chunks' lengths; ValueError if damaged."""
    parts, payload = diff.entries[name].parts(diff.chunk), diff.payloads[name]
    table = payload.elements - 4 * len(parts)
    lengths = payload.read(table).view("<u4").tolist() if table >= 0 else []
    if sum(lengths) != table:
        raise damaged(diff, name, "its chunks do not fill it")
    ends = np.cumsum(lengths).tolist()
    return [(part, end - length, end) for part, end, length in zip(parts, ends, lengths, strict=True)]


def damaged(diff: Diff, name: str, reason: object) -> ValueError:
    return ValueError(f"{diff.payloads[name].file}: tensor {name} is damaged ({reason}); get it again")


def decode(diff: Diff, name: str, weights: Mapping[str, Tensor]) -> Iterator[np.ndarray]:
    """The tuned tensor's bit pattern in chunks. ValueError names file and tensor where the payload is damaged.

    weights: the base's.
    """
    entry, payload, zstd = diff.entries[name], diff.payloads[name], number_coding.codec()
    base = weights[entry.base_name] if entry.base_name is not None else None

    def numbers(place: Place) -> np.ndarray:
        part, start, end = place
        try:
            return number_coding.decode(payload.read(start, end).data, part.last - part.first, part.itemsize, zstd)
        except Exception as error:  # zstd has errors of its own
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


def check_payload(diff: Diff, name: str, weights: Mapping[str, Tensor]) -> None:
    """ValueError where what a payload gives has another hash than the diff says."""
    state = blake3()
    for bits in decode(diff, name, weights):
        state.update(bits.view(np.uint8).data)
    if state.hexdigest() != diff.entries[name].blake3:
        raise damaged(diff, name, "it gives another hash than recorded")


def read_factors(entry: Entry, places: list[Place], numbers: Callable[[Place], np.ndarray]) -> Factors:
    """The factors at the head of a payload; numbers: decodes one chunk."""

    def matrix(what: str) -> np.ndarray:
        return np.concatenate([numbers(place) for place in places if place[0].what == what]).view(np.float32)

    left, right = matrix("left").reshape(entry.shape[0], -1), matrix("right").reshape(entry.rank, -1)
    return Factors(left, right, matrix("scale") if entry.scaled else None)


def check_base(diff: Diff, base: Mapping[str, Tensor], folder: Path) -> None:
    """Hash those tensors of the base that the diff refers to; ValueError names the first that is another."""
    wanted = {e.base_name: e for e in diff.entries.values() if e.base_name is not None}
    for name, entry in wanted.items():
        if name not in base:
            raise ValueError(
                f"{folder} has no tensor {name}, which {diff.folder} refers to; this is not the diff's base"
            )
        if base[name].dtype != entry.base_dtype:
            raise other_base(diff, base[name], folder, f"{base[name].dtype}, it was made from {entry.base_dtype}")
    with progress(sum(base[name].nbytes for name in wanted), "checking the base") as bar:
        for name, found in zip(wanted, in_order(digest, [base[name] for name in wanted]), strict=True):
            if found != wanted[name].base_blake3:
                raise other_base(diff, base[name], folder, "other values")
            bar.update(base[name].nbytes)


def other_base(diff: Diff, tensor: Tensor, folder: Path, reason: str) -> ValueError:
    return ValueError(
        f"{folder} is not the base of {diff.folder}: tensor {tensor.name} in {tensor.file.name} differs ({reason}); "
        f"it was made from weights {diff.base[:16]}"
    )
