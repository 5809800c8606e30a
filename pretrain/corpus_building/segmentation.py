"""Cut a document's tokens into the fewest samples of whole sentences, with lengths as equal as possible.

The document is encoded once and cut between tokens at sentence ends, so that the concatenated samples are exactly its
tokens. Greedy filling gives the number of samples. In every division into this number of samples, the k-th cut lies
between the k-th cuts of greedy filling from the right and from the left. These windows are disjoint, so dynamic
programming over them finds the division with the least sum of squared lengths and visits each possible cut once. In
most documents narrower windows are known beforehand (`_near_cuts`), and only the text in them is searched for sentence
ends.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from math import ceil, floor, inf, sqrt

import numpy as np
from sentence_ends.sentence_boundaries import clause_ends, sentence_ends, sentence_ends_between, word_ends

_FIRST_DEVIATION = 16  # tokens; sentence ends are first searched this close to the even division
_MANY_PIECES = 16  # samples from which on the whole text is searched once, since each window may have to search it


def sample_lengths(
    text: str, ends: np.ndarray, limit: int, language: str = "auto", bos: int = 1, eos: int = 1
) -> np.ndarray:
    """Return the number of tokens of each sample of a document: (samples,) int32.

    The document has bos + len(ends) + eos tokens; a sentence longer than the limit is cut between clauses, else words,
    else characters, else bytes. ends: (tokens,), the end of each token in the text, in characters; tokens that share a
    character have the same end. limit: most tokens of a sample. bos, eos: 1 if the document has that token, else 0.
    """
    total = bos + len(ends) + eos
    if total <= limit:
        return np.array([total], dtype=np.int32)
    edges = _TokenEdges(ends, bos, total)
    cuts = _near_cuts(text, edges, limit, language)
    return np.diff(cuts or balance(_all_edges(text, edges, limit, language), limit)).astype(np.int32)


class _TokenEdges:
    """Converts positions in a text, in characters, to edges and back; an edge is a token offset in the document."""

    def __init__(self, ends: np.ndarray, bos: int, total: int) -> None:
        self.ends, self.bos, self.total = ends, bos, total

    def edges_at(self, positions: list[int]) -> list[int]:
        """Return the edges of those positions (ascending, in characters) that lie between two tokens of the text."""
        if not positions or not len(self.ends):
            return []
        after = self.ends.searchsorted(positions, "right")
        between = (self.ends[after - 1] == positions) & (after > 0) & (after < len(self.ends))
        return (after[between] + self.bos).tolist()

    def position(self, edge: int) -> int:
        """Return the position of an edge in the text, in characters."""
        tokens = min(edge - self.bos, len(self.ends))
        return int(self.ends[tokens - 1]) if tokens > 0 else 0


def _near_cuts(text: str, edges: _TokenEdges, limit: int, language: str) -> list[int] | None:
    """Return the best cuts at sentence ends into ceil(tokens / limit) samples; None if there is no such division.

    In every division of T tokens into n samples of at most L tokens, the k-th cut lies between T - (n - k) L and k L;
    these windows are disjoint. If the sum of squared lengths is T^2 / n + e, the k-th cut is at most
    sqrt(e k (n - k) / n) from k T / n, because the two sides of a cut at x contribute at least
    x^2 / k + (T - x)^2 / (n - k). Sentence ends are therefore searched near k T / n first; e of the division found
    there bounds how far the best cuts can be from k T / n.
    """
    total, pieces = edges.total, -(-edges.total // limit)
    found = edges.edges_at(sentence_ends(text, language)) if pieces >= _MANY_PIECES else None
    deviation = _FIRST_DEVIATION * sqrt(pieces) if found is None else total  # a first estimate of sqrt(e)
    while True:
        windows = _windows(total, pieces, limit, deviation)
        near = _edges_within(text, edges, windows, language) if found is None else found
        columns = _columns(near, windows)
        wanted = _deviation_of_nearest_cuts(columns, total, limit)
        if wanted is not None and wanted <= deviation:
            columns = _columns(near, _windows(total, pieces, limit, wanted))
        elif wanted is not None or deviation < total:
            deviation = wanted or 8 * deviation
            continue
        return _best_path([[0], *columns, [total]], limit)


def _edges_within(text: str, edges: _TokenEdges, windows: list[tuple[int, int]], language: str) -> list[int]:
    """Return the edges at sentence ends within the windows."""
    positions: list[int] = []
    for low, high in windows:
        positions += sentence_ends_between(text, language, edges.position(low), edges.position(high))
    return edges.edges_at(positions)


def _windows(total: int, pieces: int, limit: int, deviation: float) -> list[tuple[int, int]]:
    """Return the first and last possible edge of each cut, in a division with e <= deviation^2 (see `_near_cuts`)."""
    found = []
    for k in range(1, pieces):
        even, reach = k * total / pieces, deviation * sqrt(k * (pieces - k) / pieces)
        low, high = max(total - (pieces - k) * limit, ceil(even - reach)), min(k * limit, floor(even + reach))
        found.append((max(low, 1), min(high, total - 1)))
    return found


def _columns(edges: list[int], windows: list[tuple[int, int]]) -> list[list[int]]:
    """Return the edges in each window."""
    return [edges[bisect_left(edges, low) : bisect_right(edges, high)] for low, high in windows]


def _deviation_of_nearest_cuts(columns: list[list[int]], total: int, limit: int) -> float | None:
    """Return sqrt(e) of the division at the edges nearest to the even division; None if there is none.

    See `_near_cuts`. columns: the possible edges of each cut.
    """
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
    """Return possible cuts: sentence ends, and edges of the next kind only within pieces longer than the limit.

    The edges ascend from 0 to the number of tokens; neighbours are at most `limit` apart.
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
    """Yield the edges of each kind, best kind first: ends of sentences, clauses, words, characters and tokens."""
    yield np.array(edges.edges_at(sentence_ends(text, language)), dtype=np.int64)
    yield np.array(edges.edges_at(clause_ends(text)), dtype=np.int64)
    yield np.array(edges.edges_at(word_ends(text)), dtype=np.int64)
    yield np.flatnonzero((edges.ends[:-1] < edges.ends[1:]) & (edges.ends[:-1] > 0)) + 1 + edges.bos
    yield np.arange(1, edges.total)


def balance(edges: list[int], limit: int) -> list[int]:
    """Return the division at `edges` with the fewest pieces, and among these the least sum of squared lengths.

    edges: ascending, neighbours at most `limit` apart; the result includes the first and the last.
    """
    left, right = _greedy(edges, limit)
    cuts = _best_path([edges[low : high + 1] for low, high in zip(right, left, strict=True)], limit)
    assert cuts, "neighbours are further apart than the limit"
    return cuts


def _greedy(edges: list[int], limit: int) -> tuple[list[int], list[int]]:
    """Return the indices of the cuts of greedy filling from the left and of filling from the right, both ascending."""
    left = [0]
    while left[-1] < len(edges) - 1:
        left.append(bisect_right(edges, edges[left[-1]] + limit) - 1)
    right = [len(edges) - 1]
    while right[-1] > 0:
        right.append(bisect_left(edges, edges[right[-1]] - limit))
    return left, right[::-1]


def _best_path(columns: Sequence[list[int]], limit: int) -> list[int] | None:
    """Return one edge of each column, neighbours at most `limit` apart, with the least sum of squared distances.

    Returns None if there is no such path. columns: ascending edges, all greater than those of the previous column; the
    first and the last column have one edge.
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
    """Return for each edge of `after` the index of its best predecessor in `before`.

    The square of a length is convex, so the best index never decreases from one edge to the next, and neither does the
    first index within the limit. For an edge between two solved edges, only the indices between theirs are tried:
    divide and conquer in n log n steps. If no predecessor is within the limit, an index outside the limit is returned.
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
    """Return the index of the best predecessor of `edge` in before[first:last]; last - 1 if none is within `limit`."""
    best, least = last - 1, inf
    for i in range(bisect_left(before, edge - limit, first, last), last):
        total = cost[i] + (edge - before[i]) ** 2
        if total < least:
            best, least = i, total
    return best
