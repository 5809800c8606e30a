"""Bit patterns of floats: to float32 and back, and to integers in the order of the values and back.

numpy has no bfloat16 and converts float16 in software, at 4 ns an element; here both are a few integer operations on
whole arrays, which are several times as fast and round as IEEE 754 asks: to nearest, ties to even.

the tools of this stage import it.
"""

import numpy as np

FLOATS = ("F16", "BF16", "F32")  # what arithmetic is done on, as safetensors spells the types
SIGNED = (*FLOATS, "F64", "F8_E4M3", "F8_E5M2")  # sign and magnitude: not in the order of the values
MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITY = np.uint32(0x7F800000)
HALF_NORMAL = np.uint32(0x38800000)  # 2^-14, the smallest normal float16, as float32
HALF_OVERFLOW = np.uint32(0x477FF000)  # 65520, the smallest float32 that rounds to infinity in float16
HALF_REBIAS = np.float32(2.0**112)  # between the exponents' biases: 127 - 15


def to_float32(bits: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values of a bit pattern of F16, BF16 or F32; exact."""
    if dtype == "F32":
        return bits.view(np.float32)
    if dtype == "BF16":
        wide = bits.astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    if (bits & np.uint16(0x7FFF)).max(initial=0) >= 0x7C00:  # infinities and NaN
        return bits.view(np.float16).astype(np.float32)
    moved = bits.view(np.int16).astype(np.int32)  # the sign is spread over the upper half
    moved <<= np.int32(13)
    moved &= np.int32(~0x70000000)  # sign, exponent and mantissa stand where float32 has them
    values = moved.view(np.float32)
    values *= HALF_REBIAS
    return values


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Bit pattern of float32 values in F16, BF16 or F32, rounded to nearest, ties to even; NaN stays NaN."""
    bits = values.view(np.uint32)
    if dtype == "F32":
        return bits
    return to_bfloat16(bits) if dtype == "BF16" else to_float16(bits)


def to_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The upper half of float32 bit patterns, rounded: (n,) uint32 to uint16."""
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    magnitude = bits & MAGNITUDE
    if magnitude.max(initial=0) > INFINITY:
        nan = np.flatnonzero(magnitude > INFINITY)
        rounded[nan] = bits[nan] >> np.uint32(16) | np.uint32(0x40)
    return rounded.astype(np.uint16)


def to_float16(bits: np.ndarray) -> np.ndarray:
    """float32 bit patterns rounded to float16's: (n,) uint32 to uint16; beyond 65504 lies infinity."""
    magnitude = bits & MAGNITUDE
    rounded = magnitude >> np.uint32(13)
    rounded &= np.uint32(1)
    rounded += magnitude
    rounded += np.uint32((0xFFF - (112 << 23)) % 2**32)
    rounded >>= np.uint32(13)
    tiny = np.flatnonzero(magnitude < HALF_NORMAL)
    if tiny.size:  # the sum with 0.5 has float16's smallest step as its last bit, so that the addition rounds
        sums = magnitude[tiny].view(np.float32) + np.float32(0.5)
        rounded[tiny] = sums.view(np.uint32) - np.float32(0.5).view(np.uint32)
    if magnitude.max(initial=0) >= HALF_OVERFLOW:
        large = np.flatnonzero(magnitude >= HALF_OVERFLOW)
        rounded[large] = np.where(magnitude[large] > INFINITY, np.uint32(0x7E00), np.uint32(0x7C00))
    sign = bits >> np.uint32(16)
    sign &= np.uint32(0x8000)
    rounded |= sign
    return rounded.astype(np.uint16)


def cast(bits: np.ndarray, dtype: str, target: str) -> np.ndarray:
    """The bit pattern in another float type, or the same array where the type is the same."""
    return bits if dtype == target else from_float32(to_float32(bits, dtype), target)


def ordered(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Unsigned integers in the order of the floats' values (-0 just below +0); other types pass unchanged."""
    if dtype not in SIGNED:
        return bits
    width = bits.dtype.itemsize * 8
    flips = (bits.view(f"<i{bits.dtype.itemsize}") >> (width - 1)).view(bits.dtype)  # all ones where the sign is set
    flips |= bits.dtype.type(1 << (width - 1))
    flips ^= bits
    return flips


def unordered(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """The inverse of `ordered`."""
    if dtype not in SIGNED:
        return numbers
    width = numbers.dtype.itemsize * 8
    flips = (~numbers.view(f"<i{numbers.dtype.itemsize}") >> (width - 1)).view(numbers.dtype)
    flips |= numbers.dtype.type(1 << (width - 1))
    flips ^= numbers
    return flips


def zigzag(numbers: np.ndarray) -> np.ndarray:
    """Small differences of either sign, as two's complement, to small unsigned numbers: 0, -1, 1, -2 to 0, 1, 2, 3."""
    signs = (numbers.view(f"<i{numbers.dtype.itemsize}") >> (numbers.dtype.itemsize * 8 - 1)).view(numbers.dtype)
    signs ^= numbers << numbers.dtype.type(1)
    return signs


def unzigzag(numbers: np.ndarray) -> np.ndarray:
    """The inverse of `zigzag`."""
    signs = numbers & numbers.dtype.type(1)
    np.negative(signs, out=signs)
    signs ^= numbers >> numbers.dtype.type(1)
    return signs


def difference(tuned: np.ndarray, base: np.ndarray, dtype: str) -> np.ndarray:
    """How many steps of the type the tuned values lie above the base's, modulo 2^n, zigzagged; same shape and width."""
    numbers = ordered(tuned, dtype)
    numbers = (
        numbers - ordered(base, dtype) if numbers is tuned else np.subtract(numbers, ordered(base, dtype), numbers)
    )
    return zigzag(numbers)


def apply(numbers: np.ndarray, base: np.ndarray, dtype: str) -> np.ndarray:
    """The inverse of `difference`: the tuned bit patterns."""
    steps = unzigzag(numbers)
    steps += ordered(base, dtype)
    return unordered(steps, dtype)
