"""Split a text into windows of whole sentences, each within a token limit.

The route /extract asks the model about one window at a time. Sentence ends are those of the corpus builder
(sentence_ends/); a sentence that is longer than a window is split between clauses, else words, else characters.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence

import regex
from sentence_ends.sentence_boundaries import clause_ends, sentence_ends, word_ends


def split_into_windows(
    text: str, token_starts: Sequence[int], max_tokens: int, usual_characters: int | None = None
) -> list[tuple[int, int]]:
    """Return the windows [start, end) of a text, in characters and in order; they leave out only white space.

    token_starts: offset of each token of the whole text (a window that is tokenised alone can have a few more). A
    window has as many whole sentences as fit into `max_tokens` tokens and `usual_characters` characters; its first
    sentence may exceed `usual_characters`. Raises ValueError if a single character has more than `max_tokens` tokens.
    """
    ends = sentence_ends(text)
    if ends[-1:] != [len(text)]:
        ends.append(len(text))
    windows: list[tuple[int, int]] = []
    start = _skip_space(text, 0)
    while (first := bisect_right(ends, start)) < len(ends):  # index of the first end after the start
        token = bisect_left(token_starts, start) + max_tokens  # the first token that does not fit
        limit = _skip_space(text, token_starts[token]) if token < len(token_starts) else len(text)
        fitting = bisect_right(ends, limit)
        if fitting <= first:
            ends[first : first + 1] = _finer_ends(text, start, ends[first], max_tokens)
            continue
        if usual_characters is not None:
            fitting = min(fitting, max(first + 1, bisect_right(ends, start + usual_characters)))
        end = ends[fitting - 1]
        windows.append((start, start + len(text[start:end].rstrip())))
        start = _skip_space(text, end)
    return windows


def _skip_space(text: str, start: int) -> int:
    """Return the position of the first non-space character at or after `start`, else the text's length."""
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _finer_ends(text: str, start: int, end: int, max_tokens: int) -> list[int]:
    """Return the positions at which text[start:end], which has too many tokens, can be split; the last one is `end`.

    The positions are the clause ends, else the word ends, else the boundaries of grapheme clusters, else of code
    points. Raises ValueError if text[start:end] is a single code point.
    """
    piece = text[start:end].rstrip()
    splitters: tuple[Callable[[], Iterable[int]], ...] = (
        lambda: clause_ends(piece),
        lambda: word_ends(piece),
        lambda: (character.end() for character in regex.finditer(r"\X", piece)),
        lambda: range(1, len(piece)),
    )
    for find_ends in splitters:
        if cuts := [start + place for place in find_ends() if place < len(piece)]:
            return [*cuts, end]
    raise ValueError(
        f"the character {text[start]!r} needs more than {max_tokens} tokens; use a model with a longer context"
    )
