"""Where names stand in a text, in characters (Unicode code points).

the route /extract is made of it. Names and text may be anybody's, so no pattern is built of them.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

# Scripts that put no space between words, or (Hangul) endings right behind a name: any place may be a word's.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Myanmar, Khmer
    "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han, Hiragana, Katakana
    "\u1100-\u11ff\uac00-\ud7ff]"  # Hangul
)
SPACES = re.compile(r"\s+")


def find(name: str, text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """All places [first, last) of a name in text[start:end], in order and apart from each other; [] for none.

    They are the first of these that there are: the name as words of its own, the same with other white space between
    them, the name as a part of words, the same with other white space.
    """
    name, within = name.strip(), text[start:end]
    for whole in (True, False):
        for look in (spans, respaced):
            places = look(name, within, whole)
            if places:
                return [(start + first, start + last) for first, last in places]
    return []


def spans(name: str, text: str, whole: bool) -> list[tuple[int, int]]:
    """The places of exactly this name; whole: only those that are no part of longer words."""
    return [(at, at + len(name)) for at in starts(name, text, whole)] if name else []


def respaced(name: str, text: str, whole: bool) -> list[tuple[int, int]]:
    """The places of a name with white space in it, where each run of white space counts as one space."""
    if not SPACES.search(name):
        return []
    runs = [run.span() for run in SPACES.finditer(text)]
    left_out = [0, *accumulate(last - first - 1 for first, last in runs)]  # characters, before each run and after all
    ends = [last - left_out[i + 1] for i, (_, last) in enumerate(runs)]  # of the runs, once each is one space

    def place(at: int) -> int:
        return at + left_out[bisect_right(ends, at)]

    found = spans(SPACES.sub(" ", name), SPACES.sub(" ", text), whole)
    return [(place(first), place(last)) for first, last in found]


def starts(name: str, text: str, whole: bool) -> Iterator[int]:
    at = text.find(name)
    while at >= 0:
        after = at + len(name)
        if whole and (inside_word(text, at) or inside_word(text, after)):
            after = at + 1
            while inside_word(text, after):
                after += 1
        else:
            yield at
        at = text.find(name, after)


def inside_word(text: str, at: int) -> bool:
    """Whether the characters on both sides of a place belong to one word, of a script with spaces between words."""
    return 0 < at < len(text) and of_spaced_word(text[at - 1]) and of_spaced_word(text[at])


def of_spaced_word(character: str) -> bool:
    if UNSPACED.match(character):
        return False
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"
