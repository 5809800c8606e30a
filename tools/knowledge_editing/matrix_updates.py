"""Low-rank updates of matrices, by tensor name: the result of every editing method."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LowRank:
    """The update left @ right of a matrix; left: (rows, rank), right: (rank, columns), float32."""

    left: np.ndarray
    right: np.ndarray

    def __add__(self, other: "LowRank") -> "LowRank":
        """Return the sum of both updates, whose rank is the sum of the ranks."""
        return LowRank(np.concatenate((self.left, other.left), 1), np.concatenate((self.right, other.right), 0))


EditedWeights = dict[str, LowRank]  # tensor name, such as model.layers.5.mlp.down_proj.weight -> its update


def add_updates(first: Mapping[str, LowRank], second: Mapping[str, LowRank]) -> EditedWeights:
    """Return the sum of two sets of updates."""
    return {
        name: first[name] + second[name] if name in first and name in second else (first.get(name) or second[name])
        for name in [*first, *(name for name in second if name not in first)]
    }
