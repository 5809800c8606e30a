"""Shared prefixes: rows of one task begin with the same template, instruction and schema, which are computed once.

The hidden states of a token depend on the tokens before it only. So rows of a line that begin with the same tokens need
these once: the prefix precedes the first of them, and the rest of each row attends to the prefix and to itself. Loss
and gradient equal those of whole rows. Of rows that ie_build.py makes of CrossNER, 39 % of the tokens are saved, of
IEPile's 29 %, at 128 rows a step. Serving engines share prefixes of prompts in the same way (SGLang's radix attention).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Family(NamedTuple):
    """Consecutive rows of a line, and the number of their common first tokens, which the line holds once."""

    members: list[int]
    prefix: int


def families(ids: Sequence[np.ndarray], limits: Sequence[int]) -> list[Family]:
    """All rows, divided into families that save the most tokens.

    ids: (tokens,) of each row. limits: how many tokens of each may be shared. Rows are sorted by their ids, so that
    rows with long common prefixes are neighbours, and divided into runs.
    """
    order = sorted(range(len(ids)), key=lambda row: ids[row][: limits[row]].astype(">u4").tobytes())
    common = [_common(ids[a][: limits[a]], ids[b][: limits[b]]) for a, b in pairwise(order)]
    found = _divided(np.array(common, np.int64))
    return [Family(order[first:last], prefix) for first, last, prefix in found]


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """The number of common first tokens of two rows."""
    width = min(len(one), len(other))
    equal = one[:width] == other[:width]
    return width if equal.all() else int(equal.argmin())


def _divided(common: np.ndarray) -> list[tuple[int, int, int]]:
    """The division of sorted rows into families (first, last, prefix) that saves most tokens, by dynamic programming.

    common: (rows - 1,), the common first tokens of each row and the next; of a run of rows, the least of them.
    """
    rows = len(common) + 1
    saved, start, prefix = (np.zeros(rows + 1, np.int64) for _ in range(3))  # of the best division of the first n rows
    least = np.zeros(rows, np.int64)  # what the rows from each one up to the last that was looked at have in common
    for last in range(1, rows + 1):
        if last > 1:
            least[last - 2] = common[last - 2]
            np.minimum(least[: last - 1], common[last - 2], out=least[: last - 1])
        gain = saved[:last] + least[:last] * np.arange(last - 1, -1, -1)
        start[last] = best = int(gain.argmax())
        saved[last], prefix[last] = gain[best], least[best] if best < last - 1 else 0
    found, last = [], rows
    while last:
        found.append((int(start[last]), last, int(prefix[last])))
        last = int(start[last])
    return found[::-1]


def lines(found: Sequence[Family], lengths: Sequence[int], capacity: int, ranks: int) -> list[list[Family]]:
    """The families in evenly filled lines of at most `capacity` tokens; a family may continue in the next line.

    lengths: of each row. The number of lines is a multiple of `ranks`; with fewer rows than ranks some are empty.
    """
    fewest = -(-len(list(_fill(found, lengths, capacity))) // ranks) * ranks
    low, high = max(lengths), capacity
    while low < high:  # the least width at which that many lines do: so they are filled evenly
        middle = (low + high) // 2
        if len(list(_fill(found, lengths, middle))) <= fewest:
            high = middle
        else:
            low = middle + 1
    filled = list(_fill(found, lengths, high))
    return filled + [[] for _ in range(fewest - len(filled))]


def _fill(found: Sequence[Family], lengths: Sequence[int], width: int) -> Iterator[list[Family]]:
    """Lines of at most `width` tokens, filled in order."""
    line: list[Family] = []
    load = 0
    for members, prefix in found:
        open_family = False
        for row in members:
            add = lengths[row] - prefix * open_family
            if line and load + add > width:
                yield [Family(rows, shared if len(rows) > 1 else 0) for rows, shared in line]
                line, load, open_family, add = [], 0, False, lengths[row]
            if open_family:
                line[-1].members.append(row)
            else:
                line.append(Family([row], prefix))
            load, open_family = load + add, True
    if line:
        yield [Family(rows, shared if len(rows) > 1 else 0) for rows, shared in line]
