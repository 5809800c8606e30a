"""Cut a document's tokens into the fewest samples of whole sentences, with lengths as equal as possible.

The document is encoded once and cut between tokens where a sentence ends, so that its samples, joined, are exactly its
tokens. Greedy filling gives the number of samples. The k-th cut of every division into so many samples lies between the
k-th cuts of greedy filling from the right and from the left. These windows are disjoint, so a dynamic programme over
them finds the division with the least sum of squared lengths and reads each place once. In most documents narrower
windows are known beforehand (`_near_cuts`), and the text outside of them is not searched for sentences.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from math import ceil, floor, inf, sqrt

import numpy as np
from sentence_ends.sentence_boundaries import clause_ends, sentence_ends, sentence_ends_between, word_ends

_FIRST_SPREAD = 16  # tokens from the even division within which sentence ends are searched first
_MANY_PIECES = 16  # from which all text is searched at once: a search between two cuts may have to read all of it


def sample_lengths(
    text: str, ends: np.ndarray, limit: int, language: str = "auto", bos: int = 1, eos: int = 1
) -> np.ndarray:
    """Return the tokens of each sample of a document of bos + len(ends) + eos tokens: (samples,) int32.

    ends: (tokens,) where each token of the text ends, in characters; tokens that share a character have the same end
    and are cut only after the last of them. limit: the most tokens of a sample. bos, eos: 1 if the document has that
    token, else 0. A sentence longer than the limit is cut between clauses, else words, else characters, else bytes.
    """
    total = bos + len(ends) + eos
    if total <= limit:
        return np.array([total], dtype=np.int32)
    edges = _TokenEdges(ends, bos, total)
    cuts = _near_cuts(text, edges, limit, language)
    return np.diff(cuts or balance(_all_edges(text, edges, limit, language), limit)).astype(np.int32)


class _TokenEdges:
    """Converts positions in a text to edges, and back. An edge is a number of tokens from the document's beginning."""

    def __init__(self, ends: np.ndarray, bos: int, total: int) -> None:
        self.ends, self.bos, self.total = ends, bos, total

    def at(self, positions: list[int]) -> list[int]:
        """Return the edges at the positions (ascending, in characters) that lie between two tokens of the text."""
        if not positions or not len(self.ends):
            return []
        after = self.ends.searchsorted(positions, "right")
        between = (self.ends[after - 1] == positions) & (after > 0) & (after < len(self.ends))
        return (after[between] + self.bos).tolist()

    def position(self, edge: int) -> int:
        """Where the text before an edge ends, in characters."""
        tokens = min(edge - self.bos, len(self.ends))
        return int(self.ends[tokens - 1]) if tokens > 0 else 0


def _near_cuts(text: str, edges: _TokenEdges, limit: int, language: str) -> list[int] | None:
    """Return the best cuts at sentence ends into ceil(tokens / limit) samples; None if there is no such division.

    Every division of T tokens into n samples of at most L has its k-th cut between T - (n - k) L and k L: disjoint
    windows. If its sum of squared lengths is T^2 / n + e, its k-th cut is at most sqrt(e k (n - k) / n) from k T / n,
    because the two sides of a cut at x cost at least x^2 / k + (T - x)^2 / (n - k). Sentence ends are therefore
    searched near k T / n, and further away only as far as the e of a division that was found allows.
    """
    total, pieces = edges.total, -(-edges.total // limit)
    found = edges.at(sentence_ends(text, language)) if pieces >= _MANY_PIECES else None
    spread = _FIRST_SPREAD * sqrt(pieces) if found is None else total  # sqrt(e), a guess
    while True:
        windows = _windows(total, pieces, limit, spread)
        near = _edges_within(text, edges, windows, language) if found is None else found
        columns = _columns(near, windows)
        wanted = _achieved_spread(columns, total, limit)
        if wanted is not None and wanted <= spread:
            columns = _columns(near, _windows(total, pieces, limit, wanted))
        elif wanted is not None or spread < total:
            spread = wanted or 8 * spread
            continue
        return _best_path([[0], *columns, [total]], limit)


def _edges_within(text: str, edges: _TokenEdges, windows: list[tuple[int, int]], language: str) -> list[int]:
    """Return the edges at sentence ends in the windows."""
    positions: list[int] = []
    for low, high in windows:
        positions += sentence_ends_between(text, language, edges.position(low), edges.position(high))
    return edges.at(positions)


def _windows(total: int, pieces: int, limit: int, spread: float) -> list[tuple[int, int]]:
    """Return the first and last possible edge of each cut, in a division with e <= spread^2 (see `_near_cuts`)."""
    found = []
    for k in range(1, pieces):
        even, reach = k * total / pieces, spread * sqrt(k * (pieces - k) / pieces)
        low, high = max(total - (pieces - k) * limit, ceil(even - reach)), min(k * limit, floor(even + reach))
        found.append((max(low, 1), min(high, total - 1)))
    return found


def _columns(edges: list[int], windows: list[tuple[int, int]]) -> list[list[int]]:
    """Return the edges in each window."""
    return [edges[bisect_left(edges, low) : bisect_right(edges, high)] for low, high in windows]


def _achieved_spread(columns: list[list[int]], total: int, limit: int) -> float | None:
    """sqrt(e) of the division whose cuts are the edges nearest to the even division; None if it is impossible."""
    pieces = len(columns) + 1
    before, squares = 0, 0
    for k, column in enumerate([*columns, [total]], 1):
        if not column:
            return None
        even = k * total / pieces
        i = bisect_left(column, even)
        edge = min(column[max(0, i - 1) : i + 1], key=lambda place: abs(place - even))
        if edge - before > limit:
            return None
        squares += (edge - before) ** 2
        before = edge
    return sqrt(max(0.0, squares - total * total / pieces)) + 1e-6


def _all_edges(text: str, edges: _TokenEdges, limit: int, language: str) -> list[int]:
    """Return edges at the best kinds of places: sentence ends, and the next kinds only within pieces longer than the limit.

    Ascending, from 0 to the number of tokens, neighbours at most `limit` apart.
    """
    found = np.array([0, edges.total])
    kinds = _edges_by_kind(text, edges, language)
    while (wide := np.flatnonzero(np.diff(found) > limit)).size:
        places = next(kinds)
        first = np.searchsorted(places, found[wide], "right")
        last = np.searchsorted(places, found[wide + 1], "left")
        inside = [places[a:b] for a, b in zip(first, last, strict=True)]
        found = np.sort(np.concatenate([found, *inside]))
    return found.tolist()


def _edges_by_kind(text: str, edges: _TokenEdges, language: str) -> Iterator[np.ndarray]:
    """Yield the edges of each kind, the best first: ends of sentences, clauses, words, characters and tokens."""
    yield np.array(edges.at(sentence_ends(text, language)), dtype=np.int64)
    yield np.array(edges.at(clause_ends(text)), dtype=np.int64)
    yield np.array(edges.at(word_ends(text)), dtype=np.int64)
    yield np.flatnonzero((edges.ends[:-1] < edges.ends[1:]) & (edges.ends[:-1] > 0)) + 1 + edges.bos
    yield np.arange(1, edges.total)


def balance(edges: list[int], limit: int) -> list[int]:
    """Choose the fewest cuts among `edges`, and among those the cuts with the least sum of squared lengths.

    edges: ascending, neighbours at most `limit` apart; the first and the last are kept. Returns the chosen edges.
    """
    left, right = _greedy(edges, limit)
    cuts = _best_path([edges[low : high + 1] for low, high in zip(right, left, strict=True)], limit)
    assert cuts, "neighbours are further apart than the limit"
    return cuts


def _greedy(edges: list[int], limit: int) -> tuple[list[int], list[int]]:
    """Return the indices of the cuts when pieces are filled from the left, and when they are filled from the right."""
    left = [0]
    while left[-1] < len(edges) - 1:
        left.append(bisect_right(edges, edges[left[-1]] + limit) - 1)
    right = [len(edges) - 1]
    while right[-1] > 0:
        right.append(bisect_left(edges, edges[right[-1]] - limit))
    return left, right[::-1]


def _best_path(columns: Sequence[list[int]], limit: int) -> list[int] | None:
    """Return one edge of each column, neighbours at most `limit` apart, with the least sum of squared distances.

    columns: ascending edges, all beyond those of the previous column; the first column has one edge. None if there
    is no path.
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
    """For each edge of `after`, the index of the edge of `before` from which it is reached at the least cost.

    The square of a length grows faster the longer the piece is, so the best index never falls from one edge to the
    next, and neither does the first index within the limit. An edge between two solved ones is therefore tried only
    with the indices between theirs: divide and conquer, n log n steps. Where no edge is within the limit, the index is
    that of an edge beyond it.
    """
    choice = [0] * len(after)
    todo = [(0, len(after), 0, len(before))]
    while todo:
        low, high, first, last = todo.pop()
        if low < high:
            row = (low + high) // 2
            best = _cheapest(before, cost, after[row], limit, first, last)
            choice[row] = best
            todo += [(low, row, first, best + 1), (row + 1, high, best, last)]
    return choice


def _cheapest(before: list[int], cost: list[int], edge: int, limit: int, first: int, last: int) -> int:
    """Return the index in before[first:last] from which `edge` is reached at the least cost; last - 1 if none can be."""
    best, least = last - 1, inf
    for i in range(bisect_left(before, edge - limit, first, last), last):
        total = cost[i] + (edge - before[i]) ** 2
        if total < least:
            best, least = i, total
    return best
