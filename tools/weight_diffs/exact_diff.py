"""Read exact diffs: the compressed, bit-exact difference between two sets of weights.

In floating point, (tuned - base) + base does not always equal tuned, so bit patterns are subtracted. Floats are mapped
to integers that sort like their values, so that neighbouring floats differ by 1; the zigzag-encoded difference modulo
2^n is small for a small change. If a matrix changed by a low-rank matrix, the low-rank factors are stored, and the
difference is taken to base + product. The hashes of the tuned tensors and of their base tensors are stored.
diff_writer.py writes exact diffs. Layout: tools/CHECKPOINT.md.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from checkpoint_io.bit_patterns import FLOATS, apply_difference, cast, from_float32, to_float32
from checkpoint_io.checkpoint_folders import read_json
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensors import (
    DIFF_FILES,
    ITEMSIZE,
    Spec,
    Tensor,
    fingerprint,
    read_weights,
    tensor_hashes,
)
from lora_merging.low_rank import Factors
from model_folders.diff_recognition import DIFF_RECORD

from weight_diffs import number_coding

FORMAT = "exact-diff-3"
TIED = {"lm_head.weight": "model.embed_tokens.weight"}  # output -> embedding, for a base with a tied output


@dataclass(frozen=True)
class DiffEntry:
    """The record of a tuned tensor."""

    dtype: str
    shape: tuple[int, ...]
    blake3: str  # hash of the tuned tensor's bytes
    base_name: str | None  # the base tensor to which the difference is taken; None: the difference is taken to 0
    base_dtype: str | None
    base_blake3: str | None  # hash of the whole base tensor
    rank: int  # rank of the product that is added to the base before subtracting; 0: no product
    scaled: bool  # whether the rows of base + product are scaled
    chunks: tuple[int, ...]  # bytes of each compressed chunk of the payload: factors, then differences
    payload_blake3: str

    def spec(self, name: str) -> Spec:
        return Spec(name, self.dtype, self.shape)

    def factor_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the factors at the start of the payload: left, right, scale (if `scaled`)."""
        if not self.rank:
            return []
        rows, columns = self.shape
        return [(rows, self.rank), (self.rank, columns)] + [(rows,)] * self.scaled


@dataclass(frozen=True)
class ExactDiff:
    """An opened exact diff."""

    folder: Path
    entries: dict[str, DiffEntry]
    payloads: dict[str, Tensor]
    base: str  # fingerprint of all weights of the base
    tuned: str  # fingerprint of all tuned weights


def find_base_tensor(tuned: Spec, base: Mapping[str, Tensor]) -> Tensor | None:
    """Return the base tensor that a tuned tensor is compared with; None if it is missing or has an incompatible type.

    The base tensor has the same name, or is the embedding for a tied output matrix. The numbers of rows may differ,
    since vocabulary rows may have been added. Raises ValueError if the shapes are incompatible.
    """
    candidate = base.get(tuned.name) or base.get(TIED.get(tuned.name, ""))
    if candidate is None:
        return None
    same_columns = len(tuned.shape) == len(candidate.shape) == 2 and tuned.shape[1] == candidate.shape[1]
    if tuned.shape != candidate.shape and not same_columns:
        raise ValueError(
            f"tensor {tuned.name} is {list(candidate.shape)} in the base and {list(tuned.shape)} in the tuned model; "
            "use the base of the tuned model"
        )
    return candidate if tuned.dtype == candidate.dtype or {tuned.dtype, candidate.dtype} <= set(FLOATS) else None


def read_base(base: Tensor | None, first: int, last: int) -> np.ndarray:
    """Return the bit patterns of the base's elements first to last (exclusive); fewer if the base has fewer."""
    if base is None:
        return np.zeros(0, np.uint8)
    return base.read_once(*(min(element, base.elements) for element in (first, last)))


def predict(
    bits: np.ndarray, base: Spec | None, tuned: Spec, bounds: tuple[int, int], product: Factors | None
) -> np.ndarray:
    """Return the predicted bit patterns of a range of tuned elements, 0 where the base has no element.

    bits: the bit patterns of the base tensor, from `read_base`; bounds: first and last (exclusive) element.
    """
    predicted = np.zeros(bounds[1] - bounds[0], f"<u{tuned.itemsize}")
    if base is not None and product is not None:
        predicted[:] = from_float32(product.add(to_float32(bits, base.dtype), bounds[0]), tuned.dtype)
    elif base is not None:
        predicted[: bits.size] = cast(bits, base.dtype, tuned.dtype)
    return predicted


def read_diff(folder: Path) -> ExactDiff:
    """Open an exact diff; ValueError if its record is damaged or has another format."""
    record, payloads = read_json(folder / DIFF_RECORD), read_weights(folder, DIFF_FILES)
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{folder} is a diff of format {record.get('format')!r}, this version reads {FORMAT}; make the diff again"
        )
    try:
        entries = {
            name: DiffEntry(**(entry | {"shape": tuple(entry["shape"]), "chunks": tuple(entry["chunks"])}))
            for name, entry in record["tensors"].items()
        }
        diff = ExactDiff(folder, entries, payloads, str(record["base"]), str(record["tuned"]))
        fits = entries.keys() == payloads.keys() and all(is_valid(entries[name], payloads[name]) for name in entries)
        specs = [entry.spec(name) for name, entry in entries.items()]
        hashes = {name: entry.blake3 for name, entry in entries.items()}
        fits = fits and fingerprint(specs, hashes) == diff.tuned  # before memory is allocated for these shapes
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(
            f"{folder / DIFF_RECORD} is damaged or does not match the diff's files; download all of them again"
        )
    return diff


def is_valid(entry: DiffEntry, payload: Tensor) -> bool:
    """Return whether an entry's numbers are consistent, so that a damaged entry cannot cause huge allocations."""
    numbers = (*entry.shape, *entry.chunks, entry.rank)
    if any(type(number) is not int or number < 0 for number in numbers) or entry.dtype not in ITEMSIZE:
        return False
    base, spec = {entry.base_name, entry.base_dtype, entry.base_blake3}, entry.spec("")
    low_rank = len(entry.shape) == 2 and entry.rank <= min(entry.shape) and entry.base_dtype in FLOATS
    chunks = len(entry.factor_shapes() if low_rank else ()) - (-spec.elements // spec.row_step)
    return (
        (base == {None} or None not in base)
        and (low_rank or entry.rank == 0)
        and chunks == len(entry.chunks)
        and payload.elements == sum(entry.chunks)
    )


def stored_bytes(folder: Path) -> int:
    """Return the size of an exact diff's own files, diff.json included."""
    return sum(file.stat().st_size for file in folder.glob("diff*"))


def decode(diff: ExactDiff, name: str, weights: Mapping[str, Tensor]) -> Iterator[np.ndarray]:
    """Yield the tuned tensor's bit patterns in chunks; ValueError if the payload is damaged.

    weights: the base's tensors.
    """
    entry, payload = diff.entries[name], diff.payloads[name]
    base = None if entry.base_name is None else weights[entry.base_name]
    ends = np.cumsum((0, *entry.chunks)).tolist()

    def read_numbers(chunk: int, count: int, itemsize: int) -> np.ndarray:
        try:
            return number_coding.decode(payload.read(ends[chunk], ends[chunk + 1]).data, count, itemsize)
        except Exception as error:  # zstd raises its own exception types
            raise ValueError(f"{payload.file}: tensor {name} is damaged ({error}); download it again") from None

    shapes = entry.factor_shapes()
    factors = [
        read_numbers(chunk, math.prod(shape), 4).view(np.float32).reshape(shape) for chunk, shape in enumerate(shapes)
    ]
    product = Factors(*factors) if factors else None

    def restore(job: tuple[int, tuple[int, int]]) -> np.ndarray:
        chunk, bounds = job
        numbers = read_numbers(chunk, bounds[1] - bounds[0], ITEMSIZE[entry.dtype])
        predicted = predict(read_base(base, *bounds), base, entry.spec(name), bounds, product)
        return apply_difference(numbers, predicted, entry.dtype)

    yield from in_order(restore, enumerate(entry.spec(name).row_ranges(), len(shapes)))


def check_base(diff: ExactDiff, base: Mapping[str, Tensor], folder: Path) -> None:
    """Hash the base tensors that the diff refers to; ValueError for the first that is missing or differs."""
    required = {entry.base_name: entry for entry in diff.entries.values() if entry.base_name is not None}
    for name in required:
        if name not in base:
            raise ValueError(f"{folder} has no tensor {name}, which {diff.folder} refers to; use the diff's base")
    hashes = tensor_hashes((base[name] for name in required), "checking the base")
    for name, entry in required.items():
        if (base[name].dtype, hashes[name]) != (entry.base_dtype, entry.base_blake3):
            raise ValueError(
                f"{folder} is not the base of {diff.folder}: tensor {name} in {base[name].file.name} differs; give the "
                f"model with the weights {diff.base[:16]} (python tools/checkpoint.py show FOLDER prints this "
                "fingerprint)"
            )
