"""bit_patterns.py: conversions equal torch's bit for bit, and differences restore every bit pattern."""

import numpy as np
import pytest
import torch
from checkpoint_io.bit_patterns import (
    apply_difference,
    encode_difference,
    from_float32,
    from_sortable_integers,
    to_float32,
    to_sortable_integers,
    zigzag_decode,
    zigzag_encode,
)
from checkpoint_io.tensors import ITEMSIZE
from hypothesis import given, settings
from hypothesis import strategies as st

HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("name", HALVES)
def test_float_conversions_equal_torch_bit_for_bit(name: str) -> None:
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(HALVES[name])
    bits = every.view(torch.uint16).numpy()
    wide = to_float32(bits, name)
    assert np.array_equal(wide, every.float().numpy(), equal_nan=True)
    finite = bits[every.isfinite().numpy()]
    assert np.array_equal(to_float32(finite, name), every[every.isfinite()].float().numpy())
    torch.manual_seed(0)
    patterns = torch.randint(-(2**31), 2**31, (200_000,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    halves = torch.from_numpy(wide) * (1 + 2**-9)  # ties and near-ties
    neighbours = torch.from_numpy(wide[every.isfinite().numpy()]).view(torch.int32)
    ties = torch.cat([(neighbours + step).view(torch.float32) for step in (0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000)])
    small = torch.tensor([65504.0, 65519.0, 65520.0, 3.4e38, -0.0, 1e-45, 6e-8, 2.0**-25, 2.0**-14])
    for values in (patterns, halves, ties, small):
        ours, theirs = from_float32(values.numpy(), name), values.to(HALVES[name]).view(torch.uint16).numpy()
        number = ~np.isnan(values.numpy())
        assert np.array_equal(ours[number], theirs[number])
        assert np.isnan(to_float32(ours[~number], name)).all()


@pytest.mark.parametrize("dtype", sorted(ITEMSIZE))
def test_encode_and_apply_difference_restore_any_bit_pattern(dtype: str) -> None:
    kind, top = f"<u{ITEMSIZE[dtype]}", 2 ** (8 * ITEMSIZE[dtype]) - 1
    patterns = st.sampled_from([0, 1, top, top // 2, top // 2 + 1]) | st.integers(0, top)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(patterns, patterns), min_size=1, max_size=40))
    def back(pairs: list[tuple[int, int]]) -> None:
        tuned, base = (np.array(side, kind) for side in zip(*pairs, strict=True))
        tuned.flags.writeable = base.flags.writeable = False
        assert np.array_equal(from_sortable_integers(to_sortable_integers(tuned, dtype), dtype), tuned)
        assert np.array_equal(zigzag_decode(zigzag_encode(tuned)), tuned)
        assert np.array_equal(apply_difference(encode_difference(tuned, base, dtype), base, dtype), tuned)

    back()


@pytest.mark.parametrize("name", HALVES)
def test_sortable_integers_sort_like_values(name: str) -> None:
    values = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(HALVES[name])
    values = values[~values.isnan()]
    numbers = to_sortable_integers(values.view(torch.uint16).numpy(), name).astype(np.int64)
    assert (np.diff(values.float().numpy()[np.argsort(numbers)]) >= 0).all()


def test_neighbouring_floats_are_consecutive_integers_and_zigzag_alternates_signs() -> None:
    values = np.array([1.0, np.nextafter(np.float32(1), np.float32(2)), -0.0, 0.0], np.float32).view(np.uint32)
    gaps = to_sortable_integers(values, "F32").astype(np.int64)
    assert gaps[1] - gaps[0] == 1
    assert gaps[3] - gaps[2] == 1
    assert zigzag_encode(np.array([0, -1, 1, -2, 2], np.int16).view(np.uint16)).tolist() == [0, 1, 2, 3, 4]
