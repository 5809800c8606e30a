"""Detect whether a tuned matrix is its base plus a low-rank matrix, such as a merged LoRA, and find the factors.

Method: randomised range finding (N. Halko, P. G. Martinsson, J. A. Tropp, https://arxiv.org/abs/0909.4061) on the
difference. Singular values are significant if they exceed the noise from rounding the tuned weights, which is bounded
by the spectral edge of random matrices: noise * (sqrt(rows) + sqrt(columns)). Weights near zero have smaller rounding
errors, so the factors are then fitted by alternating least squares, weighted by each element's rounding error.

Memory: six matrices of the size of one tensor, in float32 (float64 if the tuned tensor is float32).
"""

import re
from collections import Counter

import numpy as np
from checkpoint_io.bit_patterns import FLOATS, to_float32
from checkpoint_io.ordered_parallel import blas_on_all_cores
from checkpoint_io.tensors import Tensor, ranges
from lora_merging.low_rank import Factors

BLOCK = 384  # side of the corner that is tested first
LARGEST = 256  # maximum rank; larger factors save too little
ENOUGH = 3  # after so many matrices of a kind without a low-rank change, the others of that kind are skipped
ABOVE = 1.1  # factor of the noise edge above which a singular value is significant
FITTED = 64  # largest rank whose factors are fitted; the work grows with its square
PRECISIONS = (2.0, 8.0, 32.0, 128.0)  # per sweep: maximum ratio of the median rounding error to an element's own
ROWS_AT_ONCE = 1 << 22  # elements of the weighted factors in memory at a time
KEPT = np.uint32(0xFFFFFF00)  # stored bits of a float32 factor for 16-bit types: 15 bits of the mantissa
MANTISSA_BITS = {"F16": 10, "BF16": 7, "F32": 23}
SMALLEST = {"F16": 2.0**-24, "BF16": 2.0**-133, "F32": 2.0**-149}  # the step between subnormal numbers


class RankSearch:
    """Searches a model for low-rank changes; skips kinds of matrices (such as q_proj) after ENOUGH failures."""

    def __init__(self) -> None:
        self.misses = Counter[str]()

    def find(self, tuned: Tensor, base: Tensor) -> Factors | None:
        """Return the low-rank factors of the change, or None; see the function `find`."""
        kind = re.sub(r"\.\d+\.", ".*.", tuned.name)
        if self.misses[kind] >= ENOUGH:
            return None
        with blas_on_all_cores():
            factors = find(tuned, base)
        self.misses[kind] += factors is None
        return factors


def find(tuned: Tensor, base: Tensor) -> Factors | None:
    """Return factors with base + product equal to the tuned matrix up to rounding, or None.

    Returns None also for vectors, matrices of different shapes, and ranks above LARGEST.
    """
    if len(tuned.shape) != 2 or tuned.shape != base.shape or not {tuned.dtype, base.dtype} <= set(FLOATS):
        return None
    if not looks_low_rank(tuned, base):
        return None
    change = matrix(tuned)
    half = half_step(change, tuned.dtype)
    change -= matrix(base)
    left, right = leading(change)
    if not right.size:
        return None
    if right.shape[0] <= FITTED:
        left, right = fitted(change, half, right)
    return stored(left, right, tuned.dtype)


def matrix(tensor: Tensor) -> np.ndarray:
    """Return a writable copy (rows, columns) in float32, or in float64 for float32 tensors (exact differences)."""
    values = to_float32(tensor.read(), tensor.dtype).reshape(tensor.shape)
    return values.astype(np.float64) if tensor.dtype == "F32" else np.array(values)


def looks_low_rank(tuned: Tensor, base: Tensor) -> bool:
    """Return whether the top left corner of the difference has a few singular values above the noise."""
    rows, columns = (min(BLOCK, side) for side in tuned.shape)
    change = np.empty((rows, columns))
    for row in range(rows):
        first = row * tuned.shape[1]
        ours, theirs = (to_float32(t.read(first, first + columns), t.dtype) for t in (tuned, base))
        change[row] = ours.astype(np.float64) - theirs
    values = np.linalg.svd(change, compute_uv=False)
    return 0 < significant(values, change.shape, float(np.square(change).sum())) <= min(rows, columns) // 3


def significant(values: np.ndarray, shape: tuple[int, ...], total: float) -> int:
    """Return the number of singular values (sorted, largest first) above the noise of the others.

    total: the sum of all squared elements. The noise is estimated repeatedly from the values that are not counted yet.
    """
    rows, columns = shape
    count = -1
    kept = 0
    while kept > count:
        count = kept
        rest = max(0.0, total - float(np.square(values[:count], dtype=np.float64).sum()))
        noise = np.sqrt(rest / max(1.0, (rows - count) * (columns - count)))
        kept = int(np.count_nonzero(values > ABOVE * noise * (np.sqrt(rows) + np.sqrt(columns))))
    return count


def leading(change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the significant part of a matrix as left (rows, rank) and right (rank, columns).

    The rank is 0 if there is no significant part or its rank is too large.
    """
    rows, columns = change.shape
    total = float(np.square(change, dtype=np.float64).sum())
    generator = np.random.default_rng(0)
    size = 32
    while True:
        size = min(size, rows, columns)
        basis = orthonormal(change @ generator.standard_normal((columns, size), dtype=np.float32))
        basis = orthonormal(change @ (change.T @ basis))
        left, values, right = np.linalg.svd(basis.T @ change, full_matrices=False)
        rank = significant(values, change.shape, total)
        if rank < size * 3 // 4:
            return (basis @ left[:, :rank]) * values[:rank], right[:rank]
        if size >= min(LARGEST, rows // 3, columns // 3):
            return np.zeros((rows, 0), np.float32), np.zeros((0, columns), np.float32)
        size *= 2


def orthonormal(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.qr(vectors)[0]


def half_step(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return half the distance from each value to the next number of the type; same shape."""
    _, exponents = np.frexp(values)
    steps = np.ldexp(values.dtype.type(0.5), exponents - 1 - MANTISSA_BITS[dtype])
    return np.maximum(steps, values.dtype.type(SMALLEST[dtype] / 2))


def fitted(change: np.ndarray, half: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit factors of the same rank by alternating least squares, weighted by each element's rounding error `half`."""
    middle = np.median(half)
    left = change[:, :0]
    for precision in PRECISIONS:
        weights = np.maximum(half, middle / precision)
        np.divide(middle, weights, out=weights)
        weights *= weights
        left = solved(change, weights, right)
        right = np.ascontiguousarray(solved(change.T, weights.T, left.T).T)
    return left, right


def solved(change: np.ndarray, weights: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return left (rows, rank) that minimises sum(weights * (left @ right - change)^2); right: (rank, columns)."""
    rank, columns = right.shape
    left = np.empty((change.shape[0], rank), change.dtype)
    for first, last in ranges(change.shape[0], max(1, ROWS_AT_ONCE // (rank * columns))):
        part = np.ascontiguousarray(weights[first:last])
        squares = ((part[:, None, :] * right) @ right.T).astype(np.float64)
        ridge = 1e-12 * np.trace(squares, axis1=1, axis2=2) + np.finfo(np.float64).tiny  # makes rows of zeros solvable
        squares += np.eye(rank) * ridge[:, None, None]
        wanted = ((part * change[first:last]) @ right.T).astype(np.float64)
        left[first:last] = np.linalg.solve(squares, wanted[..., None])[..., 0]
    return left


def stored(left: np.ndarray, right: np.ndarray, dtype: str) -> Factors:
    """Return both factors in float32, scaled to similar norms, without bits below the precision of `dtype`."""
    sizes = np.sqrt(np.linalg.norm(left, axis=0) / np.linalg.norm(right, axis=1))
    return Factors(shortened(left / sizes, dtype), shortened(right * sizes[:, None], dtype))


def shortened(values: np.ndarray, dtype: str) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return bits.view(np.float32) if dtype == "F32" else ((bits + np.uint32(0x80)) & KEPT).view(np.float32)
