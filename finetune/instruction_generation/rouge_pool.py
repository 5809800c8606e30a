"""ROUGE-L of a text against a growing pool of texts, exact and fast.

ROUGE-L (Lin 2004) is the F measure of the longest common subsequence (LCS) of tokens: 2 LCS / (tokens of both). The
LCS is at most the number of shared tokens, which an inverted index gives for the whole pool at once. The LCS itself is
computed only for texts whose upper bound exceeds the best value so far, with bit operations (Hyyro 2004).
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from text_language.language_detection import CJK_CHARACTERS

# English text: as in the package rouge-score without stemming, which finds no tokens in Chinese text.
TOKEN = re.compile(f"[{CJK_CHARACTERS}]|[^\\W_{CJK_CHARACTERS}]+")
MAX_TOKENS = 4096  # of a text that are compared; bounds the work on a very long text
FIRST_CAPACITY = 8  # of the arrays of a token; doubled when full


def similarity_tokens(text: str) -> list[str]:
    """Return the lower-case words and numbers of a text, and its Chinese characters as one token each."""
    return TOKEN.findall(text.lower())


class PoolMatch(NamedTuple):
    """The most similar text of a pool."""

    score: float  # ROUGE-L, 0 to 1
    number: int  # the text's number in the pool, from 0; -1 if there is no such text


class _Postings:
    """The texts of the pool that have a token: text numbers and counts, in arrays that grow."""

    def __init__(self) -> None:
        self.numbers = np.empty(FIRST_CAPACITY, np.int32)
        self.counts = np.empty(FIRST_CAPACITY, np.int32)
        self.size = 0

    def append(self, number: int, count: int) -> None:
        if self.size == len(self.numbers):
            self.numbers = np.resize(self.numbers, 2 * self.size)
            self.counts = np.resize(self.counts, 2 * self.size)
        self.numbers[self.size], self.counts[self.size] = number, count
        self.size += 1


class RougePool:
    """Token sequences that later texts are compared with."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.tokens: list[list[str]] = []
        self.lengths = np.zeros(FIRST_CAPACITY, np.int32)
        self.postings: dict[str, _Postings] = {}
        for text in texts:
            self.add(similarity_tokens(text))

    def add(self, tokens: list[str]) -> None:
        """Add a text as its `similarity_tokens`, of which the first MAX_TOKENS are compared."""
        tokens, number = tokens[:MAX_TOKENS], len(self.tokens)
        if number == len(self.lengths):
            self.lengths = np.resize(self.lengths, 2 * number)
        self.tokens.append(tokens)
        self.lengths[number] = len(tokens)
        for token, count in Counter(tokens).items():
            postings = self.postings.get(token)
            if postings is None:
                postings = self.postings[token] = _Postings()
            postings.append(number, count)

    def upper_bounds(self, tokens: list[str]) -> np.ndarray:
        """Return an upper bound of ROUGE-L with each text of the pool, (texts,) float64."""
        shared = np.zeros(len(self.tokens), np.int32)
        for token, count in Counter(tokens).items():
            postings = self.postings.get(token)
            if postings is not None:  # a text is at most once among the numbers, so += adds every count
                shared[postings.numbers[: postings.size]] += np.minimum(postings.counts[: postings.size], count)
        return 2.0 * shared / np.maximum(self.lengths[: len(self.tokens)] + len(tokens), 1)

    def most_similar(self, tokens: list[str], at_least: float = 0.0) -> PoolMatch:
        """Return the text of the pool with the highest ROUGE-L; of equally similar texts, the first.

        at_least: the minimum score; the result is (0, -1) if no text reaches it.
        """
        tokens = tokens[:MAX_TOKENS]
        bounds = self.upper_bounds(tokens)
        candidates = np.flatnonzero((bounds >= at_least) & (bounds > 0))
        order = candidates[np.argsort(-bounds[candidates], kind="stable")]
        masks = position_masks(tokens) if len(order) else {}
        best = PoolMatch(0.0, -1)
        for number in order.tolist():
            if bounds[number] < best.score:
                break
            other = self.tokens[number]
            score = 2 * common_subsequence(masks, len(tokens), other) / (len(tokens) + len(other))
            if score > best.score or (score == best.score and number < best.number):
                best = PoolMatch(score, number)
        return best if best.score >= at_least else PoolMatch(0.0, -1)


def position_masks(tokens: list[str]) -> dict[str, int]:
    """Return the positions of each token as the bits of a number."""
    masks: dict[str, int] = {}
    for at, token in enumerate(tokens):
        masks[token] = masks.get(token, 0) | 1 << at
    return masks


def common_subsequence(masks: dict[str, int], length: int, other: list[str]) -> int:
    """Return the length of the longest common subsequence (Hyyro 2004, bit-parallel).

    masks, length: `position_masks` and number of tokens of the first sequence. The result is the number of zero bits in
    `row`.
    """
    full = row = (1 << length) - 1
    for mask in map(masks.get, other):
        if mask and (matches := row & mask):
            row = (row + matches | row - matches) & full
    return length - row.bit_count()


def rouge_l(first: str, second: str) -> float:
    """Return ROUGE-L of two texts: 0 if one has no tokens."""
    tokens, other = similarity_tokens(first)[:MAX_TOKENS], similarity_tokens(second)[:MAX_TOKENS]
    if not tokens or not other:
        return 0.0
    return 2 * common_subsequence(position_masks(tokens), len(tokens), other) / (len(tokens) + len(other))
