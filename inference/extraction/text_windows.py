"""Split a text into windows of whole sentences, each within a token limit.

The route /extract asks the model about one window at a time. Sentence ends are those of the corpus builder
(sentence_ends/); a sentence that is longer than a window is split between clauses, else words, else characters.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable

from sentence_ends.sentence_boundaries import clause_ends, sentence_ends, word_ends

JOINER = "\u200d"  # between emoji that are shown as one
SKIN_TONES = ("\U0001f3fb", "\U0001f3ff")  # first and last of the characters that colour the emoji before them
FIRST_RATE = 0.5  # tokens per character, initial estimate
GUESSES = 4  # estimates of a window's length from the rate, before bisection


def windows(
    text: str, count_tokens: Callable[[str], int], limit: int, usual: int | None = None
) -> list[tuple[int, int]]:
    """Return the windows [start, end) of a text in characters, in order; only white space lies outside of them.

    count_tokens: returns the number of tokens of a text. A window takes as many whole sentences as fit into `limit`
    tokens and `usual` characters; its first sentence may exceed `usual`. Raises ValueError if a single character has
    more than `limit` tokens.
    """
    ends = sentence_ends(text)
    if ends[-1:] != [len(text)]:
        ends.append(len(text))
    found: list[tuple[int, int]] = []
    start = _skip_space(text, 0)
    rate = FIRST_RATE
    while (at := bisect_right(ends, start)) < len(ends):  # ends[at] is the first end after the start
        most = len(ends) if usual is None else max(at + 1, bisect_right(ends, start + usual))
        after, rate = _longest_window(text, start, ends, at, most, count_tokens, limit, rate)
        if after == at:
            ends[at : at + 1] = _finer_ends(text, start, ends[at], limit)
            continue
        end = ends[after - 1]
        found.append((start, start + len(text[start:end].rstrip())))
        start = _skip_space(text, end)
    return found


def _skip_space(text: str, start: int) -> int:
    """Return the position of the first non-space character at or after `start`, else the text's length."""
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _longest_window(
    text: str,
    start: int,
    ends: list[int],
    at: int,
    most: int,
    count_tokens: Callable[[str], int],
    limit: int,
    rate: float,
) -> tuple[int, float]:
    """Find the longest window from `start` to one of ends[at:most] that has at most `limit` tokens.

    rate: estimated tokens per character, from which the end is guessed; a window takes three to five calls of
    count_tokens. Returns the index after the window's end in `ends` (`at` if none fits), and the tokens per character
    of the last window tried.
    """
    fits, too_long = at, most + 1
    tries = 0
    while too_long - fits > 1:
        tries += 1
        guess = bisect_right(ends, start + limit / rate)
        if tries > GUESSES:
            guess = min((fits + too_long) // 2, fits + 2**tries)
        guess = min(max(guess, fits + 1), too_long - 1)
        window = text[start : ends[guess - 1]].rstrip()
        tokens = count_tokens(window)
        rate = max(tokens, 1) / len(window)
        if tokens <= limit:
            fits = guess
        else:
            too_long = guess
    return fits, rate


def _finer_ends(text: str, start: int, end: int, limit: int) -> list[int]:
    """Return the positions at which text[start:end], which has too many tokens, can be split; the last one is `end`.

    The positions are the clause ends, else the word ends, else the boundaries of grapheme clusters, else of code
    points. Raises ValueError if text[start:end] is a single code point.
    """
    sentence = text[start:end].rstrip()
    kinds: tuple[Callable[[], Iterable[int]], ...] = (
        lambda: clause_ends(sentence),
        lambda: word_ends(sentence),
        lambda: (at for at in range(1, len(sentence)) if not inside_character(sentence, at)),
        lambda: range(1, len(sentence)),
    )
    for find in kinds:
        if cuts := [start + place for place in find() if place < len(sentence)]:
            return [*cuts, end]
    raise ValueError(f"{limit} tokens do not hold the character {text[start]!r}; a larger context is needed")


def inside_character(text: str, at: int) -> bool:
    """Return whether position `at` lies inside a grapheme cluster (a letter with its marks, joined emoji)."""
    here = text[at]
    joined = JOINER in (text[at - 1], here) or SKIN_TONES[0] <= here <= SKIN_TONES[1]
    return joined or unicodedata.category(here)[0] == "M"
