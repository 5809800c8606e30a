"""Find similar texts with MinHash (datatrove's hash functions), confirmed on the full sets of shingles."""

from collections import defaultdict
from tempfile import TemporaryDirectory

import numpy as np
from datatrove.pipeline.dedup import MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.word_tokenizers import WordTokenizer
from instruction_generation.rouge_pool import similarity_tokens
from xxhash import xxh64_intdigest

SHINGLE_TOKENS = 5  # words or Chinese characters; a shorter text is one shingle
# Rows with a similarity of s share a bucket with probability 1 - (1 - s^4)^28: 0.999 at 0.7, 0.83 at 0.5.
BUCKETS, HASHES_PER_BUCKET = 28, 4
SHINGLES_PER_PASS = 1024  # bounds the memory of a long text


class TokenSplitter(WordTokenizer):
    """Splits text as ROUGE-L does; datatrove's own tokenizers need further packages."""

    def word_tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        return similarity_tokens(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Raise NotImplementedError; MinHash does not call this method."""
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Raise NotImplementedError; MinHash does not call this method."""
        raise NotImplementedError


def shingles(text: str) -> np.ndarray:
    """Return the hashes of a text's distinct shingles, sorted, (shingles,) uint64; empty for a text without tokens."""
    tokens = similarity_tokens(text)
    starts = range(max(1, len(tokens) - SHINGLE_TOKENS + 1)) if tokens else ()
    found = {xxh64_intdigest(" ".join(tokens[start : start + SHINGLE_TOKENS])) for start in starts}
    return np.array(sorted(found), np.uint64)


class MinHashIndex:
    """An index of sets of shingles that finds similar sets."""

    def __init__(self) -> None:
        with TemporaryDirectory() as unused:  # datatrove's pipeline step requires a folder, which only its `run` uses
            config = MinhashConfig(n_grams=SHINGLE_TOKENS, num_buckets=BUCKETS, hashes_per_bucket=HASHES_PER_BUCKET)
            self.step = MinhashDedupSignature(unused, config, language=TokenSplitter("any"))
        self.sets: list[np.ndarray] = []
        self.buckets: list[dict[tuple[int, ...], list[int]]] = [defaultdict(list) for _ in range(BUCKETS)]

    def signature(self, values: np.ndarray) -> list[tuple[int, ...]]:
        """Return the hashes of each bucket. values: `shingles`, at least one."""
        parts = [
            self.step.get_signature(values[at : at + SHINGLES_PER_PASS, None])
            for at in range(0, len(values), SHINGLES_PER_PASS)
        ]
        return [tuple(map(min, zip(*rows, strict=True))) for rows in zip(*parts, strict=True)]

    def most_similar(self, values: np.ndarray, signature: list[tuple[int, ...]]) -> tuple[float, int]:
        """Return (Jaccard similarity, number) of the most similar set that shares a bucket, or (0, -1)."""
        numbers = {
            number
            for bucket, key in zip(self.buckets, signature, strict=True)
            for number in bucket.get(key, ())
        }  # fmt: skip
        best = (0.0, -1)
        for number in sorted(numbers):
            other = self.sets[number]
            if min(len(values), len(other)) <= best[0] * max(len(values), len(other)):
                continue  # the similarity is at most the ratio of the sizes
            shared = len(np.intersect1d(values, other, assume_unique=True))
            best = max(best, (shared / (len(values) + len(other) - shared), number), key=lambda pair: pair[0])
        return best

    def add(self, values: np.ndarray, signature: list[tuple[int, ...]]) -> None:
        """Add a set of shingles with its signature."""
        for bucket, key in zip(self.buckets, signature, strict=True):
            bucket[key].append(len(self.sets))
        self.sets.append(values)
