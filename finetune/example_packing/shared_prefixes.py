"""Rows that begin alike: instruction rows of one task share template, instruction and schema, often half of a row.

What a token's layers compute depends on the tokens before it alone. So rows of a line that begin with the same tokens
need those only once: the prefix stands before the first of them, and the rest of every such row attends to it as to its
own beginning. Loss and gradient are those of whole rows; the work is that of the tokens that differ. Serving engines
share prefixes of prompts in the same way (SGLang's radix attention); here gradients flow back through them.

example_batches.py lays rows out with it.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Family(NamedTuple):
    """Rows that follow one another in a line, and how many tokens they begin with in common: those stand there once."""

    members: list[int]
    prefix: int


def families(ids: Sequence[np.ndarray], limits: Sequence[int]) -> list[Family]:
    """All rows, those that begin alike together, so that most tokens are saved.

    ids: (tokens,) of each row. limits: how many tokens of each may be shared. Rows are sorted by what they begin with,
    so that those with most in common are neighbours, and divided into runs.
    """
    order = sorted(range(len(ids)), key=lambda row: ids[row][: limits[row]].astype(">u4").tobytes())
    common = [_common(ids[a][: limits[a]], ids[b][: limits[b]]) for a, b in pairwise(order)]
    found = _divided(np.array(common, np.int64))
    return [Family(order[first:last], prefix) for first, last, prefix in found]


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two rows begin with in common."""
    width = min(len(one), len(other))
    equal = one[:width] == other[:width]
    return width if equal.all() else int(equal.argmin())


def _divided(common: np.ndarray) -> list[tuple[int, int, int]]:
    """Sorted rows as families (first, last, prefix) that save the most tokens, by dynamic programming.

    common: (rows - 1,), what each row has in common with the next; of a run of rows it is the least between them.
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
    """The families in lines of at most `capacity` tokens, evenly, as many as ranks divide; a family may be cut in two.

    lengths: of each row. Lines may be empty where there are fewer rows than ranks.
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
