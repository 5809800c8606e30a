"""Cut a text into windows of whole sentences, each within a number of tokens.

The route /extract asks the model about one window at a time. Sentences end where the corpus builder ends them; a
sentence that is longer than a window is cut between clauses, else words, else characters.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable

from sentence_ends.sentence_boundaries import clause_ends, sentence_ends, word_ends

JOINER = "\u200d"  # between emoji that are shown as one
SKIN_TONES = ("\U0001f3fb", "\U0001f3ff")  # first and last of the characters that colour the emoji before them
FIRST_RATE = 0.5  # tokens per character, for the first guess
GUESSES = 4  # of the window's length by the rate, before bisection


def windows(
    text: str, count_tokens: Callable[[str], int], limit: int, usual: int | None = None
) -> list[tuple[int, int]]:
    """Divide a text into windows [start, end) in characters, in order; only white space lies outside of them.

    count_tokens: the number of tokens of a text. No window has more than `limit` tokens, and each takes as many
    sentences as fit, and no second one that would bring it over `usual` characters. Raises ValueError where a single
    character has more than `limit` tokens.
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
    """The position of the first character from `start` on that is no white space, else the text's length."""
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

    rate: tokens per character, by which the end is guessed, so that a window takes three to five calls of count_tokens.
    Returns the index after the window's end in `ends` (`at` where none fits), and the rate of the last window tried.
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
    """Where text[start:end], which has too many tokens, may be cut at the best kind of place it has; `end` is the last.

    Raises ValueError where it is a single character.
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
    """Whether a character that a reader sees (a letter with its marks, joined emoji) would be cut at `at`."""
    here = text[at]
    joined = JOINER in (text[at - 1], here) or SKIN_TONES[0] <= here <= SKIN_TONES[1]
    return joined or unicodedata.category(here)[0] == "M"
