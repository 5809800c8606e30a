"""Tell full models from additive diffs, which are stored alike: refuse a full model that is given as a diff.

A published diff has no record, and a seal only says that a folder is complete, so the weights decide. Heuristic:

- With a base: a diff (tuned - base) is nearer to zero than to the base, a full model is nearer to the base. The first
  SAMPLE elements of every tensor are compared. Norm weights outweigh all others there, and resemble those of the base
  even in a full model of another origin. A diff would be refused if tuning had scaled the base by more than 1.5.
- Without a base: the mean of the norm weights, whose initial value is 1, is at least NORM_MEAN in a full model.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from checkpoint_io.bit_patterns import FLOATS, to_float32
from checkpoint_io.tensors import Tensor

SAMPLE = 1 << 12  # elements of each tensor, the width of LLaMA-7B
NORM_MEAN = 0.1  # 0.29 in SmolLM2-135M-Instruct, a model of LLaMA's kind


def refuse_full_model(path_diff: Path, diff: Mapping[str, Tensor], raw: Mapping[str, Tensor] | None = None) -> None:
    """Raise ValueError if the weights of a folder are those of a full model, not a diff. raw: the base's, if known."""
    if is_nearer_to(raw, diff) if raw is not None else has_large_norms(diff):
        place = "near the base's, not near 0" if raw is not None else "not near 0"
        raise ValueError(
            f"{path_diff} is a full model, not a diff (its norm weights are {place}); give a diff, or use this model "
            "as it is"
        )


def sample(tensor: Tensor, count: int) -> np.ndarray:
    """Return the first `count` elements as float64."""
    return to_float32(tensor.read(0, count), tensor.dtype).astype(np.float64)


def is_nearer_to(raw: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Return whether the samples of `weights` are nearer to those of `raw` than to zero."""
    change = total = 0.0
    for name, tensor in weights.items():
        base = raw.get(name)
        if base is None or not {tensor.dtype, base.dtype} <= set(FLOATS):
            continue
        count = min(SAMPLE, tensor.elements, base.elements)
        own, theirs = sample(tensor, count), sample(base, count)
        change += float(np.square(own - theirs).sum())
        total += float(np.square(own).sum())
    return change < total


def has_large_norms(weights: Mapping[str, Tensor]) -> bool:
    """Return whether the norm weights have a mean of at least NORM_MEAN; False without norm weights."""
    norms = [
        sample(tensor, tensor.elements)
        for name, tensor in weights.items()
        if name.endswith("norm.weight") and len(tensor.shape) == 1 and tensor.dtype in FLOATS
    ]
    return bool(norms) and float(np.concatenate(norms).mean()) >= NORM_MEAN
