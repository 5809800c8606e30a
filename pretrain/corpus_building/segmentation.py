"""Cut a document's tokens into the fewest samples of whole sentences, as balanced as that allows.

The document is encoded once and cut between tokens where a sentence ends, so its samples, one after another, are
exactly its tokens. How many samples it takes, greedy filling tells. Balance: the k-th cut of any such division lies
between the k-th cut of greedy filling from the right and from the left; these windows are disjoint, so a dynamic
programme over them that minimises the sum of squared lengths sees every place once. Mostly narrower windows are known
beforehand (`_near_cuts`), and the rest of the text need not be searched for sentences.

`pretrain/preprocess.py` is the command line.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil, floor, isqrt, sqrt

import numpy as np
from sentence_ends.sentence_boundaries import clause_ends, sentence_ends, sentence_ends_between, word_ends

_NEAR = 16  # tokens: how far from the even division sentence ends are looked for first, as a spread over one cut
_MANY = 16  # samples, from which so much of a text is near some cut that all of it is searched
_FEW = 400  # cells of a table that plain loops fill faster than arrays
_DENSE = 4096  # cells of a table that are quicker computed than thought about


def sample_lengths(
    text: str, ends: np.ndarray, limit: int, language: str = "auto", bos: int = 1, eos: int = 1
) -> np.ndarray:
    """Tokens of each sample of a document, which are bos + len(ends) + eos tokens in all.

    ends: (tokens,) where each token of the text ends, in characters; tokens that share a character have the same end,
    and only after the last of them may be cut. limit: no sample gets more tokens. bos, eos: 1 or 0, whether those
    tokens stand around the text's. Returns (samples,) int32. A sentence over the limit is cut between clauses, else
    words, else characters, else bytes.
    """
    total = bos + len(ends) + eos
    if total <= limit:
        return np.array([total], dtype=np.int32)
    edges = _Edges(ends, bos, total)
    cuts = _near_cuts(text, edges, limit, language)
    return np.diff(cuts or balance(_all_edges(text, edges, limit, language), limit)).astype(np.int32)


class _Edges:
    """From characters to the tokens of a document, BOS counted, before which it may be cut, and back."""

    def __init__(self, ends: np.ndarray, bos: int, total: int) -> None:
        self.ends, self.bos, self.total = ends, bos, total

    def at(self, positions: list[int]) -> list[int]:
        """The edges at those of the positions (ascending) that lie between two tokens of the text."""
        if not positions or not len(self.ends):
            return []
        after = self.ends.searchsorted(positions, "right")
        there = (self.ends[after - 1] == positions) & (after > 0) & (after < len(self.ends))
        return (after[there] + self.bos).tolist()

    def character(self, token: int) -> int:
        """Where the text before a token of the document ends."""
        at = min(token - self.bos, len(self.ends))
        return int(self.ends[at - 1]) if at > 0 else 0


def _near_cuts(text: str, edges: _Edges, limit: int, language: str) -> list[int] | None:
    """The best cuts at sentence ends into as few samples as the lengths alone allow; None where there are none.

    Every division of T tokens into n samples of at most L has its k-th cut between T - (n - k) L and k L: windows that
    do not meet. And if its sum of squared lengths is T^2 / n + e, its k-th cut is at most sqrt(e k (n - k) / n) from
    k T / n, because what lies on the two sides of a cut x costs at least x^2 / k + (T - x)^2 / (n - k). So sentence
    ends are looked for near k T / n, and farther off only where the e of a division that was found leaves room.
    """
    total, pieces = edges.total, -(-edges.total // limit)
    found = edges.at(sentence_ends(text, language)) if pieces >= _MANY else None
    spread = _NEAR * sqrt(pieces) if found is None else total  # sqrt(e), at a guess
    while True:
        windows = _windows(total, pieces, limit, spread)
        near = _edges_within(text, edges, windows, language) if found is None else found
        columns = _columns(near, windows)
        wanted = _wanted_spread(columns, total, limit)
        if wanted is not None and wanted <= spread:
            columns = _columns(near, _windows(total, pieces, limit, wanted))
        elif wanted is not None or spread < total:
            spread = wanted or 8 * spread
            continue
        return _best_path([[0], *columns, [total]], limit)


def _edges_within(text: str, edges: _Edges, windows: list[tuple[int, int]], language: str) -> list[int]:
    """The edges of sentences in the windows."""
    positions: list[int] = []
    for low, high in windows:
        positions += sentence_ends_between(text, language, edges.character(low), edges.character(high))
    return edges.at(positions)


def _windows(total: int, pieces: int, limit: int, spread: float) -> list[tuple[int, int]]:
    """From where to where each cut may be, in tokens, in a division of e = spread^2 (see `_near_cuts`)."""
    found = []
    for k in range(1, pieces):
        ideal, reach = k * total / pieces, spread * sqrt(k * (pieces - k) / pieces)
        low, high = max(total - (pieces - k) * limit, ceil(ideal - reach)), min(k * limit, floor(ideal + reach))
        found.append((max(low, 1), min(high, total - 1)))
    return found


def _columns(edges: list[int], windows: list[tuple[int, int]]) -> list[list[int]]:
    """The edges in each window."""
    return [edges[bisect_left(edges, low) : bisect_right(edges, high)] for low, high in windows]


def _wanted_spread(columns: list[list[int]], total: int, limit: int) -> float | None:
    """sqrt(e) of the division with each cut as near to its ideal place as it can be; None where that is none."""
    pieces = len(columns) + 1
    at, squares = 0, 0
    for k, column in enumerate([*columns, [total]], 1):
        if not column:
            return None
        ideal = k * total / pieces
        i = bisect_left(column, ideal)
        edge = min(column[max(0, i - 1) : i + 1], key=lambda place: abs(place - ideal))
        if edge - at > limit:
            return None
        squares += (edge - at) ** 2
        at = edge
    return sqrt(max(0.0, squares - total * total / pieces)) + 1e-6


def _all_edges(text: str, edges: _Edges, limit: int, language: str) -> list[int]:
    """Where a document is cut, if need be: between sentences, and in longer pieces at the best kind of place there is.

    Ascending, from 0 to the number of tokens, neighbours no further apart than limit.
    """
    found = np.array([0, edges.total])
    kinds = _places(text, edges, language)
    while (wide := np.flatnonzero(np.diff(found) > limit)).size:
        places = next(kinds)  # looked for only where the better kinds leave too long a piece
        first = np.searchsorted(places, found[wide], "right")
        last = np.searchsorted(places, found[wide + 1], "left")
        inside = [places[a:b] for a, b in zip(first, last, strict=True)]
        found = np.sort(np.concatenate([found, *inside]))
    return found.tolist()


def _places(text: str, edges: _Edges, language: str) -> Iterator[np.ndarray]:
    """Where a document may be cut, in tokens, the best kind first: sentences, clauses, words, characters, tokens."""
    yield np.array(edges.at(sentence_ends(text, language)), dtype=np.int64)
    yield np.array(edges.at(clause_ends(text)), dtype=np.int64)
    yield np.array(edges.at(word_ends(text)), dtype=np.int64)
    yield np.flatnonzero((edges.ends[:-1] < edges.ends[1:]) & (edges.ends[:-1] > 0)) + 1 + edges.bos
    yield np.arange(1, edges.total)


def balance(edges: list[int], limit: int) -> list[int]:
    """Choose cuts among `edges` so that the pieces are fewest, and among those of the least sum of squared lengths.

    edges: ascending, first and last are kept; neighbours no further apart than `limit`. Returns the chosen edges.
    """
    left, right = _greedy(edges, limit)
    cuts = _best_path([edges[low : high + 1] for low, high in zip(right, left, strict=True)], limit)
    assert cuts, "neighbours are further apart than the limit"
    return cuts


def _greedy(edges: list[int], limit: int) -> tuple[list[int], list[int]]:
    """Indices of the cuts when pieces are filled from the left, and when they are filled from the right."""
    left = [0]
    while left[-1] < len(edges) - 1:
        left.append(bisect_right(edges, edges[left[-1]] + limit) - 1)
    right = [len(edges) - 1]
    while right[-1] > 0:
        right.append(bisect_left(edges, edges[right[-1]] - limit))
    return left, right[::-1]


def _best_path(columns: Sequence[list[int]], limit: int) -> list[int] | None:
    """One edge of each column, so that none is more than limit after the one before and the squared steps sum least.

    columns: of ascending edges, each column's beyond the last one's; the first has one. None where there is no path.
    """
    before, cost = columns[0], [0]
    steps = []
    for column in columns[1:]:
        choice = _best_before(before, cost, column, limit)
        reached = [(edge, i) for edge, i in zip(column, choice, strict=True) if edge - before[i] <= limit]
        if not reached:
            return None
        cost = [cost[i] + (edge - before[i]) ** 2 for edge, i in reached]
        steps.append(reached)
        before = [edge for edge, _ in reached]
    path, at = [], 0
    for reached in reversed(steps):
        edge, at = reached[at]
        path.append(edge)
    return [*columns[0], *reversed(path)]


def _best_before(before: list[int], cost: list[int], after: list[int], limit: int) -> list[int]:
    """For each edge of `after`, the index of the edge of `before` through which it is reached at the least cost.

    The squared length grows faster the longer a piece is, so the best index never falls from one row to the next (and
    neither does the first index within the limit): rows between two known ones need look only between their choices.
    Where no edge is within the limit, the index is of one that is not.
    """
    if len(after) * len(before) > _FEW:
        tables = [np.array(given, dtype=np.int64) for given in (before, cost, after)]
        return _best_of_many(tables[0], tables[1], tables[2], limit)
    choice, start = [], 0
    for edge in after:
        best, least = start, None
        for i in range(start, len(before)):
            length = edge - before[i]
            if length <= limit and (least is None or cost[i] + length * length < least):
                best, least = i, cost[i] + length * length
        choice.append(best)
        start = best
    return choice


def _best_of_many(before: np.ndarray, cost: np.ndarray, after: np.ndarray, limit: int) -> list[int]:
    """What `_best_before` finds, by arrays."""
    impossible = np.iinfo(np.int64).max

    def rows(ends: np.ndarray, low: int, high: int) -> np.ndarray:
        lengths = ends[:, None] - before[None, low:high]
        best = np.where(lengths <= limit, cost[low:high] + lengths * lengths, impossible).argmin(axis=1)
        return np.where(lengths[:, -1] <= limit, low + best, high - 1)

    if len(after) * len(before) <= _DENSE:
        return rows(after, 0, len(before)).tolist()
    known = np.union1d(np.arange(0, len(after), isqrt(len(after))), [len(after) - 1])
    choice = np.empty(len(after), dtype=np.int64)
    choice[known] = rows(after[known], 0, len(before))
    for a, b in pairwise(known):
        choice[a + 1 : b] = rows(after[a + 1 : b], choice[a], choice[b] + 1)
    return choice.tolist()
