"""Find the places of items in a text, and divide the text into pieces that the same marks cover.

Marks may be nested, overlap each other, or have several fragments. Each mark has a lane, and marks that share
characters have different lanes, so that a page can draw them beside each other.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

Span = tuple[int, int]  # [start, end) in characters
MAX_LANES = 8  # marks that would need more lanes are not drawn
WORD_CHARACTER = re.compile(r"\w")


class Mark(NamedTuple):
    """A mention of an item in a text."""

    spans: tuple[Span, ...]  # fragments, sorted
    outcome: int  # number of the outcome that the mark shows


class Piece(NamedTuple):
    """A piece of a text that the same marks cover."""

    start: int
    end: int
    marks: tuple[tuple[int, Mark], ...]  # (lane, mark) of all marks over the piece, by lane
    ending: tuple[Mark, ...]  # marks whose last fragment ends with the piece


def find_mention(text: str, name: str, taken: set[Span]) -> Span | None:
    """Return the first occurrence of a name that is not in `taken`, if possible as a whole word, else None.

    If all occurrences are taken, return the first one. White space may differ. A name that is longer than the text is
    not searched for.
    """
    words = name.split() if len(name) <= len(text) else []
    if not words:
        return None
    start, end = ("" if not WORD_CHARACTER.match(edge) else r"\b" for edge in (words[0][0], words[-1][-1]))
    pattern = r"\s+".join(map(re.escape, words))
    first = None
    for whole in (f"{start}{pattern}{end}", pattern):
        for found in re.finditer(whole, text):
            if found.span() not in taken:
                return found.span()
            first = first or found.span()
    return first


def drawn_marks(marks: Sequence[Mark]) -> list[tuple[int, Mark]]:
    """Return (lane, mark) of each mark that is drawn, by position; longer marks come first and get lower lanes."""
    ends: list[int] = []  # lane -> end of its last mark
    placed = []
    for mark in sorted(marks, key=lambda mark: (mark.spans[0][0], mark.spans[0][0] - mark.spans[-1][1], mark.outcome)):
        lane = next((at for at, end in enumerate(ends) if end <= mark.spans[0][0]), len(ends))
        if lane == MAX_LANES:
            continue
        ends[lane:] = [mark.spans[-1][1], *ends[lane + 1 :]]
        placed.append((lane, mark))
    return placed


def text_pieces(length: int, marks: Sequence[Mark]) -> list[Piece]:
    """Return the pieces of a text of `length` characters; marks: with spans inside the text."""
    placed = drawn_marks(marks)
    bounds = sorted({0, length, *(place for _, mark in placed for span in mark.spans for place in span)})
    starting: dict[int, list[tuple[int, Mark]]] = {}
    stopping: dict[int, list[tuple[int, Mark]]] = {}
    for lane, mark in placed:
        for start, end in mark.spans:
            starting.setdefault(start, []).append((lane, mark))
            stopping.setdefault(end, []).append((lane, mark))
    active: dict[int, Mark] = {}
    pieces = []
    for start, end in pairwise(bounds):
        for lane, mark in stopping.get(start, ()):
            if active.get(lane) is mark:
                del active[lane]
        active |= dict(starting.get(start, ()))
        ending = tuple(mark for _, mark in stopping.get(end, ()) if mark.spans[-1][1] == end)
        pieces.append(Piece(start, end, tuple(sorted(active.items())), ending))
    return pieces
