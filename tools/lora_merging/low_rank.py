"""A matrix of small rank on top of a base: (base + left @ right), rows scaled if asked, rounded once, to the bit.

The same sum on every machine, whatever the BLAS and the number of threads: both factors are taken as integers times a
power of two for each row of the left and each column of the right, with so few bits that every partial sum of the
product is an integer below 2^53 times the same power of two. float64 holds those exactly, so the order of summation
does not matter. The product is rounded to float32, added to the base in float32, and rounded to the type asked for.

lora_merge.py (merging), exact_diff.py (prediction) and rank_search.py (finding the factors) import it.
"""

import math
from dataclasses import dataclass

import numpy as np
from checkpoint_io.bit_patterns import from_float32, to_float32

MANTISSA = 24  # bits, as many as float32 has
EXACT = 53  # bits of an integer that float64 holds exactly


@dataclass(frozen=True)
class Factors:
    """What is added to a matrix of shape (rows, columns), all float32."""

    left: np.ndarray  # (rows, rank)
    right: np.ndarray  # (rank, columns)
    scale: np.ndarray | None = None  # (rows,): what each row of the sum is multiplied with (DoRA)

    @property
    def rank(self) -> int:
        return self.left.shape[1]


def fixed_point(vectors: np.ndarray, bits: int) -> np.ndarray:
    """(n, rank) float32 as integers of at most 2^bits times a power of two for each of the n vectors; float64."""
    _, exponents = np.frexp(np.abs(vectors).max(axis=1, initial=0.0).astype(np.float64))
    units = np.ldexp(1.0, exponents - bits)[:, None]
    return np.rint(vectors / units) * units


class Sum:
    """base + left @ right, row by row; several threads may ask for rows at once."""

    def __init__(self, factors: Factors) -> None:
        self.factors = factors
        self.bits = min(MANTISSA, (EXACT - math.ceil(math.log2(max(1, factors.rank)))) // 2)
        self.right = np.ascontiguousarray(fixed_point(np.ascontiguousarray(factors.right.T), self.bits).T)

    def product(self, first: int, last: int) -> np.ndarray:
        """Rows first … last of left @ right: (last - first, columns) float32."""
        return (fixed_point(self.factors.left[first:last], self.bits) @ self.right).astype(np.float32)

    def rows(self, base: np.ndarray, dtype: str, first: int, target: str) -> np.ndarray:
        """Bit pattern in type `target` of whole rows from `first` on; base: theirs, flat, in type `dtype`."""
        columns = self.right.shape[1]
        last = first + base.size // columns
        values = self.product(first, last)
        values += to_float32(base, dtype).reshape(values.shape)
        if self.factors.scale is not None:
            values *= self.factors.scale[first:last, None]
        return from_float32(values.reshape(-1), target)
