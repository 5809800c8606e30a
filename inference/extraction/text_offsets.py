"""Finds names in a text; offsets are characters (Unicode code points)."""

import re
import unicodedata
from collections.abc import Iterator

# Scripts without spaces between words, or (Hangul) with suffixes attached to names: a word may end anywhere.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Myanmar, Khmer
    "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han, Hiragana, Katakana
    "\u1100-\u11ff\uac00-\ud7ff]"  # Hangul
)


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
        if whole_words and (is_within_word(text, first) or is_within_word(text, last)):
            place = first + 1
            while is_within_word(text, place):
                place += 1
        else:
            yield first, last
            place = last


def is_within_word(text: str, place: int) -> bool:
    """Return whether a position lies inside a word of a script with spaces between words."""
    return 0 < place < len(text) and is_spaced_letter(text[place - 1]) and is_spaced_letter(text[place])


def is_spaced_letter(character: str) -> bool:
    if UNSPACED.match(character):
        return False
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"
