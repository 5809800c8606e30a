"""Which row comes when: every source in its proportion, shuffled, from one integer and nothing else.

The global row index g decides. A table of one period says which source has row g, and how many rows of it came before;
a permutation of that source, keyed by seed, source and epoch, says which of its rows it is. So the order is the same on
any number of ranks, a run goes on at any g at once, nothing grows with the corpus, and a source that has been seen
whole begins again in a new order.
"""

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import Any

import numpy as np

EXACT_PERIOD = 1 << 16  # rows; proportions that need a longer period are rounded to it
LONGEST_PERIOD = 1 << 22  # rows; as far as it is lengthened for a source that is very small
_GOLDEN_INT = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, SplitMix64's step
_GOLDEN = np.uint64(_GOLDEN_INT)
_ROUND_KEYS = [np.uint64(_GOLDEN_INT * turn % 2**64) for turn in range(1, 5)]  # four rounds


# --- proportions ------------------------------------------------------------------------------------------------------


def period_counts(weights: Sequence[Fraction | int]) -> list[int]:
    """Rows of each source in one period, in proportion to the weights: exactly where a short period can be exact.

    weights: not negative, one at least over 0. A positive weight gets one row at least.
    """
    total = sum(weights, Fraction(0))
    shares = [Fraction(weight) / total for weight in weights]
    exact = lcm(*(share.denominator for share in shares))
    if exact <= EXACT_PERIOD:
        return [int(share * exact) for share in shares]
    smallest = min(share for share in shares if share)
    period = min(exact, LONGEST_PERIOD, max(EXACT_PERIOD, int(1 / smallest)))
    counts = [max(int(share * period), 1) if share else 0 for share in shares]
    remainders = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i] * period, i))  # largest first
    for i in [i for i in remainders if shares[i]][: max(0, period - sum(counts))]:
        counts[i] += 1
    return counts


def period_table(counts: Sequence[int]) -> np.ndarray:
    """The source of each row of a period, (sum of counts,) uint16: no prefix is a row or more from the proportions.

    The quota method with the earliest deadline (Balinski and Young 1975; Tijdeman 1980): the j-th row of a source of
    rate w may come from row floor((j - 1) / w) on and must have come by row ceil(j / w).
    """
    period = sum(counts)
    table = np.empty(period, dtype=np.uint16)
    waiting = [(0, i) for i, count in enumerate(counts) if count]  # (first row where it may come, source)
    ready: list[tuple[int, int]] = []  # (row by which it must have come, source)
    done = [0] * len(counts)
    for row in range(period):
        while waiting and waiting[0][0] <= row:
            _, i = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(done[i] + 1) * period // counts[i]), i))
        _, i = heapq.heappop(ready)
        table[row] = i
        done[i] += 1
        if done[i] < counts[i]:
            heapq.heappush(waiting, (done[i] * period // counts[i], i))
    return table


# --- the permutation of a source --------------------------------------------------------------------------------------


def _mixed(values: np.ndarray) -> np.ndarray:
    """Scramble uint64 values (SplitMix64's finaliser; Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permuted(positions: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The value at each position of a keyed permutation of range(size).

    positions: (n,) int64, below their sizes. sizes: (n,) int64. keys: (n,) uint64. Returns (n,) int64.
    A Feistel network of four rounds on the least power of two that holds the size (Luby and Rackoff 1988); what falls
    outside goes through it again until it does not (cycle walking; Black and Rogaway 2002).
    """
    bits = np.ceil(np.log2(np.maximum(sizes, 4))).astype(np.uint64)
    values = _feistel(positions.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(values >= sizes.astype(np.uint64))
    while outside.size:
        values[outside] = _feistel(values[outside], bits[outside], keys[outside])
        outside = outside[values[outside] >= sizes[outside].astype(np.uint64)]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """One pass of the network over values of so many bits; halves of odd widths trade places in every round."""
    low_bits = bits - bits // np.uint64(2)
    high_bits = bits // np.uint64(2)
    one = np.uint64(1)
    masks = (one << high_bits) - one, (one << low_bits) - one
    high, low = values >> low_bits, values & masks[1]
    for turn, round_key in enumerate(_ROUND_KEYS):
        high, low = low, high ^ (_mixed(low + keys + round_key) & masks[turn % 2])
    return (high << low_bits) | low


def key_of(seed: int, name: str) -> int:
    """A key of 64 bits for a seed and a source's name."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")


# --- the schedule -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """From row `start` on, sources come in proportion to `counts`; `before`: rows of each that came until then."""

    start: int
    counts: tuple[int, ...]
    before: tuple[int, ...]

    @cached_property
    def table(self) -> np.ndarray:
        """(period,) uint16: see `period_table`."""
        return period_table(self.counts)

    @cached_property
    def ranks(self) -> np.ndarray:
        """(period,) uint32: rows of the same source before, in the same period."""
        ranks = np.empty(len(self.table), dtype=np.uint32)
        for source, count in enumerate(self.counts):
            ranks[self.table == source] = np.arange(count, dtype=np.uint32)
        return ranks

    def consumed(self, row: int) -> list[int]:
        """Rows of each source before global row `row` (of this segment)."""
        periods, rest = divmod(row - self.start, len(self.table))
        within = np.bincount(self.table[:rest], minlength=len(self.counts))
        return [b + periods * c + int(w) for b, c, w in zip(self.before, self.counts, within, strict=True)]


class Schedule:
    """The order of all rows of a run.

    sizes: rows of each source, by name. weights: their shares of the rows, by name; a source without one, or of 0, is
    left out. Raises ValueError on weights of no source, on none over 0, and on a weight for a source without rows.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, Fraction | int], seed: int) -> None:
        self.names, self.seed = list(sizes), seed
        self.sizes = np.array(list(sizes.values()), dtype=np.int64)
        self.segments = [Segment(0, self._counts(weights), (0,) * len(self.names))]
        self._keys = np.array([key_of(seed, name) for name in self.names], dtype=np.uint64)

    def _counts(self, weights: Mapping[str, Fraction | int]) -> tuple[int, ...]:
        if unknown := [name for name in weights if name not in self.names]:
            raise ValueError(f"there is no source {unknown[0]}; the corpus has {', '.join(self.names)}")
        if any(weight < 0 for weight in weights.values()) or not any(weights.values()):
            raise ValueError("source weights must not be below 0, and one of them must be over it")
        for name, size in zip(self.names, self.sizes, strict=True):
            if weights.get(name) and not size:
                raise ValueError(f"source {name} has no rows; leave it out of the source weights")
        return tuple(period_counts([weights.get(name, 0) for name in self.names]))

    def reweighted(self, weights: Mapping[str, Fraction | int], row: int) -> None:
        """From global row `row` on, take other proportions; each source goes on where it is."""
        counts = self._counts(weights)
        if counts != self.segments[-1].counts:
            kept = [segment for segment in self.segments if segment.start < row]
            self.segments = [*kept, Segment(row, counts, tuple(self.consumed(row).values()))]

    def at(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and row within the source, each (n,) int64, of global rows (n,) int64."""
        sources, places = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.int64)
        of = np.searchsorted([segment.start for segment in self.segments], rows, "right") - 1
        for number in np.unique(of):
            chosen = np.flatnonzero(of == number)
            sources[chosen], places[chosen] = self._within(self.segments[number], rows[chosen])
        return sources, places

    def _within(self, segment: Segment, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        periods, at = np.divmod(rows - segment.start, len(segment.table))
        sources = segment.table[at].astype(np.int64)
        counts, before = np.array(segment.counts), np.array(segment.before)
        sizes = self.sizes[sources]
        epochs, positions = np.divmod(before[sources] + periods * counts[sources] + segment.ranks[at], sizes)
        keys = _mixed(self._keys[sources] + (epochs.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        return sources, permuted(positions, sizes, keys)

    def consumed(self, row: int) -> dict[str, int]:
        """Rows of each source before global row `row`; divided by its size, its epochs."""
        segment = [each for each in self.segments if each.start <= row][-1]
        return dict(zip(self.names, segment.consumed(row), strict=True))

    def state(self) -> dict[str, Any]:
        """What `restore` needs; plain JSON."""
        segments = [{"start": s.start, "counts": list(s.counts), "before": list(s.before)} for s in self.segments]
        return {"names": self.names, "sizes": self.sizes.tolist(), "seed": self.seed, "segments": segments}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> "Schedule":
        """The schedule of a state."""
        sizes = dict(zip(state["names"], state["sizes"], strict=True))
        schedule = cls(sizes, sizes, state["seed"])
        schedule.segments = [
            Segment(each["start"], tuple(each["counts"]), tuple(each["before"])) for each in state["segments"]
        ]
        return schedule


# --- weights of a command line ----------------------------------------------------------------------------------------


def parse_weights(given: str, sizes: Mapping[str, int]) -> dict[str, Fraction | int]:
    """Weights by source of "size", "temperature=A", or "zh=0.6,en=0.4".

    sizes: rows by source. temperature: a source of n rows gets n^A, so that below 1 small ones get more than by size
    (Conneau and Lample 2019 take 0.7). Raises ValueError on anything else, and where a source is not named.
    """
    if given == "size":
        return dict(sizes)
    pairs = [word.partition("=") for word in given.split(",")]
    try:
        values: dict[str, Fraction | int] = {name.strip(): Fraction(value.strip()) for name, _, value in pairs}
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f'--source_weights {given} is neither "size" nor "temperature=0.7" nor shares such as "zh=0.6,en=0.4"'
        ) from None
    if list(values) == ["temperature"]:
        if values["temperature"] <= 0:
            raise ValueError(f"--source_weights {given}: a temperature is over 0")
        power = float(values["temperature"])
        largest = max(sizes.values())
        return {name: Fraction((size / largest) ** power).limit_denominator(10**9) for name, size in sizes.items()}
    if unknown := [name for name in values if name not in sizes]:
        raise ValueError(f"--source_weights: there is no source {unknown[0]}; the corpus has {', '.join(sizes)}")
    if missing := [name for name in sizes if name not in values]:
        raise ValueError(f"--source_weights does not name {missing[0]}; give it a share, or 0 to leave it out")
    return values
