"""Compress small unsigned numbers to nearly their entropy with zstd and numpy.

zstd alone compresses numbers of one to five bits poorly: it searches for matches, and its Huffman code spends at least
one bit per byte. A chunk of numbers is therefore first split into byte streams of high entropy. Each step does one of:

- pack the low k bits (1, 2, 4 or 8) of every number into bytes, 8 / k numbers per byte, and keep the higher bits;
- if nearly all numbers are 0, write the gaps between the nonzero numbers as bytes, and keep those numbers minus 1.

The steps end when all numbers are zero. Layout of the result: tools/CHECKPOINT.md. Huffman's redundancy: R. G.
Gallager, Variations on a Theme by Huffman (IEEE Transactions on Information Theory, 1978).
"""

import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

WIDTHS = (8, 4, 2, 1)  # bits of each number that a step may pack
GAPS = 0  # the step that keeps only nonzero numbers
STEP = struct.Struct("<BII")  # kind, bytes of the zstd frame, unpacked bytes
STEPS_LIMIT = 255  # 64-bit numbers need fewer steps
SAMPLE = 1 << 12  # size of the sample that chooses a step
SPARSE = 0.06  # share of nonzero numbers below which gaps are shorter than packed bits
INCOMPRESSIBLE = 7.9  # bits of entropy per byte above which splitting does not pay
COST_TOLERANCE = 1.03  # the widest step with a cost up to this factor of the lowest is chosen, as it is faster
ESCAPE = 255  # this byte stands for 255 zeros of a longer gap
Buffer = bytes | memoryview
Step = tuple[int, memoryview, int]  # kind, zstd frame, unpacked bytes


@cache
def zstd_codec() -> Any:
    """Return pyarrow's zstd codec at level 1; it may be used by several threads."""
    import pyarrow

    return pyarrow.Codec("zstd", compression_level=1)


def encode(numbers: np.ndarray) -> bytes:
    """Compress a chunk of unsigned numbers, (n,) uint8/16/32/64; `decode` is the inverse."""
    table, frames = list[bytes](), list[bytes]()
    for kind, stream in split_into_streams(numbers):
        frames.append(zstd_codec().compress(stream, asbytes=True))
        table.append(STEP.pack(kind, len(frames[-1]), stream.nbytes))
    return b"".join((bytes([len(table)]), *table, *frames))


def split_into_streams(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (kind, byte stream) of each step until all numbers are zero."""
    while numbers.size and (highest := int(numbers.max())):
        if highest < 256:
            numbers = numbers.astype(np.uint8, copy=False)
        kind = choose_step(numbers[:: max(1, numbers.size // SAMPLE)])
        if kind == GAPS:
            positions = np.flatnonzero(numbers != 0)  # many times faster on booleans
            yield GAPS, gap_bytes(positions)
            numbers = numbers[positions] - numbers.dtype.type(1)
        else:
            yield kind, pack(numbers, kind)
            numbers = numbers >> numbers.dtype.type(kind) if highest >> kind else numbers[:0]


def decode(data: Buffer, count: int, itemsize: int) -> np.ndarray:
    """Return a chunk's numbers, (count,) unsigned integers of `itemsize` bytes.

    Raises ValueError, or an exception of the zstd codec, if the data is damaged.
    """
    steps = read_steps(data)
    bits = sum(kind or 1 for kind, *_ in steps)
    numbers = join_streams(steps, count, np.dtype(np.uint8 if bits <= 8 else f"<u{itemsize}"))
    return numbers.astype(f"<u{itemsize}", copy=False)


def join_streams(steps: list[Step], count: int, dtype: np.dtype) -> np.ndarray:
    """Invert `split_into_streams`: return the numbers, (count,) `dtype`."""
    if not steps:
        return np.zeros(count, dtype)
    (kind, frame, size), *rest = steps
    expected = count if kind == GAPS else -(-count * kind // 8)
    if size > expected or (kind != GAPS and size != expected):
        raise ValueError("a stream is longer or shorter than its numbers")
    stream = np.frombuffer(zstd_codec().decompress(frame, size, asbytes=True), np.uint8)
    if kind == GAPS:
        positions, numbers = gap_positions(stream, count), np.zeros(count, dtype)
        numbers[positions] = join_streams(rest, positions.size, dtype) + dtype.type(1)
        return numbers
    low = unpack(stream, kind, count)
    return join_streams(rest, count, dtype) << dtype.type(kind) | low if rest else low.astype(dtype, copy=False)


def read_steps(data: Buffer) -> list[Step]:
    """Return the steps of a chunk; ValueError if the table does not fit the data."""
    view = memoryview(data)
    number = view[0] if len(view) else STEPS_LIMIT
    position = 1 + number * STEP.size
    if number >= STEPS_LIMIT or position > len(view):
        raise ValueError("its table of steps is cut off")
    steps = []
    for kind, stored, unpacked in STEP.iter_unpack(view[1:position]):
        if kind not in (GAPS, *WIDTHS):
            raise ValueError(f"step {kind} is unknown")
        steps.append((kind, view[position : position + stored], unpacked))
        position += stored
    if position != len(view):
        raise ValueError(f"{position} bytes are listed, {len(view)} exist")
    return steps


def choose_step(sample: np.ndarray) -> int:
    """Return the cheapest step for numbers like this sample: GAPS, or the number of low bits to pack."""
    if np.count_nonzero(sample) < SPARSE * sample.size:
        return GAPS
    if entropy(np.bincount(pack(sample, 8))) > INCOMPRESSIBLE:
        return 8
    cost, wide = {}, sample.astype(np.uint64)
    for width in WIDTHS:
        high = np.minimum(wide >> np.uint64(width), np.uint64(1 << 16)).astype(np.int64)
        cost[width] = huffman_bits(np.bincount(pack(sample, width))) * width / 8 + entropy(np.bincount(high))
    lowest = min(cost.values())
    return next(width for width in WIDTHS if cost[width] <= lowest * COST_TOLERANCE)


def entropy(counts: np.ndarray) -> float:
    """Return the entropy in bits per symbol. counts: occurrences of each symbol."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def huffman_bits(counts: np.ndarray) -> float:
    """Estimate the bits per byte after zstd: the entropy plus the redundancy of a Huffman code.

    The redundancy is Gallager's bound if the most frequent byte has a share of at least one half, else 0.02.
    A measured quarter bit is added if bytes repeat so often that zstd finds matches, which cost more than they save.
    """
    bits, first = entropy(counts), float(counts.max() / counts.sum())
    redundancy = 0.02 if first < 0.5 else 2 - entropy(np.array([first, 1 - first])) - first
    return min(8.0, bits + redundancy + (0.25 if bits < 3 else 0))


def pack(numbers: np.ndarray, width: int) -> np.ndarray:
    """Pack the low `width` bits of n numbers into size = ceil(n * width / 8) bytes.

    Byte i contains numbers i, i + size, i + 2 * size, …
    """
    low = (numbers if width == 8 else numbers & numbers.dtype.type((1 << width) - 1)).astype(np.uint8)
    size = -(-numbers.size * width // 8)
    packed = low[:size].copy()
    for part in range(1, 8 // width):
        piece = low[part * size : (part + 1) * size]
        packed[: piece.size] |= piece << np.uint8(part * width)
    return packed


def unpack(packed: np.ndarray, width: int, count: int) -> np.ndarray:
    """Invert `pack`: return the low bits, (count,) uint8."""
    if width == 8:
        return packed
    low = np.empty(count, np.uint8)
    for part in range(8 // width):
        piece = low[part * packed.size : (part + 1) * packed.size]
        np.right_shift(packed[: piece.size], np.uint8(part * width), out=piece)
    low &= np.uint8((1 << width) - 1)
    return low


def gap_bytes(positions: np.ndarray) -> np.ndarray:
    """Encode the gaps between ascending positions: gap // 255 bytes of value 255, then one byte of value gap % 255."""
    gaps = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(gaps // ESCAPE + 1) - 1
    result = np.full(int(ends[-1]) + 1, ESCAPE, np.uint8)
    result[ends] = gaps % ESCAPE
    return result


def gap_positions(gaps: np.ndarray, count: int) -> np.ndarray:
    """Invert `gap_bytes`: return the positions; ValueError if one is not below `count`."""
    last = gaps != ESCAPE
    positions = (np.cumsum(gaps + last, dtype=np.int64) - 1)[last]
    if positions.size and positions[-1] >= count:
        raise ValueError("a gap leads beyond the chunk")
    return positions
