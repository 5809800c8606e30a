"""Refuse a full model that is given as an additive diff; both are stored in the same form.

A published diff has no record, and a seal only says that a folder is complete, so the weights decide. Heuristic:

- Norm weights near 0 belong to a diff (model_folders/diff_recognition.py).
- With a base: a diff (tuned - base) is nearer to zero than to the base; a full model is nearer to the base. The first
  SAMPLE elements of every tensor are compared. Norm weights dominate this comparison; in a full model they resemble the
  base's even if the model has another origin. A diff would be refused if tuning had scaled the base by more than 1.5.
  If a folder with the norm weights of a diff is nearer to the base, the base contains that diff already.
- Without a base: the mean magnitude of the norm weights, initially 1, is at least NORM_MEAN in a full model.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from checkpoint_io.bit_patterns import FLOATS, to_float32
from checkpoint_io.tensors import Tensor
from model_folders.diff_recognition import NORM_MEAN, is_diff, mean, norm_sums

SAMPLE = 1 << 12  # elements of each tensor, the width of LLaMA-7B


def refuse_full_model(
    path_diff: Path,
    diff: Mapping[str, Tensor],
    path_base: Path | None = None,
    base: Mapping[str, Tensor] | None = None,
) -> None:
    """Raise ValueError if a folder holds a full model instead of a diff, or the base contains the diff already.

    path_base, base: the base's folder and weights, if known.
    """
    if not (is_nearer_to(base, diff) if base is not None else mean(norm_sums(path_diff)) >= NORM_MEAN):
        return
    if is_diff(path_diff):
        raise ValueError(
            f"{path_base} is not the base of {path_diff}: it contains the change already; give the model that the diff "
            "was made from"
        )
    place = "near the base's, not near 0" if base is not None else "not near 0"
    raise ValueError(
        f"{path_diff} is a full model, not a diff (its norm weights are {place}); give a diff, or use "
        "this model directly"
    )


def sample(tensor: Tensor, count: int) -> np.ndarray:
    """Return the first `count` elements as float64."""
    return to_float32(tensor.read(0, count), tensor.dtype).astype(np.float64)


def is_nearer_to(base: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Return whether the samples of `weights` are nearer to the samples of `base` than to zero."""
    change = total = 0.0
    for name, tensor in weights.items():
        other = base.get(name)
        if other is None or not {tensor.dtype, other.dtype} <= set(FLOATS):
            continue
        count = min(SAMPLE, tensor.elements, other.elements)
        own, theirs = sample(tensor, count), sample(other, count)
        change += float(np.square(own - theirs).sum())
        total += float(np.square(own).sum())
    return change < total
