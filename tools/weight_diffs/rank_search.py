"""Detect whether a tuned matrix is its base plus a low-rank matrix, such as a merged LoRA, and find the factors.

Method: randomised range finding (N. Halko, P. G. Martinsson, J. A. Tropp, https://arxiv.org/abs/0909.4061) on the
difference tuned - base, which is the low-rank matrix plus noise from rounding the tuned weights. The singular values of
a random matrix with standard deviation s are at most about s * (sqrt(rows) + sqrt(columns)), the noise edge; greater
ones are significant. Parameters near zero have smaller rounding errors, so the factors are then fitted by weighted
alternating least squares: each element is weighted with the inverse square of its rounding error (see PRECISIONS).

Memory: six matrices of the size of one tensor, in float32 (float64 if the tuned tensor is float32).
"""

import re
from collections import Counter

import numpy as np
from checkpoint_io.bit_patterns import FLOATS, to_float32
from checkpoint_io.ordered_parallel import threads
from checkpoint_io.tensors import Tensor, ranges
from lora_merging.low_rank import Factors
from threadpoolctl import threadpool_limits

from weight_diffs.diff_writer import saves_bytes

CORNER = 384  # side of the corner that is tested first
RANK_LIMIT = 256  # maximum size of the search basis; the rank has to be below 3/4 of it
FAILURES_LIMIT = 3  # a kind of matrices is skipped after this number of matrices without a useful low-rank change
NOISE_MARGIN = 1.1  # a singular value is significant if it exceeds the noise edge by this factor
FITTED_RANK_LIMIT = 64  # largest rank whose factors are fitted; the work grows with its square
PRECISIONS = (2.0, 8.0, 32.0, 128.0)  # one per sweep: rounding errors are treated as at least median / precision
WEIGHTED_FACTOR_ELEMENTS = 1 << 22  # elements of the weighted factors (rows, rank, columns) in memory at a time
STORED_BITS = np.uint32(0xFFFFFF00)  # bits kept of a float32 factor for 16-bit types: sign, exponent, 15 mantissa bits
MANTISSA_BITS = {"F16": 10, "BF16": 7, "F32": 23}
SMALLEST = {"F16": 2.0**-24, "BF16": 2.0**-133, "F32": 2.0**-149}  # the step between subnormal numbers


class RankSearch:
    """A search for low-rank changes that skips a kind of matrices (such as q_proj) after FAILURES_LIMIT failures."""

    def __init__(self) -> None:
        self.failures = Counter[str]()

    def find(self, tuned: Tensor, base: Tensor) -> Factors | None:
        """Return factors with base + product equal to the tuned matrix up to rounding, or None.

        Returns None also for vectors, matrices of different shapes, a rank that is too high (see `looks_low_rank` and
        RANK_LIMIT), and factors that do not make the diff smaller. After a few steps of full tuning, for example, the
        singular values of the change decay too slowly.
        """
        kind = re.sub(r"\.\d+\.", ".*.", tuned.name)
        fits = len(tuned.shape) == 2 and tuned.shape == base.shape and {tuned.dtype, base.dtype} <= set(FLOATS)
        if not fits or self.failures[kind] >= FAILURES_LIMIT:
            return None
        with threadpool_limits(threads(), "blas"):  # the thread pool is idle, so BLAS may use all cores
            factors = low_rank_factors(tuned, base) if looks_low_rank(tuned, base) else None
        if factors is not None and not saves_bytes(factors, tuned, base):
            factors = None
        self.failures[kind] += factors is None
        return factors


def low_rank_factors(tuned: Tensor, base: Tensor) -> Factors | None:
    """Return the factors of tuned - base in float32, scaled to similar norms.

    Returns None if no singular value is significant or the rank is too large.
    """
    change = read_matrix(tuned)
    errors = rounding_errors(change, tuned.dtype)
    change -= read_matrix(base)
    right = significant_rows(change)
    if right is None:
        return None
    left = change @ right.T
    if right.shape[0] <= FITTED_RANK_LIMIT:
        left, right = fit_factors(change, errors, right)
    sizes = np.sqrt(np.linalg.norm(left, axis=0) / np.linalg.norm(right, axis=1))
    return Factors(*(drop_low_bits(part, tuned.dtype) for part in (left / sizes, right * sizes[:, None])))


def drop_low_bits(factor: np.ndarray, dtype: str) -> np.ndarray:
    """Return a factor in float32, rounded to 15 mantissa bits (STORED_BITS) unless `dtype` is F32."""
    bits = np.ascontiguousarray(factor, np.float32).view(np.uint32)
    return (bits if dtype == "F32" else (bits + np.uint32(0x80)) & STORED_BITS).view(np.float32)


def read_matrix(tensor: Tensor) -> np.ndarray:
    """Return a writable copy (rows, columns) in float32, or in float64 for float32 tensors (exact differences)."""
    values = to_float32(tensor.read(), tensor.dtype).reshape(tensor.shape)
    return values.astype(np.float64 if tensor.dtype == "F32" else np.float32)


def looks_low_rank(tuned: Tensor, base: Tensor) -> bool:
    """Return whether 1 to min(rows, columns) // 3 singular values of the top left corner's change are significant."""
    rows, columns = (min(CORNER, side) for side in tuned.shape)
    change = np.empty((rows, columns))
    for row in range(rows):
        first = row * tuned.shape[1]
        ours, theirs = (to_float32(t.read(first, first + columns), t.dtype) for t in (tuned, base))
        change[row] = ours.astype(np.float64) - theirs
    values = np.linalg.svd(change, compute_uv=False)
    return 0 < count_significant(values, change.shape, float(np.square(change).sum())) <= min(rows, columns) // 3


def count_significant(values: np.ndarray, shape: tuple[int, ...], total: float) -> int:
    """Return the number of significant singular values.

    values: sorted, largest first. total: the sum of all squared elements. The standard deviation of the noise is
    estimated repeatedly, from the singular values that are not counted yet.
    """
    rows, columns = shape
    previous = -1
    count = 0
    while count > previous:
        previous = count
        rest = max(0.0, total - float(np.square(values[:previous], dtype=np.float64).sum()))
        deviation = np.sqrt(rest / max(1.0, (rows - previous) * (columns - previous)))
        count = int(np.count_nonzero(values > NOISE_MARGIN * deviation * (np.sqrt(rows) + np.sqrt(columns))))
    return previous


def significant_rows(change: np.ndarray) -> np.ndarray | None:
    """Return orthonormal rows (rank, columns) that span the significant part of a matrix, or None.

    Returns None if there is no significant part or its rank is too large.
    """
    rows, columns = change.shape
    total = float(np.square(change, dtype=np.float64).sum())
    generator = np.random.default_rng(0)
    size = min(32, rows, columns)
    while True:
        basis = np.linalg.qr(change @ generator.standard_normal((columns, size), dtype=np.float32)).Q
        basis = np.linalg.qr(change @ (change.T @ basis)).Q
        _, values, right = np.linalg.svd(basis.T @ change, full_matrices=False)
        rank = count_significant(values, change.shape, total)
        if rank < size * 3 // 4:
            return right[:rank] if rank else None
        if size >= min(RANK_LIMIT, rows // 3, columns // 3):
            return None
        size = min(2 * size, rows, columns)


def rounding_errors(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return the largest rounding error of each value, half the distance to the next number of the type; same shape."""
    steps = np.abs(np.spacing(values.astype(np.float32))) * 2.0 ** (22 - MANTISSA_BITS[dtype])
    return np.maximum(steps, SMALLEST[dtype] / 2).astype(values.dtype, copy=False)


def fit_factors(change: np.ndarray, errors: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit left and right factors by alternating least squares; return both.

    errors: rounding error of each element; the weight of an element is the inverse square of its error. right: initial
    right factor (rank, columns).
    """
    median = np.median(errors)
    left = change[:, :0]
    for precision in PRECISIONS:
        weights = np.maximum(errors, median / precision)
        np.divide(median, weights, out=weights)
        weights *= weights
        left = solve_left(change, weights, right)
        right = np.ascontiguousarray(solve_left(change.T, weights.T, left.T).T)
    return left, right


def solve_left(change: np.ndarray, weights: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return left (rows, rank) that minimises sum(weights * (left @ right - change)^2); right: (rank, columns)."""
    rank, columns = right.shape
    left = np.empty((change.shape[0], rank), change.dtype)
    for first, last in ranges(change.shape[0], max(1, WEIGHTED_FACTOR_ELEMENTS // (rank * columns))):
        part = np.ascontiguousarray(weights[first:last])
        squares = ((part[:, None, :] * right) @ right.T).astype(np.float64)
        ridge = 1e-12 * np.trace(squares, axis1=1, axis2=2) + np.finfo(np.float64).tiny  # makes rows of zeros solvable
        squares += np.eye(rank) * ridge[:, None, None]
        targets = ((part * change[first:last]) @ right.T).astype(np.float64)
        left[first:last] = np.linalg.solve(squares, targets[..., None])[..., 0]
    return left
