"""Compute base + left @ right, a low-rank update with optionally scaled rows, reproducibly to the bit.

The result does not depend on BLAS or the number of threads. Each row of left and each column of right is rounded to
integers times a power of two, with so few bits that every partial sum of the product is an integer below 2^53 times a
power of two, which float64 represents exactly. The product is rounded to float32 and added to the base in float32.
"""

import math

import numpy as np

MANTISSA = 24  # bits, as many as float32 has
EXACT = 53  # bits of an integer that float64 holds exactly


def fixed_point(vectors: np.ndarray, bits: int) -> np.ndarray:
    """Round each of the n vectors, (n, rank), to integers up to 2^bits times its own power of two; return float64."""
    _, exponents = np.frexp(np.abs(vectors).max(axis=1, initial=0.0).astype(np.float64))
    units = np.ldexp(1.0, exponents - bits)[:, None]
    return np.rint(vectors / units) * units


class Factors:
    """Factors of a product that `add` adds to rows of a matrix (rows, columns); all are float32.

    left: (rows, rank); right: (rank, columns); scale: (rows,), factor of each row of the sum (DoRA). Thread-safe.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray, scale: np.ndarray | None = None) -> None:
        self.left, self.right, self.scale = left, right, scale
        rank, self.columns = right.shape
        self.elements = left.shape[0] * self.columns  # number of elements in the product
        self.bits = min(MANTISSA, (EXACT - math.ceil(math.log2(max(1, rank)))) // 2)
        self.rounded_right = np.ascontiguousarray(fixed_point(np.ascontiguousarray(right.T), self.bits).T)

    def add(self, base: np.ndarray, start: int) -> np.ndarray:
        """Return base + product, flat float32; the rows of the sum are scaled if `scale` is given.

        base: whole rows of the matrix, flat float32, from element `start`.
        """
        rows = slice(start // self.columns, (start + base.size) // self.columns)
        total = (fixed_point(self.left[rows], self.bits) @ self.rounded_right).astype(np.float32)
        total += base.reshape(total.shape)
        if self.scale is not None:
            total *= self.scale[rows, None]
        return total.reshape(-1)
