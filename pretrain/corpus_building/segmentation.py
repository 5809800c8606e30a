"""Cut a document's tokens into the fewest samples of whole sentences, with lengths as equal as possible.

The document is encoded once and cut between tokens at sentence ends, so that the concatenated samples are exactly its
tokens. Two kinds of numbers occur: a position is a number of characters in the text, and an offset is a number of
tokens in the document. A candidate is an offset at which the document may be cut.

Greedy filling gives the number of samples. In every division into this number of samples, the k-th cut lies between the
k-th cuts of greedy filling from the right and from the left. These windows are disjoint, so dynamic programming over
their candidates finds the division with the least sum of squared lengths. In most documents narrower windows are known
beforehand (`_cuts_at_sentence_ends`), and only the text in these windows is searched for sentence ends.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from math import ceil, floor, inf, sqrt

import numpy as np
from sentence_ends.sentence_boundaries import clause_ends, sentence_ends, sentence_ends_between, word_ends

_FIRST_DISTANCE = 16  # tokens; sentence ends are first searched this close to the even division
_MANY_SAMPLES = 16  # from this number on, the whole text is searched once: a search per window may read it many times


def sample_lengths(
    text: str, ends: np.ndarray, limit: int, language: str = "auto", bos: int = 1, eos: int = 1
) -> np.ndarray:
    """Return the number of tokens of each sample of a document: (samples,) int32.

    The document has bos + len(ends) + eos tokens. A sentence longer than the limit is cut between clauses; if that is
    not enough, between words, then characters, then bytes.

    ends: (tokens,), the position in the text at which each token ends; tokens that share a character have the same end.
    limit: maximum tokens of a sample. bos, eos: 1 if the document has that token, else 0.
    """
    total = bos + len(ends) + eos
    if total <= limit:
        return np.array([total], dtype=np.int32)
    tokens = _TokenOffsets(ends, bos, total)
    cuts = _cuts_at_sentence_ends(text, tokens, limit, language)
    return np.diff(cuts or balanced_cuts(_all_candidates(text, tokens, limit, language), limit)).astype(np.int32)


class _TokenOffsets:
    """Converts between positions in the text (characters) and offsets in the document (tokens, BOS included)."""

    def __init__(self, ends: np.ndarray, bos: int, total: int) -> None:
        self.ends, self.bos, self.total = ends, bos, total

    def offsets_at(self, positions: list[int]) -> list[int]:
        """Return the offsets of the positions, in ascending order; positions that are not between tokens have none."""
        if not positions or not len(self.ends):
            return []
        after = self.ends.searchsorted(positions, "right")
        between = (self.ends[after - 1] == positions) & (after > 0) & (after < len(self.ends))
        return (after[between] + self.bos).tolist()

    def position_of(self, offset: int) -> int:
        """Return the position of an offset."""
        tokens = min(offset - self.bos, len(self.ends))
        return int(self.ends[tokens - 1]) if tokens > 0 else 0


def _cuts_at_sentence_ends(text: str, tokens: _TokenOffsets, limit: int, language: str) -> list[int] | None:
    """Return the best cuts at sentence ends into ceil(tokens / limit) samples; None if there is no such division.

    In every division of T tokens into n samples of at most L tokens, the k-th cut lies between T - (n - k) L and k L;
    these windows are disjoint. Let e be the sum of squared lengths minus its minimum T^2 / n. The two sides of a cut at
    x contribute at least x^2 / k + (T - x)^2 / (n - k), so |x - k T / n| <= sqrt(e k (n - k) / n). Sentence ends are
    first searched near k T / n; e of the division found there bounds the search for the best cuts.
    """
    total, count = tokens.total, -(-tokens.total // limit)
    known = tokens.offsets_at(sentence_ends(text, language)) if count >= _MANY_SAMPLES else None
    bound = _FIRST_DISTANCE * sqrt(count) if known is None else total  # a first estimate of sqrt(e)
    while True:
        windows = _cut_windows(total, count, limit, bound)
        offsets = _sentence_ends_in_windows(text, tokens, windows, language) if known is None else known
        candidates = _candidates_in_windows(offsets, windows)
        root_excess = _root_excess_of_nearest_cuts(candidates, total, limit)
        if root_excess is not None and root_excess <= bound:
            candidates = _candidates_in_windows(offsets, _cut_windows(total, count, limit, root_excess))
        elif root_excess is not None or bound < total:
            bound = root_excess or 8 * bound
            continue
        return _best_cuts([[0], *candidates, [total]], limit)


def _sentence_ends_in_windows(
    text: str, tokens: _TokenOffsets, windows: list[tuple[int, int]], language: str
) -> list[int]:
    """Return the offsets of the sentence ends within the windows."""
    positions: list[int] = []
    for low, high in windows:
        positions += sentence_ends_between(text, language, tokens.position_of(low), tokens.position_of(high))
    return tokens.offsets_at(positions)


def _cut_windows(total: int, count: int, limit: int, root_excess: float) -> list[tuple[int, int]]:
    """Return the first and last offset of each cut, in divisions whose sqrt(e) is at most `root_excess`.

    root_excess: square root of the excess sum of squares; see `_cuts_at_sentence_ends`.
    """
    windows = []
    for k in range(1, count):
        even, reach = k * total / count, root_excess * sqrt(k * (count - k) / count)
        low, high = max(total - (count - k) * limit, ceil(even - reach)), min(k * limit, floor(even + reach))
        windows.append((max(low, 1), min(high, total - 1)))
    return windows


def _candidates_in_windows(offsets: list[int], windows: list[tuple[int, int]]) -> list[list[int]]:
    """Return the candidates of each cut: the offsets in its window."""
    return [offsets[bisect_left(offsets, low) : bisect_right(offsets, high)] for low, high in windows]


def _root_excess_of_nearest_cuts(candidates: list[list[int]], total: int, limit: int) -> float | None:
    """Return sqrt(e) of the division at the candidates nearest to the even division (see `_cuts_at_sentence_ends`).

    Returns None if a cut has no candidate, or a sample of this division is longer than the limit. candidates: a list
    for each cut, in ascending order.
    """
    count = len(candidates) + 1
    previous, squares = 0, 0
    for k, offsets in enumerate([*candidates, [total]], 1):
        if not offsets:
            return None
        even = k * total / count
        i = bisect_left(offsets, even)
        nearest = min(offsets[max(0, i - 1) : i + 1], key=lambda offset: abs(offset - even))
        if nearest - previous > limit:
            return None
        squares += (nearest - previous) ** 2
        previous = nearest
    return sqrt(max(0.0, squares - total * total / count)) + 1e-6


def _all_candidates(text: str, tokens: _TokenOffsets, limit: int, language: str) -> list[int]:
    """Return all sentence ends, and ends of the next kind (clauses, …) only where sentences are longer than the limit.

    The offsets ascend from 0 to the number of tokens; neighbours are at most `limit` apart.
    """
    found = np.array([0, tokens.total])
    kinds = _offsets_by_kind(text, tokens, language)
    while (too_long := np.flatnonzero(np.diff(found) > limit)).size:
        offsets = next(kinds)
        first = np.searchsorted(offsets, found[too_long], "right")
        last = np.searchsorted(offsets, found[too_long + 1], "left")
        inside = [offsets[a:b] for a, b in zip(first, last, strict=True)]
        found = np.sort(np.concatenate([found, *inside]))
    return found.tolist()


def _offsets_by_kind(text: str, tokens: _TokenOffsets, language: str) -> Iterator[np.ndarray]:
    """Yield the offsets of each kind, best kind first: ends of sentences, clauses, words, characters and tokens."""
    yield np.array(tokens.offsets_at(sentence_ends(text, language)), dtype=np.int64)
    yield np.array(tokens.offsets_at(clause_ends(text)), dtype=np.int64)
    yield np.array(tokens.offsets_at(word_ends(text)), dtype=np.int64)
    yield np.flatnonzero((tokens.ends[:-1] < tokens.ends[1:]) & (tokens.ends[:-1] > 0)) + 1 + tokens.bos
    yield np.arange(1, tokens.total)


def balanced_cuts(candidates: list[int], limit: int) -> list[int]:
    """Return the division with the fewest samples and, among these, the least sum of squared lengths.

    candidates: ascending, neighbours at most `limit` apart; the first and the last are always in the result.
    """
    left, right = _greedy_cuts(candidates, limit)
    cuts = _best_cuts([candidates[low : high + 1] for low, high in zip(right, left, strict=True)], limit)
    assert cuts, "neighbours are further apart than the limit"
    return cuts


def _greedy_cuts(candidates: list[int], limit: int) -> tuple[list[int], list[int]]:
    """Return the indices of the cuts of greedy filling from the left and of filling from the right, both ascending."""
    left = [0]
    while left[-1] < len(candidates) - 1:
        left.append(bisect_right(candidates, candidates[left[-1]] + limit) - 1)
    right = [len(candidates) - 1]
    while right[-1] > 0:
        right.append(bisect_left(candidates, candidates[right[-1]] - limit))
    return left, right[::-1]


def _best_cuts(candidates: Sequence[list[int]], limit: int) -> list[int] | None:
    """Return one candidate of each cut, neighbours at most `limit` apart, with the least sum of squared distances.

    Returns None if there are no such cuts. candidates: a list for each cut, in ascending order, and greater than all
    candidates of the previous cut; the first and the last cut, which are the ends of the document, have one candidate.
    """
    previous, cost = candidates[0], [0]
    steps = []
    for offsets in candidates[1:]:
        choice = _best_predecessors(previous, cost, offsets, limit)
        reached = [(offset, i) for offset, i in zip(offsets, choice, strict=True) if offset - previous[i] <= limit]
        if not reached:
            return None
        cost = [cost[i] + (offset - previous[i]) ** 2 for offset, i in reached]
        steps.append(reached)
        previous = [offset for offset, _ in reached]
    cuts, i = [], 0
    for reached in reversed(steps):
        offset, i = reached[i]
        cuts.append(offset)
    return [*candidates[0], *reversed(cuts)]


def _best_predecessors(previous: list[int], cost: list[int], offsets: list[int], limit: int) -> list[int]:
    """Return for each offset the index of its best predecessor in `previous`.

    cost: the least sum of squared lengths up to each offset of `previous`. The square of a length is convex, so the
    best index never decreases from one offset to the next, and neither does the first index within the limit. After the
    best index of the middle offset is found, the offsets before it try only indices up to this one, and the offsets
    after it only indices from this one on: divide and conquer in n log n steps. If no predecessor is within the limit,
    an index outside the limit is returned.
    """
    choice = [0] * len(offsets)
    todo = [(0, len(offsets), 0, len(previous))]
    while todo:
        low, high, first, last = todo.pop()
        if low < high:
            middle = (low + high) // 2
            best = _best_predecessor(previous, cost, offsets[middle], limit, first, last)
            choice[middle] = best
            todo += [(low, middle, first, best + 1), (middle + 1, high, best, last)]
    return choice


def _best_predecessor(previous: list[int], cost: list[int], offset: int, limit: int, first: int, last: int) -> int:
    """Return the index of the best predecessor in previous[first:last]; last - 1 if none is within `limit`."""
    best, least = last - 1, inf
    for i in range(bisect_left(previous, offset - limit, first, last), last):
        total = cost[i] + (offset - previous[i]) ** 2
        if total < least:
            best, least = i, total
    return best
