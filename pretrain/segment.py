"""Cut a document's tokens into the fewest samples of whole sentences, as balanced as that allows.

The document is encoded once and cut between tokens where a sentence ends, so its samples, one after another, are
exactly its tokens. How many samples it takes, greedy filling tells. Balance: the k-th cut of any such division lies
between the k-th cut of greedy filling from the right and from the left; these windows are disjoint, so a dynamic
programme over them that minimises the sum of squared lengths sees every place once.

No main program here: `pretrain/preprocess.py` is the command line.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import groupby, pairwise
from math import isqrt

import numpy as np

LANGUAGES = ("auto", "chinese", "english", "code")


def _not_after(words: str) -> str:
    """Pattern of a place that none of these words with a full stop stands before; a lookbehind is of one length."""
    lengths = groupby(sorted(words.split(), key=len), len)
    return "".join(rf"(?<!(?a:\b)(?:{'|'.join(map(re.escape, same))})\.)" for _, same in lengths)


# Patterns that begin after one character of _FIRST, so that the search for it is a quick one. A newline with the blank
# lines after it ends a sentence in every language; what stands before a newline does not end one of its own. Repeats
# are possessive: a run of 100,000 dots or spaces takes no longer than 100,000 letters.
_FIRST = r"[\n.!?。！？…]"
_NEWLINE = r"(?<=\n)(?:[^\S\n]*+\n)*+"
_NO_NEWLINE = r"(?![^\S\n]*+\n)"
_GOES_ON = r"(?![，、；：。！？…》,;:.!?\]])"  # no sentence begins so; 《谁？》 is a title, [谁？](…) a link's text
_CHINESE = (
    r"(?:(?<=[。！？])|(?<=\w…)(?=[…。！？]))(?<![。！？…].)"
    rf"[。！？!?…]*+[”’」』）】\")]*+{_GOES_ON}{_NO_NEWLINE}"
)
_TITLES = "Mr Mrs Ms Dr St Mt Jr Sr Lt Prof Gen Col Capt Sgt Maj Gov Sen Rev Hon Ave Blvd Dept Inc Ltd"
_TERMS = "Fig Figs Eq Eqs Sec vs cf al approx e.g i.e"
_NUMBERED = "No no Nos nos Vol vol Ch pp p Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec"
_ROW = r"(?:^|(?<=[.!?:;] ))"
_ABBREVIATION = (
    _not_after(f"{_TITLES} {_TERMS}")
    + r"(?<!(?a:\b)[A-Z]\.)"  # J. Smith, the U.S. Army
    + rf"(?<!{_ROW}\d\.)(?<!{_ROW}\d\d\.)"  # 1. the number of a list's row
    + rf"(?:(?!\s\d)|{_not_after(_NUMBERED)})"  # No. 5, but: He said no. Five others did not ask.
)
# In these two, how a sentence goes on is looked at before the many abbreviations are: most places fail at that.
_CHINESE_ASCII_CLOSE = r"[!?]*+[”’」』）】\")]*+"
_CHINESE_ASCII = (
    rf"(?<=[.!?])(?<![!?].)(?={_CHINESE_ASCII_CLOSE}[^\S\n]*+[\u3400-\u9fff])"
    rf"(?:(?<=[!?])|(?<=[^\W\d_]{{2}}\.){_ABBREVIATION}){_CHINESE_ASCII_CLOSE}"  # neither 1.打开 nor A.B.公司
)
_ENGLISH_CLOSE = r"[.!?…]*+[\"'”’)\]*_]*+"
_ENGLISH = (
    rf"(?<=[.!?…])(?<![.!?…].)(?={_ENGLISH_CLOSE}[^\S\n]++[^\sa-z,;:.!?])"
    rf"{_ABBREVIATION}{_ENGLISH_CLOSE}"
)
_SENTENCES = {
    "auto": f"{_FIRST}(?:{_NEWLINE}|{_CHINESE}|{_CHINESE_ASCII}|{_ENGLISH})",
    "chinese": f"{_FIRST}(?:{_NEWLINE}|{_CHINESE}|{_CHINESE_ASCII})",
    "english": rf"[\n.!?…](?:{_NEWLINE}|{_ENGLISH})",
    "code": rf"\n{_NEWLINE}",
}
_SENTENCE_END = {language: re.compile(pattern, re.MULTILINE) for language, pattern in _SENTENCES.items()}
_CLAUSE_END = re.compile(r"[,;:)\]}](?!\d)|[，；：、。！？—）】》”]")
_WORD_END = re.compile(r"(?<=\S)(?=\s)")

_WORTH_IT = 0.8  # share of a text beyond which it is searched as a whole
_FAR = 1000  # characters without a letter or digit
_DENSE = 4096  # cells of a table that are quicker computed than thought about


def sentence_ends(text: str, language: str = "auto") -> list[int]:
    """Where sentences end, ascending: positions in characters, just after the closing quote or the newline.

    language: auto (Chinese and English rules together), chinese, english, or code (lines, with the blank lines after).
    """
    return [match.end() for match in _SENTENCE_END[language].finditer(text)]


def ends_within(text: str, language: str, start: int, stop: int) -> list[int] | None:
    """The sentence ends from start to stop, both included, without a look at the rest of the text.

    No rule's match goes over a letter or digit, and none looks further ahead than to the next one, so a search between
    two of them finds what a search of all finds. Returns None where they are far.
    """
    first, last = start, stop
    while first > 0 and not text[first - 1].isalnum():
        first -= 1
        if start - first > _FAR:
            return None
    while last < len(text) and not text[last].isalnum():
        last += 1
        if last - stop > _FAR:
            return None
    matches = _SENTENCE_END[language].finditer(text, first, last + 1)
    return [end for match in matches if start <= (end := match.end()) <= stop]


def sample_lengths(
    text: str, starts: np.ndarray, limit: int, language: str = "auto", bos: int = 1, eos: int = 1
) -> np.ndarray:
    """Tokens of each sample of a document, which are bos + len(starts) + eos tokens in all.

    starts: (tokens,) the character at which each token of the text begins, -1 where it begins inside a character.
    limit: no sample gets more tokens. bos, eos: 1 or 0, whether those tokens stand around the text's.
    Returns (samples,) int32. A sentence over the limit is cut between clauses, else words, else characters, else bytes.
    """
    total = bos + len(starts) + eos
    if total <= limit:
        return np.array([total], dtype=np.int32)
    near = _near_cuts(text, starts, total, limit, language, bos)
    if near is not None:
        return np.diff(balance(near, limit)).astype(np.int32)
    edges = np.array([0, total])
    kinds = _places(text, starts, total, language, bos)
    while (wide := np.flatnonzero(np.diff(edges) > limit)).size:
        places = next(kinds)  # looked for only where the better kinds leave too long a piece
        first = np.searchsorted(places, edges[wide], "right")
        last = np.searchsorted(places, edges[wide + 1], "left")
        inside = [places[a:b] for a, b in zip(first, last, strict=True)]
        edges = np.sort(np.concatenate([edges, *inside]))
    return np.diff(balance(edges, limit)).astype(np.int32)


def _near_cuts(text: str, starts: np.ndarray, total: int, limit: int, language: str, bos: int) -> np.ndarray | None:
    """Edges of sentences where the cuts must be, if no more samples are needed than the lengths alone make necessary.

    With n = ceil(total / limit) samples, the first k have at most k limit tokens and the rest at most (n - k) limit, so
    the k-th cut lies between total - (n - k) limit and k limit: only there need sentence ends be looked for, and every
    division into n samples has its cuts there. Returns None where there is no such division, or little to be saved.
    """
    pieces = -(-total // limit)
    slack = pieces * limit - total
    edge = _EdgeFinder(starts, bos)
    if slack * (pieces - 1) > _WORTH_IT * total or not edge.clean.size:
        return None
    found = [np.array([0])]
    for cut in range(limit, pieces * limit, limit):
        ends = ends_within(text, language, *edge.characters(cut - slack, cut))
        if ends is None:
            return None
        places = edge.tokens(ends)
        found.append(places[(places >= cut - slack) & (places <= cut)])
        if not found[-1].size:
            return None
    edges = np.concatenate([*found, [total]])
    at = 0
    for _ in range(pieces):
        at = int(np.searchsorted(edges, edges[at] + limit, "right")) - 1
    return edges if at == len(edges) - 1 else None


class _EdgeFinder:
    """From characters to the tokens that begin there, and back. starts: as in sample_lengths."""

    def __init__(self, starts: np.ndarray, bos: int) -> None:
        clean = np.flatnonzero(starts >= 0)
        self.clean = clean[clean > 0]  # BOS does not stand alone
        self.begins, self.bos = starts[self.clean], bos

    def tokens(self, positions: list[int]) -> np.ndarray:
        """Tokens of the document, BOS counted, before which it may be cut: those that begin at one of the positions."""
        at = np.searchsorted(self.begins, positions)
        inside = at < len(self.begins)
        hit = self.begins[at[inside]] == np.array(positions, dtype=np.int64)[inside]
        return self.clean[at[inside][hit]] + self.bos

    def characters(self, first: int, last: int) -> tuple[int, int]:
        """Where the first and the last token at or around those two places begin, in characters."""
        low, high = np.searchsorted(self.clean, [first - self.bos, last - self.bos])
        edge = len(self.clean) - 1
        return int(self.begins[min(low, edge)]), int(self.begins[min(high, edge)])


def _places(text: str, starts: np.ndarray, total: int, language: str, bos: int) -> Iterator[np.ndarray]:
    """Where a document may be cut, in tokens, the best kind first: sentences, clauses, words, characters, tokens."""
    edge = _EdgeFinder(starts, bos)
    yield edge.tokens(sentence_ends(text, language))
    yield edge.tokens([match.end() for match in _CLAUSE_END.finditer(text)])
    yield edge.tokens([match.end() for match in _WORD_END.finditer(text)])
    yield edge.clean + bos
    yield np.arange(1, total)


def balance(edges: np.ndarray, limit: int) -> np.ndarray:
    """Choose cuts among `edges` so that the pieces are fewest, and among those of the least sum of squared lengths.

    edges: ascending, first and last are kept; neighbours no further apart than `limit`. Returns the chosen edges.
    """
    left, right = _greedy(edges.tolist(), limit)
    cost, before = np.zeros(1, dtype=np.int64), edges[:1]
    choices = []
    for low, high in zip(right[1:], left[1:], strict=True):
        after = edges[low : high + 1]
        choice = _best_before(before, cost, after, limit)
        cost = cost[choice] + (after - before[choice]) ** 2
        choices.append(choice)
        before = after
    index, chosen = 0, [len(edges) - 1]
    for k in range(len(choices) - 1, -1, -1):
        index = int(choices[k][index])
        chosen.append(right[k] + index)
    return edges[chosen[::-1]]


def _greedy(edges: list[int], limit: int) -> tuple[list[int], list[int]]:
    """Indices of the cuts when pieces are filled from the left, and when they are filled from the right."""
    left = [0]
    while left[-1] < len(edges) - 1:
        left.append(bisect_right(edges, edges[left[-1]] + limit) - 1)
    right = [len(edges) - 1]
    while right[-1] > 0:
        right.append(bisect_left(edges, edges[right[-1]] - limit))
    return left, right[::-1]


def _best_before(before: np.ndarray, cost: np.ndarray, after: np.ndarray, limit: int) -> np.ndarray:
    """For each edge of `after`, the index of the edge of `before` through which it is reached at the least cost.

    The squared length grows faster the longer a piece is, so the best index never falls from one row to the next (and
    neither does the first index within the limit): rows between two known ones need look only between their choices.
    """
    impossible = np.iinfo(np.int64).max

    def rows(ends: np.ndarray, low: int, high: int) -> np.ndarray:
        lengths = ends[:, None] - before[None, low:high]
        return low + np.where(lengths <= limit, cost[low:high] + lengths * lengths, impossible).argmin(axis=1)

    if len(after) * len(before) <= _DENSE:
        return rows(after, 0, len(before))
    known = np.union1d(np.arange(0, len(after), isqrt(len(after))), [len(after) - 1])
    choice = np.empty(len(after), dtype=np.int64)
    choice[known] = rows(after[known], 0, len(before))
    for a, b in pairwise(known):
        choice[a + 1 : b] = rows(after[a + 1 : b], choice[a], choice[b] + 1)
    return choice
