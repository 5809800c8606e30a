"""low_rank.py and rank_search.py: the sum does not depend on the order of work, and low-rank changes are found."""

from pathlib import Path

import numpy as np
import pytest
from checkpoint_io.bit_patterns import encode_difference, from_float32, to_float32
from checkpoint_io.tensors import Tensor
from lora_merging.low_rank import Factors
from weight_diffs import number_coding
from weight_diffs.rank_search import RankSearch


def factors(rows: int, columns: int, rank: int, size: float, seed: int = 0) -> Factors:
    generator = np.random.default_rng(seed)
    left = generator.standard_normal((rows, rank)) * size / np.sqrt(rank)
    return Factors(left.astype(np.float32), generator.standard_normal((rank, columns)).astype(np.float32))


def weights(rows: int, columns: int, dtype: str) -> np.ndarray:
    generator = np.random.default_rng(9)
    return from_float32(generator.standard_normal(rows * columns, dtype=np.float32) * np.float32(0.02), dtype)


def merged(made: Factors, base: np.ndarray, dtype: str) -> np.ndarray:
    return from_float32(made.add(to_float32(base, dtype), 0), dtype)


def tensor(bits: np.ndarray, dtype: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor("w", dtype, shape, Path("memory"), bits)


@pytest.mark.parametrize("rank", [1, 3, 64, 300])
def test_sum_is_close_to_float64_and_does_not_depend_on_order(rank: int) -> None:
    """The sum is as near to float64 as float32 allows; another order of ranks or parts of rows give the same bits."""
    made, base = factors(40, 90, rank, 1e-2), weights(40, 90, "F32")
    scaled = Factors(made.left, made.right, np.linspace(0.5, 2, 40, dtype=np.float32))
    exact = to_float32(base, "F32").reshape(40, 90).astype(np.float64) + made.left.astype(np.float64) @ made.right
    found = made.add(base.view(np.float32), 0).reshape(40, 90)
    np.testing.assert_allclose(found, exact, rtol=3e-7, atol=2e-9 * np.sqrt(rank))
    order = np.random.default_rng(1).permutation(rank)
    again = Factors(made.left[:, order], made.right[order])
    assert np.array_equal(again.add(base.view(np.float32), 0).reshape(40, 90), found)
    total = scaled
    whole = total.add(base.view(np.float32), 0)
    parts = [total.add(base[at : at + 630].view(np.float32), at) for at in range(0, 3600, 630)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("dtype", "rank", "most"), [("F16", 16, 0.045), ("BF16", 8, 0.025), ("F32", 4, 0.08)], ids=["F16", "BF16", "F32"]
)
def test_rank_of_merged_adapter_is_found(dtype: str, rank: int, most: float) -> None:
    """`most`: maximum size of factors and residual, as a share of the tuned weights; without factors it is over 0.3."""
    shape = (1024, 1536)
    base, made = weights(*shape, dtype), factors(*shape, rank, 1e-3)
    tuned = merged(made, base, dtype)
    found = RankSearch().find(tensor(tuned, dtype, shape), tensor(base, dtype, shape))
    assert found is not None
    assert found.left.shape[1] == rank
    residual = encode_difference(tuned, merged(found, base, dtype), dtype)
    stored = (residual, found.left.reshape(-1).view(np.uint32), found.right.reshape(-1).view(np.uint32))
    size = sum(len(number_coding.encode(part)) for part in stored)
    assert size < most * tuned.nbytes
    assert len(number_coding.encode(encode_difference(tuned, base, dtype))) > 0.3 * tuned.nbytes


def test_no_low_rank_is_found_in_full_rank_change() -> None:
    shape = (600, 500)
    base = weights(*shape, "F16")
    moved = to_float32(base, "F16") * (1 + 1e-3 * np.random.default_rng(3).standard_normal(base.size, dtype=np.float32))
    full = tensor(from_float32(moved, "F16"), "F16", shape)
    assert RankSearch().find(full, tensor(base, "F16", shape)) is None
    assert RankSearch().find(tensor(base, "F16", shape), tensor(base, "F16", shape)) is None
    assert RankSearch().find(tensor(base, "F16", (base.size,)), tensor(base, "F16", (base.size,))) is None
