"""Filters that reject exact and near duplicates of earlier rows.

Near duplicates are found with MinHash (datatrove's hash functions) and confirmed with the Jaccard similarity of the
full sets of shingles, so a row is never rejected because of hashes alone.
"""

import json
from collections import defaultdict
from hashlib import blake2b
from tempfile import TemporaryDirectory

import numpy as np
from instruction_generation.rouge_pool import similarity_tokens
from json_rows.instruction_rows import messages_of

from instruction_selection.candidate_rows import Candidate, RowFilter, Verdict, one_by_one

SHINGLE_TOKENS = 5  # words or Chinese characters; a shorter text is one shingle
# Rows with a similarity of s share a bucket with probability 1 - (1 - s^4)^28: 0.999 at 0.7, 0.83 at 0.5.
BUCKETS, HASHES_PER_BUCKET = 28, 4
SHINGLES_PER_PASS = 1024  # bounds the memory of a long text


def exact_filter() -> RowFilter:
    """Return a filter that rejects rows with the same messages as an earlier row; runs of white space are equal."""
    first: dict[bytes, int] = {}

    def judge(candidate: Candidate) -> Verdict:
        messages = [
            [message["role"], *(" ".join((message.get(key) or "").split()) for key in ("content", "input"))]
            for message in messages_of(candidate.row)
        ]
        number = first.setdefault(blake2b(json.dumps(messages).encode(), digest_size=16).digest(), candidate.number)
        if number == candidate.number:
            return Verdict(True, 0, "no earlier row is equal")
        return Verdict(False, 1, f"equal to row {number}")

    return RowFilter("exact", one_by_one(judge))


def shingles(text: str) -> np.ndarray:
    """Return the hashes of a text's different shingles, sorted, (shingles,) uint64; empty for a text without tokens."""
    from xxhash import xxh64_intdigest

    tokens = similarity_tokens(text)
    starts = range(max(1, len(tokens) - SHINGLE_TOKENS + 1)) if tokens else ()
    found = {xxh64_intdigest(" ".join(tokens[start : start + SHINGLE_TOKENS])) for start in starts}
    return np.array(sorted(found), np.uint64)


class MinHashIndex:
    """Sets of shingles, found by similarity."""

    def __init__(self) -> None:
        from datatrove.pipeline.dedup import MinhashDedupSignature
        from datatrove.pipeline.dedup.minhash import MinhashConfig

        with TemporaryDirectory() as unused:  # datatrove's pipeline step wants a folder, which only its `run` uses
            config = MinhashConfig(n_grams=SHINGLE_TOKENS, num_buckets=BUCKETS, hashes_per_bucket=HASHES_PER_BUCKET)
            self.step = MinhashDedupSignature(unused, config)
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


def minhash_filter(highest: float) -> RowFilter:
    """Return a filter that rejects rows with a Jaccard similarity of `highest` or more to a kept row.

    Question and answer are compared together.
    """
    index, numbers = MinHashIndex(), list[int]()

    def judge(candidate: Candidate) -> Verdict:
        values = shingles(f"{candidate.question}\n\n{candidate.answer}")
        if not len(values):
            return Verdict(True, 0.0, "no words to compare")
        signature = index.signature(values)
        similarity, number = index.most_similar(values, signature)
        reason = f"similarity {similarity:.3f} with row {numbers[number]}" if number >= 0 else "no similar row"
        if similarity >= highest:
            return Verdict(False, similarity, f"{reason} is not below {highest:g}")
        index.add(values, signature)
        numbers.append(candidate.number)
        return Verdict(True, similarity, reason)

    return RowFilter("minhash", one_by_one(judge))
