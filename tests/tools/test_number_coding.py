"""number_coding.py: decoding restores the encoded numbers, and the encoded size is close to the entropy."""

from pathlib import Path

import numpy as np
import pytest
from checkpoint_io.bit_patterns import encode_difference, from_float32, to_float32
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_diffs.number_coding import STEP, decode, encode, entropy, zstd_codec


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_encoded_numbers_decode_to_same_numbers(itemsize: int) -> None:
    top = 2 ** (8 * itemsize) - 1
    some = st.sampled_from([0, 0, 0, 0, 1, 2, 254, 255, top // 2, top]) | st.integers(0, top)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(some, max_size=100), st.integers(1, 40))
    def back(values: list[int], times: int) -> None:
        numbers = np.array(values * times, f"<u{itemsize}")
        found = decode(encode(numbers), numbers.size, itemsize)
        assert found.dtype == numbers.dtype
        assert np.array_equal(found, numbers)

    back()


@pytest.mark.parametrize(
    ("dtype", "relative", "above"),
    [("F16", 1e-3, 1.03), ("F16", 1e-4, 1.15), ("F16", 1e-2, 1.02), ("BF16", 1e-3, 1.06), ("F32", 1e-3, 1.01)],
)
def test_encoded_size_is_close_to_entropy(dtype: str, relative: float, above: float) -> None:
    """relative: standard deviation of the relative change of each weight; above: limit of size / entropy."""
    generator = np.random.default_rng(0)
    base = from_float32(generator.standard_normal(1 << 20, dtype=np.float32) * np.float32(0.02), dtype)
    factor = 1 + np.float32(relative) * generator.standard_normal(1 << 20, dtype=np.float32)
    steps = encode_difference(from_float32(to_float32(base, dtype) * factor, dtype), base, dtype)
    planes = steps.view(np.uint8).reshape(steps.size, -1).T
    least = sum(entropy(np.bincount(plane)) for plane in planes) * steps.size / 8
    size = sum(len(encode(part)) for part in np.split(steps, 4))
    assert size < above * least


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.03, 0.3, 1.0])
def test_numbers_up_to_8_take_at_most_3_bits_each_for_every_share_of_zeros(share: float) -> None:
    generator = np.random.default_rng(1)
    numbers = generator.integers(1, 9, 100_000).astype(np.uint16) * (generator.random(100_000) < share)
    packed = encode(numbers)
    assert np.array_equal(decode(packed, numbers.size, 2), numbers)
    assert len(packed) < 100_000 * 3 / 8 + 200
    assert share or len(packed) == 1


def damages() -> dict[str, bytes]:
    good = encode(np.arange(1000, dtype=np.uint16) % 37)
    table, gaps = 1 + good[0] * STEP.size, zstd_codec().compress(b"\xfe" * 6, asbytes=True)
    return {
        "empty": b"", "no table": good[:1], "cut table": good[: table - 1], "cut": good[:-1], "longer": good + b"x",
        "many steps": b"\xff" + good[1:], "other step": bytes([good[0], 3]) + good[2:],
        "huge": b"\x01" + STEP.pack(8, 2**32 - 1, 2**32 - 1) + b"abc",
        "bomb": b"\x01" + STEP.pack(8, 3, 2**31) + b"abc",
        "gap beyond": b"\x01" + STEP.pack(0, len(gaps), 6) + gaps,
        "garbage": good[:table] + bytes(len(good) - table),
    }  # fmt: skip


@pytest.mark.parametrize("damage", damages())
def test_decode_refuses_damaged_data(damage: str) -> None:
    with pytest.raises((ValueError, OSError)):
        decode(damages()[damage], 1000, 2)


def test_data_with_a_flipped_bit_is_decoded_or_raises_value_or_os_error(tmp_path: Path) -> None:
    """Decoded data has the right count of numbers."""
    good = encode((np.random.default_rng(2).geometric(0.4, 5000) - 1).astype(np.uint16))
    for at in range(0, 8 * min(len(good), 120)):
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
        try:
            assert decode(bytes(bad), 5000, 2).size == 5000
        except (ValueError, OSError):
            continue
