"""Compare two sets of weights tensor by tensor: bit-identical, or how far apart."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from checkpoint_io.bit_patterns import FLOATS, to_float32
from checkpoint_io.tensors import Tensor, progress

NOTES = 5  # maximum number of lines about missing or incompatible tensors


@dataclass
class WeightDistance:
    """Distance between two sets of weights, summed over tensors."""

    elements: int = 0
    different: int = 0  # elements whose bits differ, or whose values differ if their types do
    tensors: int = 0  # tensors with different elements
    largest: float = 0.0  # |a - b|; infinite if one is not finite and the other differs
    at: str = ""  # the tensor with the largest difference
    squares: float = 0.0  # sum of (a - b)^2
    size: float = 0.0  # sum of a^2

    def add(self, first: Tensor, second: Tensor) -> None:
        """Add two tensors of the same shape."""
        before = self.different
        for ours, theirs in zip(first.chunks(), second.chunks(), strict=True):
            floats = first.dtype in FLOATS and second.dtype in FLOATS
            a, b = (to_float32(ours, first.dtype), to_float32(theirs, second.dtype)) if floats else (ours, theirs)
            unequal = ours != theirs if first.dtype == second.dtype else a != b
            self.different += int(np.count_nonzero(unequal))
            if floats:
                with np.errstate(invalid="ignore"):
                    gap = np.where(unequal, a.astype(np.float64) - b, 0.0)
                gap[np.isnan(gap)] = np.inf
                largest = float(np.abs(gap).max(initial=0.0))
                if largest > self.largest:
                    self.largest, self.at = largest, first.name
                self.squares += float(gap @ gap)
                self.size += float(np.square(a, dtype=np.float64).sum())
        self.elements += first.elements
        self.tensors += self.different > before


def compare_weights(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], first: str, second: str
) -> tuple[bool, list[str]]:
    """Return (whether every bit is equal, report lines). first, second: the folders' names for the report."""
    notes = [f"{name} is only in {first}" for name in a if name not in b]
    notes += [f"{name} is only in {second}" for name in b if name not in a]
    total = WeightDistance()
    with progress(sum(tensor.nbytes for tensor in a.values()), "comparing") as bar:
        for name in (name for name in a if name in b):
            ours, theirs = a[name], b[name]
            if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
                kinds = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (ours, theirs))
                notes.append(f"{name} is {' and '.join(kinds)}")
            if ours.shape == theirs.shape:
                total.add(ours, theirs)
            bar.update(ours.nbytes)
    if not total.different and not notes:
        return True, [f"equal: {len(a)} tensors, {total.elements:,} parameters, every bit"]
    relative = math.sqrt(total.squares / total.size) if total.size else 0.0
    lines = [
        f"different: {total.different:,} of {total.elements:,} parameters, in {total.tensors} of {len(a)} tensors",
        f"largest difference {total.largest:.3g} in {total.at or 'no tensor'}, relative distance {relative:.3g}",
    ]
    more = [f"and {len(notes) - NOTES} more such lines"] if len(notes) > NOTES else []
    return False, lines + notes[:NOTES] + more
