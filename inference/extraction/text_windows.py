"""Split a text into windows of whole sentences, each within a token limit.

The route /extract asks the model about one window at a time. Sentence ends are those of the corpus builder
(sentence_ends/). A sentence that is longer than a window is split between clauses, a longer clause between words, and a
longer word between characters. The time is linear in the length of the text.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence

import regex
from sentence_ends.sentence_boundaries import clause_ends, sentence_ends, word_ends

MAX_WINDOWS = 2**14  # of one text; each becomes a prompt
CONCURRENT_WINDOWS = 16  # maximum number of windows of one text in the engine at the same time
GRAPHEME = regex.compile(r"\X")
GRAPHEME_CHARACTERS = 64  # matched at once, since `\X` takes quadratic time for a run of regional indicators (flags)


def split_into_windows(
    text: str, token_starts: Sequence[int], max_tokens: int, usual_characters: int | None = None
) -> list[tuple[int, int]]:
    """Return the windows [start, end) of a text, in characters and in order; they leave out only white space.

    token_starts: offset of each token of the whole text (a window that is tokenised alone can have a few more tokens).
    A window has as many whole sentences as fit into `max_tokens` tokens and `usual_characters` characters; its first
    sentence may exceed `usual_characters`. Raises ValueError if a single character has more than `max_tokens` tokens,
    and for more than MAX_WINDOWS windows.
    """
    pending = sentence_ends(text)
    if pending[-1:] != [len(text)]:
        pending.append(len(text))
    pending.reverse()  # a stack: the next end is the last
    windows: list[tuple[int, int]] = []
    start = skip_space(text, 0)
    while start < len(text):
        token = bisect_left(token_starts, start) + max_tokens  # the first token that does not fit
        limit = skip_space(text, token_starts[token]) if token < len(token_starts) else len(text)
        usual_limit = limit if usual_characters is None else min(limit, start + usual_characters)
        end = start
        while pending and (pending[-1] <= usual_limit or (end == start and pending[-1] <= limit)):
            end = max(start, pending.pop())
        if end == start:
            pending += reversed(finer_ends(text, start, min(pending[-1], limit), max_tokens))
            continue
        if len(windows) == MAX_WINDOWS:
            raise ValueError(f"the text has more than {MAX_WINDOWS} windows; send it in parts, or raise window_tokens")
        windows.append((start, start + len(text[start:end].rstrip())))
        start = skip_space(text, end)
    return windows


def skip_space(text: str, start: int) -> int:
    """Return the position of the first non-space character at or after `start`, else the text's length."""
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def finer_ends(text: str, start: int, limit: int, max_tokens: int) -> list[int]:
    """Return the positions at which a sentence that begins at `start` and ends after `limit` can be split.

    The positions up to and including `limit` are the clause ends; if there are none, the word ends, then the ends of
    grapheme clusters, then those of code points. Raises ValueError if there is no position, since text[start] alone has
    too many tokens.
    """
    piece = text[start:limit]
    splitters: tuple[Callable[[], Iterable[int]], ...] = (
        lambda: clause_ends(piece),
        lambda: word_ends(piece + text[limit]),
        lambda: grapheme_ends(text, start, limit),
        lambda: range(1, len(piece) + 1),
    )
    for find_ends in splitters:
        if cuts := [start + place for place in find_ends()]:
            return cuts
    raise ValueError(
        f"the character {text[start]!r} needs more than {max_tokens} tokens; raise window_tokens, or use a model with "
        "a longer context"
    )


def grapheme_ends(text: str, start: int, limit: int) -> Iterator[int]:
    """Yield the ends of the grapheme clusters of text[start:limit] that end by `limit`, counted from `start`.

    A cluster of more than GRAPHEME_CHARACTERS code points is split.
    """
    at = start
    while at < limit:
        ends = [at + cluster.end() for cluster in GRAPHEME.finditer(text[at : at + GRAPHEME_CHARACTERS])]
        complete = ends[:-1] or ends if ends[-1] < len(text) else ends  # the last cluster may continue
        yield from (end - start for end in complete if end <= limit)
        at = complete[-1]
