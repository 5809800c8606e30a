"""Compare literals of a graph with dates and numbers of a text by value, not by spelling.

The keys of a literal are its possible values: "d 2019-11-20" (date), "n 30000" (number), "n 165 cm" (number with unit).
A literal of a graph occurs where a text has a date or number with one of its keys.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from literal_values.date_values import find_dates
from literal_values.number_values import find_numbers

FULL_WIDTH = str.maketrans("０１２３４５６７８９．％－", "0123456789.%-")
_FULL_WIDTH = re.compile("[０-９．％－]")
_MAY_BE_DATE = re.compile(r"[0-9]{4}|年|[Bb]\.?[Cc]")  # every date contains one of these
LONGEST_LITERAL = 80  # characters of a literal in a graph


class LiteralMention(NamedTuple):
    """A date or number in a text: [start, end) in characters, and its keys."""

    start: int
    end: int
    keys: frozenset[str]


def find_literals(text: str, with_numbers: bool = True) -> list[LiteralMention]:
    """Return the dates and, on request, the numbers of a text, by position; numbers within a date are not listed.

    A date with a day or month is listed a second time as its year. A bare 1879 has the keys of a year and of a number.
    """
    if _FULL_WIDTH.search(text):
        text = text.translate(FULL_WIDTH)
    if not with_numbers and not _MAY_BE_DATE.search(text):
        return []
    found, bare_years, within_date = list[LiteralMention](), dict[int, int](), bytearray(len(text))  # 1: in a date
    for start, end, value, is_part in find_dates(text):
        if not is_part and text[start:end].isdecimal():
            bare_years[start] = len(found)
        else:
            within_date[start:end] = b"\1" * (end - start)
        found.append(LiteralMention(start, end, frozenset([f"d {value}"])))
    for start, end, value, unit in find_numbers(text) if with_numbers else ():
        keys = frozenset([f"n {value}", *([f"n {value} {unit}"] if unit else [])])
        year = bare_years.get(start)
        if year is not None and found[year].end == end:
            found[year] = LiteralMention(start, end, found[year].keys | keys)
        elif not (within_date[start] or within_date[end - 1]):
            found.append(LiteralMention(start, end, keys))
    return sorted(found, key=lambda one: (one.start, one.end))


@lru_cache(1 << 16)
def literal_keys(literal: str) -> frozenset[str]:
    """Return the keys of a graph's literal, or an empty set if the whole literal is not a date or a number.

    Accepts quotation marks and a datatype or language as in N-Triples ("30000"^^<…#integer>), and Wikidata's form
    +2019-11-20T00:00:00Z. A number with a unit has only the key with the unit.
    """
    text = literal_text(literal).translate(FULL_WIDTH)
    if not text or len(text) > LONGEST_LITERAL:
        return frozenset()
    text = text.removeprefix("+")
    keys = {key for one in find_literals(text) if (one.start, one.end) == (0, len(text)) for key in one.keys}
    with_unit = {key for key in keys if key.count(" ") == 2}
    return frozenset(with_unit or keys)


def literal_text(literal: str) -> str:
    """Return a literal without the quotation marks, datatype and language of N-Triples."""
    if literal.startswith('"') and (end := literal.rfind('"')) > 0:
        return literal[1:end].strip()
    return literal.strip()


def is_date(keys: frozenset[str]) -> bool:
    """Return whether a literal with these keys is a date; a bare year is one."""
    return any(key.startswith("d ") for key in keys)
