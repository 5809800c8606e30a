"""Compare two sets of weights tensor by tensor: bit-identical, or how far apart."""

from collections.abc import Mapping

import numpy as np
from checkpoint_io.bit_patterns import FLOATS, to_float32
from checkpoint_io.tensors import Tensor, progress


def tensor_distance(first: Tensor, second: Tensor) -> tuple[int, float]:
    """Compare two tensors of the same shape; return (number of different elements, largest |a - b| of floats).

    Elements of the same type differ if their bits differ; floats of different types, if their values differ. The
    largest difference is infinite if one of two different values is not finite.
    """
    different, largest = 0, 0.0
    for ours, theirs in zip(first.chunks(), second.chunks(), strict=True):
        floats = first.dtype in FLOATS and second.dtype in FLOATS
        a, b = (to_float32(ours, first.dtype), to_float32(theirs, second.dtype)) if floats else (ours, theirs)
        unequal = ours != theirs if first.dtype == second.dtype else a != b
        different += int(np.count_nonzero(unequal))
        if floats:
            with np.errstate(invalid="ignore"):
                gap = np.where(unequal, np.abs(a.astype(np.float64) - b), 0.0)
            largest = max(largest, float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0)))
    return different, largest


def compare_weights(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], first: str, second: str
) -> tuple[bool, list[str]]:
    """Return (whether all bits are equal, report lines). first, second: the folders' names for the report."""
    notes = [f"{name} is only in {first}" for name in a if name not in b]
    notes += [f"{name} is only in {second}" for name in b if name not in a]
    elements, distances = 0, dict[str, tuple[int, float]]()
    with progress(sum(tensor.nbytes for tensor in a.values()), "comparing") as bar:
        for name in (name for name in a if name in b):
            ours, theirs = a[name], b[name]
            if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
                kinds = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (ours, theirs))
                notes.append(f"{name} is {' and '.join(kinds)}")
            if ours.shape == theirs.shape:
                elements += ours.elements
                distances[name] = tensor_distance(ours, theirs)
            bar.update(ours.nbytes)
    different = sum(count for count, _ in distances.values())
    if not different and not notes:
        return True, [f"equal: {len(a)} tensors, {elements:,} parameters, every bit"]
    changed = sum(count > 0 for count, _ in distances.values())
    farthest = max(distances, key=lambda name: distances[name][1], default="")
    lines = [f"different: {different:,} of {elements:,} parameters, in {changed} of {len(a)} tensors"]
    if farthest:
        lines.append(f"largest difference {distances[farthest][1]:.3g} in {farthest}")
    return False, lines + notes
