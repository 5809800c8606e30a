"""Finds names in a text; offsets are characters (Unicode code points)."""

import re
from collections.abc import Iterator

import regex

# Scripts without spaces between words, or (Hangul) with suffixes attached to names: a word may end anywhere.
UNSPACED = "".join(
    rf"\p{{{script}}}" for script in ("Thai", "Lao", "Myanmar", "Khmer", "Han", "Hiragana", "Katakana", "Hangul")
)
LETTER = rf"[[\p{{Alnum}}\p{{M}}_]--[{UNSPACED}\u3005-\u3007\u30fc]]"
WITHIN_WORD = regex.compile(rf"(?V1)(?<={LETTER})(?={LETTER})")  # matches between two letters of a script with spaces


def find_name(name: str, text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Return all spans [first, last) of a name in text[start:end], as offsets in `text`, in order, without overlaps.

    White space may differ. If the name does not occur as whole words, it is searched within words.
    """
    words = name.split()
    if not words:
        return []
    pattern, window = re.compile(r"\s++".join(map(re.escape, words))), text[start:end]
    spans = list(occurrences(pattern, window, True)) or list(occurrences(pattern, window, False))
    return [(start + first, start + last) for first, last in spans]


def occurrences(pattern: re.Pattern[str], text: str, whole_words: bool) -> Iterator[tuple[int, int]]:
    place = 0
    while match := pattern.search(text, place):
        first, last = match.span()
        if whole_words and (WITHIN_WORD.match(text, first) or WITHIN_WORD.match(text, last)):
            place = first + 1
            while WITHIN_WORD.match(text, place):
                place += 1
        else:
            yield first, last
            place = last
