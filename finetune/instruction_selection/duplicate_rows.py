"""Filters that reject exact and near duplicates of earlier rows."""

import json
from hashlib import blake2b

from json_rows.instruction_rows import messages_of

from instruction_selection.candidate_rows import Candidate, RowFilter, Verdict, one_by_one


def exact_filter() -> RowFilter:
    """Return a filter that rejects rows with the same messages as an earlier row; white space may differ."""
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


def minhash_filter(highest: float) -> RowFilter:
    """Return a filter that rejects rows with a Jaccard similarity of `highest` or more to a kept row.

    Question and answer are compared together.
    """
    from instruction_selection.minhash_index import MinHashIndex, shingles

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
