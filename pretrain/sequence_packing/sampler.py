"""The order of the packed sequences of a run: sources are mixed by weight, and each source is shuffled.

The global index counts the packed sequences of a run over all ranks. The sources follow each other in a fixed pattern,
which repeats after a period. The pattern determines the source at each global index and the number of sequences of
this source before it. A permutation that depends on seed, source and epoch maps this number to a sequence of the
source. So the order does not depend on the number of ranks, a run can resume at any index without reading the previous
sequences, memory does not grow with the corpus, and each epoch of a source has another order. If the weights name type
numbers (given to corpora when they are merged), all sources of one type count as one source here.
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

EXACT_PERIOD = 1 << 16  # sequences; proportions that need a longer period are rounded
LONGEST_PERIOD = 1 << 22  # sequences; very small weights lengthen the period at most to this
_GOLDEN_INT = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, SplitMix64's step
_GOLDEN = np.uint64(_GOLDEN_INT)
_ROUND_KEYS = [np.uint64(_GOLDEN_INT * round_number % 2**64) for round_number in range(1, 5)]  # four rounds


def period_counts(weights: Sequence[Fraction | int]) -> list[int]:
    """Return the number of sequences of each source in one period, in proportion to the weights.

    The proportions are exact if a period of at most EXACT_PERIOD suffices, else rounded. A source with a positive
    weight gets at least one sequence. weights: not negative, at least one above 0.
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
    """Return the source at each index of a period, (sum of counts,) uint16.

    In every prefix of the period, the number of sequences of each source differs by less than one from the source's
    share of the prefix's length.

    Method: quota method with the earliest deadline first (Balinski and Young 1975; Tijdeman 1980). The j-th sequence of
    a source with rate w (its count divided by the period) is released at index floor((j - 1) / w) and due at index
    ceil(j / w).
    """
    period = sum(counts)
    table = np.empty(period, dtype=np.uint16)
    waiting = [(0, i) for i, count in enumerate(counts) if count]  # (release, source)
    ready: list[tuple[int, int]] = []  # (due, source)
    done = [0] * len(counts)
    for index in range(period):
        while waiting and waiting[0][0] <= index:
            _, i = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(done[i] + 1) * period // counts[i]), i))
        _, i = heapq.heappop(ready)
        table[index] = i
        done[i] += 1
        if done[i] < counts[i]:
            heapq.heappush(waiting, (done[i] * period // counts[i], i))
    return table


def _scramble(values: np.ndarray) -> np.ndarray:
    """Hash uint64 values with SplitMix64's finaliser (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permute(positions: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return for each position its value under the permutation of range(size) that a key selects, (n,) int64.

    positions: (n,) int64, less than their sizes. sizes: (n,) int64. keys: (n,) uint64. The permutation is a Feistel
    network of four rounds on the least power of two that is at least max(size, 4) (Luby and Rackoff 1988); values
    outside the range are permuted again until they are inside (cycle walking; Black and Rogaway 2002).
    """
    bits = np.ceil(np.log2(np.maximum(sizes, 4))).astype(np.uint64)
    values = _feistel(positions.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(values >= sizes.astype(np.uint64))
    while outside.size:
        values[outside] = _feistel(values[outside], bits[outside], keys[outside])
        outside = outside[values[outside] >= sizes[outside].astype(np.uint64)]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the output of the Feistel network for values with the given numbers of bits; each round swaps halves."""
    low_bits = bits - bits // np.uint64(2)
    high_bits = bits // np.uint64(2)
    one = np.uint64(1)
    masks = (one << high_bits) - one, (one << low_bits) - one
    high, low = values >> low_bits, values & masks[1]
    for round_number, round_key in enumerate(_ROUND_KEYS):
        high, low = low, high ^ (_scramble(low + keys + round_key) & masks[round_number % 2])
    return (high << low_bits) | low


def source_key(seed: int, name: str) -> int:
    """Return a 64-bit key for a seed and the name of a source."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")


@dataclass(frozen=True)
class WeightPhase:
    """A part of a run with constant weights."""

    start: int  # first global index of the phase
    counts: tuple[int, ...]  # sequences of each source in a period
    offsets: tuple[int, ...]  # sequences of each source before `start`

    @cached_property
    def table(self) -> np.ndarray:
        """The source at each index of the period, (period,) uint16; see `period_table`."""
        return period_table(self.counts)

    @cached_property
    def ordinals(self) -> np.ndarray:
        """The number of sequences of the same source before each index of the period, (period,) uint32."""
        ordinals = np.empty(len(self.table), dtype=np.uint32)
        for source, count in enumerate(self.counts):
            ordinals[self.table == source] = np.arange(count, dtype=np.uint32)
        return ordinals

    def consumed(self, index: int) -> list[int]:
        """Return the number of sequences of each source before a global index of this phase."""
        periods, rest = divmod(index - self.start, len(self.table))
        within = np.bincount(self.table[:rest], minlength=len(self.counts))
        return [o + periods * c + int(w) for o, c, w in zip(self.offsets, self.counts, within, strict=True)]


class SequenceOrder:
    """The order of all sequences of a run.

    sizes: the number of sequences of each source. weights: the relative weight of each source; a source with weight 0
    or without a weight is not used. Raises ValueError if a source of `weights` does not exist, a weight is negative,
    all weights are 0, or a source with a weight has no sequences.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, Fraction | int], seed: int) -> None:
        self.names, self.seed = list(sizes), seed
        self.sizes = np.array(list(sizes.values()), dtype=np.int64)
        self.phases = [WeightPhase(0, self._counts(weights), (0,) * len(self.names))]
        self._keys = np.array([source_key(seed, name) for name in self.names], dtype=np.uint64)

    def _counts(self, weights: Mapping[str, Fraction | int]) -> tuple[int, ...]:
        if unknown := [name for name in weights if name not in self.names]:
            raise ValueError(f"the corpus has no source {unknown[0]}; it has {', '.join(self.names)}")
        if any(weight < 0 for weight in weights.values()) or not any(weights.values()):
            raise ValueError("source weights must not be below 0, and at least one must be above 0")
        for name, size in zip(self.names, self.sizes, strict=True):
            if weights.get(name) and not size:
                raise ValueError(f"source {name} has no training sequences; set its source weight to 0")
        return tuple(period_counts([weights.get(name, 0) for name in self.names]))

    def change_weights(self, weights: Mapping[str, Fraction | int], index: int) -> None:
        """Use other weights from the global index `index` on; each source continues with its next sequence."""
        counts = self._counts(weights)
        if counts != self.phases[-1].counts:
            kept = [phase for phase in self.phases if phase.start < index]
            self.phases = [*kept, WeightPhase(index, counts, tuple(self.consumed(index).values()))]

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source at each global index, and the index of the sequence within the source, each (n,) int64.

        indices: (n,) int64.
        """
        sources, within_source = np.empty(len(indices), dtype=np.int64), np.empty(len(indices), dtype=np.int64)
        phase_of = np.searchsorted([phase.start for phase in self.phases], indices, "right") - 1
        for number in np.unique(phase_of):
            members = np.flatnonzero(phase_of == number)
            sources[members], within_source[members] = self._locate_in_phase(self.phases[number], indices[members])
        return sources, within_source

    def _locate_in_phase(self, phase: WeightPhase, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        periods, at = np.divmod(indices - phase.start, len(phase.table))
        sources = phase.table[at].astype(np.int64)
        counts, offsets = np.array(phase.counts), np.array(phase.offsets)
        sizes = self.sizes[sources]
        epochs, positions = np.divmod(offsets[sources] + periods * counts[sources] + phase.ordinals[at], sizes)
        keys = _scramble(self._keys[sources] + (epochs.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        return sources, permute(positions, sizes, keys)

    def consumed(self, index: int) -> dict[str, int]:
        """Return the number of sequences of each source before a global index."""
        phase = [each for each in self.phases if each.start <= index][-1]
        return dict(zip(self.names, phase.consumed(index), strict=True))

    def state(self) -> dict[str, Any]:
        """Return the order as JSON values, from which `restore` makes an equal order."""
        phases = [{"start": p.start, "counts": list(p.counts), "before": list(p.offsets)} for p in self.phases]
        return {"names": self.names, "sizes": self.sizes.tolist(), "seed": self.seed, "phases": phases}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> "SequenceOrder":
        """Return the order that the result of `state` describes."""
        sizes = dict(zip(state["names"], state["sizes"], strict=True))
        order = cls(sizes, sizes, state["seed"])
        order.phases = [
            WeightPhase(each["start"], tuple(each["counts"]), tuple(each["before"])) for each in state["phases"]
        ]
        return order


def parse_weights(text: str, sizes: Mapping[str, int]) -> dict[str, Fraction | int]:
    """Return the weight of each source from "size", "temperature=A", or weights such as "zh=0.6,en=0.4".

    sizes: the number of sequences of each source. temperature=A: a source of n sequences has a weight proportional to
    n^A. A is an exponent: where others write p ~ n^(1/T) with a temperature T, A is 1/T. If A is below 1, small sources
    get more than their share (Conneau and Lample 2019 use 0.7). Raises ValueError on any other text, or if a source has
    no weight.
    """
    if text == "size":
        return dict(sizes)
    pairs = [word.partition("=") for word in text.split(",")]
    try:
        values: dict[str, Fraction | int] = {name.strip(): Fraction(value.strip()) for name, _, value in pairs}
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f'--source_weights {text} is neither "size" nor "temperature=0.7" nor weights such as "zh=0.6,en=0.4"'
        ) from None
    if list(values) == ["temperature"]:
        if values["temperature"] <= 0:
            raise ValueError(f"--source_weights {text}: a temperature must be above 0")
        power = float(values["temperature"])
        largest = max(sizes.values())
        return {name: Fraction((size / largest) ** power).limit_denominator(10**9) for name, size in sizes.items()}
    if unknown := [name for name in values if name not in sizes]:
        raise ValueError(f"--source_weights: the corpus has no source {unknown[0]}; it has {', '.join(sizes)}")
    if missing := [name for name in sizes if name not in values]:
        raise ValueError(f"--source_weights gives {missing[0]} no weight; add one, or 0 to train without this source")
    return values
