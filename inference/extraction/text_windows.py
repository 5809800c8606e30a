"""Splits a text into windows of whole sentences, each within a number of tokens.

A sentence that is too long by itself is split between clauses, else words, else characters.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable

CLOSE = r"[\"'”’」』）】)\]]*+"
# Chinese stops, unless a comma follows; others before a space or Chinese; new lines. Each has the space behind with it.
STOP = re.compile(
    rf"[。！？][。！？!?…]*+{CLOSE}(?![，、；：》,;:])\s*+"
    rf"|(?P<western>[.!?…]++){CLOSE}(?:\s++|(?=[\u3400-\u9fff])|\Z)"
    r"|\n\s*+"
)
CLAUSE = re.compile(rf"(?:[，、；：]|[,;:](?=\s)){CLOSE}\s*+")
SPACE = re.compile(r"\s++")
LETTER = r"[^\W\d_\u3400-\u9fff]"
WORD = re.compile(rf"(?<!{LETTER})(?:{LETTER}\.)*{LETTER}+\Z")  # before a full stop: Dr, U.S
LIST_NUMBER = re.compile(r"\n[^\S\n]*\d{1,3}\Z")  # 12. at the beginning of a line
LOOKED_AT = 20  # characters before a full stop
# Words whose full stop ends no sentence, and words that it does not end before a number (No. 5, Jan. 3).
SHORT = re.compile(
    "mr|mrs|ms|dr|st|mt|jr|sr|prof|gen|col|capt|lt|sgt|gov|sen|rep|rev|hon|inc|ltd|co|corp|vs|cf|al|figs?",
    re.IGNORECASE,
)
NUMBERED = re.compile("nos?|vol|ch|pp|sec|eq|art|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec", re.IGNORECASE)
JOINER = "\u200d"  # between emoji that are displayed as one
SKIN_TONES = ("\U0001f3fb", "\U0001f3ff")  # first and last of the characters that colour the emoji before them
USUAL_RATE = 0.5  # tokens per character, for the first estimate
ESTIMATES = 4  # before the search for the longest window becomes a bisection


def windows(text: str, length_of: Callable[[str], int], limit: int, usual: int | None = None) -> list[tuple[int, int]]:
    """Return the windows [start, end) of a text, in order; text outside of them is white space, and none is empty.

    length_of: tokens of a text. A window has at most `limit` tokens and takes as many sentences as fit, but no second
    sentence that exceeds `usual` characters. Raises ValueError if the limit does not hold a single character.
    """
    ends = sentence_ends(text)
    found = []
    start = len(text) - len(text.lstrip())
    at = bisect_right(ends, start)  # the first sentence end after the start
    rate = USUAL_RATE
    while at < len(ends):
        last = len(ends) if usual is None else max(at + 1, bisect_right(ends, start + usual))
        following, rate = longest_window(text, start, ends, at, last, length_of, limit, rate)
        if following == at:
            ends[at : at + 1] = finer_ends(text, start, ends[at], limit)
            continue
        end = ends[following - 1]
        found.append((start, start + len(text[start:end].rstrip())))
        start, at = end, following
    return found


def longest_window(
    text: str, start: int, ends: list[int], at: int, last: int, length_of: Callable[[str], int], limit: int, rate: float
) -> tuple[int, float]:
    """Return the index after the last of ends[at:last] to which a window fits, and the tokens per character.

    The position of the limit is estimated by the rate, so a window takes three to five calls of length_of.
    """
    fits, too_long = at, last + 1
    tries = 0
    while too_long - fits > 1:
        tries += 1
        guess = bisect_right(ends, start + limit / rate)
        if tries > ESTIMATES:
            guess = min((fits + too_long) // 2, fits + 2**tries)
        guess = min(max(guess, fits + 1), too_long - 1)
        window = text[start : ends[guess - 1]].rstrip()
        length = length_of(window)
        rate = max(length, 1) / len(window)
        if length <= limit:
            fits = guess
        else:
            too_long = guess
    return fits, rate


def sentence_ends(text: str) -> list[int]:
    """Where sentences end, ascending, behind the white space that follows them; the end of the text is the last."""
    ends = [stop.end() for stop in STOP.finditer(text) if ends_sentence(text, stop)]
    return ends if ends[-1:] == [len(text)] else [*ends, len(text)]


def ends_sentence(text: str, stop: re.Match[str]) -> bool:
    """Whether a sentence ends at what STOP found: not at abbreviations, initials, numbers, nor before small letters."""
    if stop["western"] is None or "\n" in stop[0] or stop.end() == len(text):
        return True
    mark, after = stop["western"], text[stop.end()]
    if after.islower() or after in ".!?,;:)]":
        return False
    before = text[max(stop.start() - LOOKED_AT, 0) : stop.start()]
    chinese_at_once = not stop[0][-1].isspace()
    if chinese_at_once and mark[-1] not in "!?" and not (mark == "." and before[-1:].isalpha()):  # 1.打开, 我…我
        return False
    if mark != ".":
        return True
    if LIST_NUMBER.search(before if stop.start() > LOOKED_AT else f"\n{before}"):
        return False
    word = WORD.search(before)
    if word is None:
        return True
    short = "." in word[0] or len(word[0]) == 1 or SHORT.fullmatch(word[0])
    return not short and not (after.isdigit() and NUMBERED.fullmatch(word[0]))


def finer_ends(text: str, start: int, end: int, limit: int) -> list[int]:
    """Return positions at which text[start:end], which is too long, may be split; the last is `end`.

    They are the ends of clauses, else of words, else of characters. Raises ValueError for a single character.
    """
    last = start + len(text[start:end].rstrip())
    kinds: tuple[Iterable[int], ...] = (
        (clause.end() for clause in CLAUSE.finditer(text, start, last)),
        (space.end() for space in SPACE.finditer(text, start, last)),
        (at for at in range(start + 1, last) if not is_within_character(text, at)),
        range(start + 1, last),
    )
    for positions in kinds:
        cuts = [position for position in positions if position < last]
        if cuts:
            return [*cuts, end]
    raise ValueError(f"{limit} tokens do not hold the character {text[start]!r}; increase the context")


def is_within_character(text: str, at: int) -> bool:
    """Whether a position is within a visible character: before a combining mark, or within joined emoji."""
    here = text[at]
    joined = JOINER in (text[at - 1], here) or SKIN_TONES[0] <= here <= SKIN_TONES[1]
    return joined or unicodedata.category(here)[0] == "M"
