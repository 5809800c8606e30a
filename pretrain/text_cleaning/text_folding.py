"""Fold spellings that hide a word: full-width and traditional characters, and separators between single letters."""

import re
import unicodedata
from functools import cache

from opencc import OpenCC

# A text is normalised to NFKC only if it has one of these characters: zero-width characters, which are removed, or
# circled, full-width and mathematical letters and digits or the ideographic space U+3000, which NFKC replaces.
# Full-width punctuation is not among them, so most Chinese text is not normalised.
_ZERO_WIDTH = "\u00ad\u200b-\u200f\u2060\ufeff"
_COMPATIBLE = "\u2460-\u24ff\u3000\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\U0001d400-\U0001d7ff"
_UNUSUAL = re.compile(f"[{_ZERO_WIDTH}{_COMPATIBLE}]")
_REMOVED = re.compile(f"[{_ZERO_WIDTH}]+")
# A word with separators: four or more single letters or digits with the same separator between all of them, or three or
# more Chinese characters with any separators.
_LETTER = r"[^\W_]"  # or a digit
_MARKS = r" .*_\-+~|/\\·•・★☆●◆"
_SEPARATED = re.compile(
    rf"(?<!{_LETTER}){_LETTER}([{_MARKS}]){_LETTER}(?!{_LETTER})(?:\1{_LETTER}(?!{_LETTER})){{2,}}+"
    rf"|[一-鿿](?:[{_MARKS}][一-鿿](?![一-鿿])){{2,}}+"
)
# A fast test: every text with a separated word matches one of these patterns, and few other texts do. The space has a
# pattern of its own, since `re` searches fastest for a pattern that begins with a fixed character.
_MAY_BE_SEPARATED = tuple(
    re.compile(rf"{mark}(?:{_LETTER}[{_MARKS}]{_LETTER}[{_MARKS}]{_LETTER}(?!{_LETTER})|[一-鿿][{_MARKS}][一-鿿])")
    for mark in (" ", f"[{_MARKS[1:]}]")
)
_ANY_MARKS = re.compile(f"[{_MARKS}]+")
JOINED = "\0"  # stands before a joined word that is not a number


@cache
def _converter() -> OpenCC:
    return OpenCC("t2s")


def fold(text: str) -> str:
    """Return the text in lower case and in simplified characters, without zero-width characters.

    Unusual letters and digits are replaced (NFKC). Separated words are joined, with JOINED before each that is not a
    number.
    """
    text = text.lower()
    if not text.isascii():
        if _UNUSUAL.search(text):
            text = unicodedata.normalize("NFKC", _REMOVED.sub("", text)).lower()
        text = _converter().convert(text)
    if any(pattern.search(text) for pattern in _MAY_BE_SEPARATED):
        text = _SEPARATED.sub(_join, text)
    return text


def _join(match: re.Match[str]) -> str:
    """Return a word without its separators, with JOINED before it unless it is a number."""
    word = _ANY_MARKS.sub("", match.group())
    return word if word.isdigit() else JOINED + word
