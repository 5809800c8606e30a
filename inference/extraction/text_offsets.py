"""Finds names in a text; offsets are characters (Unicode code points).

Names and text come from users, so no regular expression is built from them.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

# Scripts without spaces between words, or (Hangul) with suffixes attached to names: a word may end anywhere.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Myanmar, Khmer
    "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han, Hiragana, Katakana
    "\u1100-\u11ff\uac00-\ud7ff]"  # Hangul
)
SPACES = re.compile(r"\s+")


def find_name(name: str, text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Return all spans [first, last) of a name in text[start:end], as offsets in `text`, in order, without overlaps.

    These searches are tried in order until one finds the name: as whole words; as whole words with other white space;
    within words; within words with other white space.
    """
    name, window = name.strip(), text[start:end]
    for whole_words in (True, False):
        for search in (find_exact, find_respaced):
            found = search(name, window, whole_words)
            if found:
                return [(start + first, start + last) for first, last in found]
    return []


def find_exact(name: str, text: str, whole_words: bool) -> list[tuple[int, int]]:
    return [(at, at + len(name)) for at in occurrences(name, text, whole_words)] if name else []


def find_respaced(name: str, text: str, whole_words: bool) -> list[tuple[int, int]]:
    """Find a name that contains white space; each run of white space is treated as one space."""
    if not SPACES.search(name):
        return []
    runs = [run.span() for run in SPACES.finditer(text)]
    removed = [0, *accumulate(last - first - 1 for first, last in runs)]  # characters, before each run and in total
    run_ends = [last - removed[i + 1] for i, (_, last) in enumerate(runs)]  # positions in the text with single spaces

    def original(at: int) -> int:
        return at + removed[bisect_right(run_ends, at)]

    found = find_exact(SPACES.sub(" ", name), SPACES.sub(" ", text), whole_words)
    return [(original(first), original(last)) for first, last in found]


def occurrences(name: str, text: str, whole_words: bool) -> Iterator[int]:
    at = text.find(name)
    while at >= 0:
        after = at + len(name)
        if whole_words and (is_within_word(text, at) or is_within_word(text, after)):
            after = at + 1
            while is_within_word(text, after):
                after += 1
        else:
            yield at
        at = text.find(name, after)


def is_within_word(text: str, at: int) -> bool:
    """Return whether a position lies inside a word of a script with spaces between words."""
    return 0 < at < len(text) and is_spaced_letter(text[at - 1]) and is_spaced_letter(text[at])


def is_spaced_letter(character: str) -> bool:
    if UNSPACED.match(character):
        return False
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"
