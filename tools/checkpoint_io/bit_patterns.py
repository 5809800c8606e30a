"""Convert bit patterns of floats to float32 and back, and to integers that sort like the values and back.

numpy has no bfloat16, so bfloat16 is converted with integer operations, rounded to nearest, ties to even.
"""

import numpy as np

FLOATS = ("F16", "BF16", "F32")  # types that arithmetic supports, in safetensors' spelling
SIGNED = (*FLOATS, "F64", "F8_E4M3", "F8_E5M2")  # sign and magnitude, so their bits do not sort like the values
MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITY = np.uint32(0x7F800000)


def to_float32(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Return the exact float32 values of F16, BF16 or F32 bit patterns."""
    if dtype == "F32":
        return bits.view(np.float32)
    if dtype == "BF16":
        wide = bits.astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return the bit patterns of float32 values in F16, BF16 or F32 (nearest, ties to even; NaN stays NaN)."""
    bits = values.view(np.uint32)
    if dtype == "F32":
        return bits
    if dtype == "F16":
        with np.errstate(over="ignore"):  # values beyond 65504 become infinite
            return values.astype(np.float16).view(np.uint16)
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


def cast(bits: np.ndarray, dtype: str, target: str) -> np.ndarray:
    """Return bit patterns converted to another float type; the same array if the types are equal."""
    return bits if dtype == target else from_float32(to_float32(bits, dtype), target)


def flip_masks(bits: np.ndarray) -> np.ndarray:
    """Return the XOR mask of each number: all ones if its sign bit is set, otherwise the sign bit alone."""
    width = bits.dtype.itemsize * 8
    return (bits.view(f"<i{width // 8}") >> (width - 1)).view(bits.dtype) | bits.dtype.type(1 << (width - 1))


def to_sortable_integers(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Return unsigned integers that sort like the floats (-0 just below +0); other types are returned unchanged."""
    return bits ^ flip_masks(bits) if dtype in SIGNED else bits


def from_sortable_integers(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """Invert `to_sortable_integers`."""
    return numbers ^ flip_masks(~numbers) if dtype in SIGNED else numbers


def zigzag_encode(numbers: np.ndarray) -> np.ndarray:
    """Map two's complement numbers to unsigned ones so that small magnitudes stay small: 0, -1, 1, -2 to 0, 1, 2, 3."""
    signs = (numbers.view(f"<i{numbers.dtype.itemsize}") >> (numbers.dtype.itemsize * 8 - 1)).view(numbers.dtype)
    signs ^= numbers << numbers.dtype.type(1)
    return signs


def zigzag_decode(numbers: np.ndarray) -> np.ndarray:
    """Invert `zigzag_encode`."""
    signs = numbers & numbers.dtype.type(1)
    np.negative(signs, out=signs)
    signs ^= numbers >> numbers.dtype.type(1)
    return signs


def encode_difference(tuned: np.ndarray, base: np.ndarray, dtype: str) -> np.ndarray:
    """Return the zigzag-encoded difference tuned - base of the n-bit sortable integers, modulo 2^n; same shape."""
    return zigzag_encode(to_sortable_integers(tuned, dtype) - to_sortable_integers(base, dtype))


def apply_difference(numbers: np.ndarray, base: np.ndarray, dtype: str) -> np.ndarray:
    """Invert `encode_difference`: return the tuned bit patterns."""
    return from_sortable_integers(zigzag_decode(numbers) + to_sortable_integers(base, dtype), dtype)
