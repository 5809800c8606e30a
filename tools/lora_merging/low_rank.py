"""Compute base + left @ right, a low-rank update with optionally scaled rows, reproducibly to the bit.

The result does not depend on BLAS or the number of threads. Each row of left and each column of right is rounded to
integers times a power of two, with so few bits that every partial sum of the product is an integer below 2^53 times a
power of two, which float64 represents exactly. The product is rounded to float32, added to the base in float32, and
rounded to the result's type.
"""

import math
from dataclasses import dataclass

import numpy as np
from checkpoint_io.bit_patterns import from_float32, to_float32

MANTISSA = 24  # bits, as many as float32 has
EXACT = 53  # bits of an integer that float64 holds exactly


@dataclass(frozen=True)
class Factors:
    """Factors of a product that is added to a matrix (rows, columns); all are float32."""

    left: np.ndarray  # (rows, rank)
    right: np.ndarray  # (rank, columns)
    scale: np.ndarray | None = None  # (rows,), factor of each row of the sum (DoRA)

    @property
    def rank(self) -> int:
        return self.left.shape[1]


def fixed_point(vectors: np.ndarray, bits: int) -> np.ndarray:
    """Round each of the (n, rank) vectors to integers up to 2^bits times a power of two; return float64."""
    _, exponents = np.frexp(np.abs(vectors).max(axis=1, initial=0.0).astype(np.float64))
    units = np.ldexp(1.0, exponents - bits)[:, None]
    return np.rint(vectors / units) * units


class Sum:
    """Computes rows of base + left @ right; thread-safe."""

    def __init__(self, factors: Factors) -> None:
        self.factors = factors
        self.bits = min(MANTISSA, (EXACT - math.ceil(math.log2(max(1, factors.rank)))) // 2)
        self.right = np.ascontiguousarray(fixed_point(np.ascontiguousarray(factors.right.T), self.bits).T)

    def product(self, first: int, last: int) -> np.ndarray:
        """Return rows first to last of left @ right: (last - first, columns) float32."""
        return (fixed_point(self.factors.left[first:last], self.bits) @ self.right).astype(np.float32)

    def rows(self, base: np.ndarray, dtype: str, first: int, target: str) -> np.ndarray:
        """Return the bit patterns of rows from `first` in type `target`; base: the same rows, flat, in type `dtype`."""
        columns = self.right.shape[1]
        last = first + base.size // columns
        values = self.product(first, last)
        values += to_float32(base, dtype).reshape(values.shape)
        if self.factors.scale is not None:
            values *= self.factors.scale[first:last, None]
        return from_float32(values.reshape(-1), target)
