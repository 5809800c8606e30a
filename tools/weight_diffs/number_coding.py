"""Compress small unsigned numbers to nearly their entropy with zstd and numpy.

zstd alone compresses numbers of one to five bits poorly: it looks for matches, and its Huffman code spends at least one
bit on a byte. So a chunk of numbers is first split into streams of bytes that are dense with information. Each step
either

- packs the low k bits (1, 2, 4 or 8) of every number into bytes, 8 / k numbers in each, and leaves the higher bits; or
- if nearly all numbers are 0, writes the gaps between the others as bytes, and leaves the others, each less 1;

until only zeros are left. Layout of the result: tools/CHECKPOINT.md. Huffman's redundancy: R. G. Gallager, Variations
on a Theme by Huffman (IEEE Transactions on Information Theory, 1978).
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

WIDTHS = (8, 4, 2, 1)  # bits of each number that a step may pack
GAPS = 0  # the step that keeps only nonzero numbers
RAW, ZSTD = 0, 1
STEP = struct.Struct("<BBII")  # kind, codec, bytes stored, bytes unpacked
STEPS_LIMIT = 255  # more than 64-bit numbers need
SAMPLE = 1 << 12  # numbers by which a step is chosen
SPARSE = 0.06  # the share of nonzero numbers below which gaps are shorter than packed bits
FULL = 7.9  # entropy of a byte, in bits, that is not worth splitting
NEAR = 1.03  # the widest step whose cost is within this factor of the least is used, because wider steps are faster
ESCAPE = 255  # a gap byte for 255 zeros of a longer gap
Buffer = bytes | memoryview


def codec() -> Any:
    """zstd at level 1, from pyarrow; ValueError if pyarrow is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise ValueError("exact diffs need zstd from pyarrow, which is not installed: pip install pyarrow") from None
    return pyarrow.Codec("zstd", compression_level=1)


def encode(numbers: np.ndarray, zstd: Any) -> bytes:
    """Compress a chunk of unsigned numbers, (n,) uint8/16/32/64; `decode` is the inverse."""
    table, streams = [], []
    for kind, stream in steps(numbers):
        packed = zstd.compress(stream, asbytes=True)
        shorter = len(packed) < stream.nbytes
        table.append(STEP.pack(kind, ZSTD if shorter else RAW, min(len(packed), stream.nbytes), stream.nbytes))
        streams.append(packed if shorter else stream.tobytes())
    return b"".join((bytes([len(table)]), *table, *streams))


def steps(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(kind, stream of bytes) of each step until only zeros are left."""
    while numbers.size and (highest := int(numbers.max())):
        if highest < 256:
            numbers = numbers.astype(np.uint8, copy=False)
        kind = choose(numbers[:: max(1, numbers.size // SAMPLE)])
        if kind == GAPS:
            places = np.flatnonzero(numbers != 0)  # many times as fast on booleans
            yield GAPS, gap_bytes(places)
            numbers = numbers[places] - numbers.dtype.type(1)
        else:
            yield kind, pack(numbers, kind)
            numbers = numbers >> numbers.dtype.type(kind) if highest >> kind else numbers[:0]


def decode(data: Buffer, count: int, itemsize: int, zstd: Any) -> np.ndarray:
    """The `count` numbers of a chunk, (count,) unsigned of `itemsize` bytes; ValueError if the bytes are damaged."""
    table = read_steps(data)
    counts = [count]
    places: dict[int, np.ndarray] = {}
    streams = []
    for number, (kind, stored, method, unpacked) in enumerate(table):
        wanted = counts[-1] if kind == GAPS else -(-counts[-1] * kind // 8)
        if unpacked > wanted or (kind != GAPS and unpacked != wanted):
            raise ValueError("a stream is longer or shorter than its numbers")
        stream = zstd.decompress(stored, unpacked, asbytes=True) if method == ZSTD else stored
        streams.append(np.frombuffer(stream, np.uint8))
        if kind == GAPS:
            places[number] = gap_places(streams[-1], counts[-1])
            counts.append(places[number].size)
        else:
            counts.append(counts[-1])
    bits = sum(kind or 1 for kind, *_ in table)
    numbers = np.zeros(counts[-1], np.uint8 if bits <= 8 else f"<u{itemsize}")
    for number, (kind, *_) in reversed(list(enumerate(table))):
        if kind == GAPS:
            full = np.zeros(counts[number], numbers.dtype)
            full[places[number]] = numbers + numbers.dtype.type(1)
            numbers = full
        else:
            low = unpack(streams[number], kind, counts[number])
            if number < len(table) - 1:
                numbers = numbers << numbers.dtype.type(kind)
                numbers |= low
            else:
                numbers = low.astype(numbers.dtype, copy=False)
    return numbers.astype(f"<u{itemsize}", copy=False)


def read_steps(data: Buffer) -> list[tuple[int, memoryview, int, int]]:
    """[(kind, bytes stored, RAW or ZSTD, bytes unpacked)]; ValueError if the table does not fit the data."""
    view = memoryview(data)
    number = view[0] if len(view) else STEPS_LIMIT
    position = 1 + number * STEP.size
    if number >= STEPS_LIMIT or position > len(view):
        raise ValueError("its table of steps is cut off")
    steps = []
    for kind, method, stored, unpacked in STEP.iter_unpack(view[1:position]):
        if kind not in (GAPS, *WIDTHS) or method not in (RAW, ZSTD) or (method == RAW and stored != unpacked):
            raise ValueError(f"step {kind}, {method} is unknown")
        steps.append((kind, view[position : position + stored], method, unpacked))
        position += stored
    if position != len(view):
        raise ValueError(f"{position} bytes are listed, {len(view)} exist")
    return steps


def choose(sample: np.ndarray) -> int:
    """The cheapest step for numbers like this sample: GAPS, or the number of low bits to pack."""
    if np.count_nonzero(sample) < SPARSE * sample.size:
        return GAPS
    if entropy(np.bincount(pack(sample, 8))) > FULL:
        return 8
    cost, wide = {}, sample.astype(np.uint64)
    for width in WIDTHS:
        beyond = np.minimum(wide >> np.uint64(width), np.uint64(1 << 16)).astype(np.int64)
        cost[width] = huffman(np.bincount(pack(sample, width))) * width / 8 + entropy(np.bincount(beyond))
    least = min(cost.values())
    return next(width for width in WIDTHS if cost[width] <= least * NEAR)


def entropy(counts: np.ndarray) -> float:
    """Bits per symbol."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def huffman(counts: np.ndarray) -> float:
    """Estimated bits per byte after zstd: entropy, Gallager's bound on Huffman's redundancy, and a measured quarter
    bit if bytes repeat so often that zstd finds matches, which cost more than they save."""
    bits, first = entropy(counts), float(counts.max() / counts.sum())
    redundancy = 0.02 if first < 0.5 else 2 - entropy(np.array([first, 1 - first])) - first
    return min(8.0, bits + redundancy + (0.25 if bits < 3 else 0))


def pack(numbers: np.ndarray, width: int) -> np.ndarray:
    """The low `width` bits of n numbers in size = ceil(n * width / 8) bytes; byte i holds numbers i, i + size, …"""
    low = (numbers if width == 8 else numbers & numbers.dtype.type((1 << width) - 1)).astype(np.uint8)
    size = -(-numbers.size * width // 8)
    packed = low[:size].copy()
    for part in range(1, 8 // width):
        piece = low[part * size : (part + 1) * size]
        packed[: piece.size] |= piece << np.uint8(part * width)
    return packed


def unpack(packed: np.ndarray, width: int, count: int) -> np.ndarray:
    """The inverse of `pack`: (count,) uint8."""
    if width == 8:
        return packed
    low = np.empty(count, np.uint8)
    for part in range(8 // width):
        piece = low[part * packed.size : (part + 1) * packed.size]
        np.right_shift(packed[: piece.size], np.uint8(part * width), out=piece)
    low &= np.uint8((1 << width) - 1)
    return low


def gap_bytes(places: np.ndarray) -> np.ndarray:
    """The gaps between ascending places: gap // 255 bytes of value 255, then one of value gap % 255."""
    gaps = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(gaps // ESCAPE + 1) - 1
    result = np.full(int(ends[-1]) + 1, ESCAPE, np.uint8)
    result[ends] = gaps % ESCAPE
    return result


def gap_places(gaps: np.ndarray, count: int) -> np.ndarray:
    """The inverse of `gap_bytes`; ValueError if a place is not below `count`."""
    last = gaps != ESCAPE
    places = (np.cumsum(gaps + last, dtype=np.int64) - 1)[last]
    if places.size and places[-1] >= count:
        raise ValueError("a gap leads beyond the chunk")
    return places
