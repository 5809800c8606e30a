"""Keep the rows with the highest or lowest scores of a filter, or a random sample."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

from instruction_selection.candidate_rows import Candidate, RowFilter, Verdict

RankBy = Literal["", "length", "mtld", "rouge", "perplexity", "ifd", "judge", "random"]
RankOrder = Literal["highest", "lowest"]


def kept_count(keep: float, rows: int) -> int:
    """Return how many of `rows` rows are kept. keep: a share up to 1, or a number of rows above 1; at least one row."""
    return min(rows, max(1, round(keep * rows) if keep <= 1 else round(keep)))


def random_score(seed: int, number: int) -> float:
    """Return a number from 0 to 1 that depends on the seed and the row's number only."""
    digest = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def rank_filter(by: str, keep: float, order: RankOrder, seed: int) -> RowFilter:
    """Return a filter that keeps the best rows by the score of an earlier filter, or random rows (`by` "random").

    Of rows with equal scores, the first are kept. Its score is the row's rank, from 1.
    """

    def score(candidate: Candidate) -> float:
        if by == "random":
            return random_score(seed, candidate.number)
        value = candidate.verdicts[by].score
        assert isinstance(value, int | float)
        return value

    def judge(candidates: Sequence[Candidate]) -> Iterable[Verdict]:
        sign = -1 if order == "highest" else 1
        ranked = sorted(candidates, key=lambda candidate: (sign * score(candidate), candidate.number))
        ranks = {candidate.number: rank for rank, candidate in enumerate(ranked, 1)}
        count = kept_count(keep, len(candidates)) if candidates else 0
        for candidate in candidates:
            rank = ranks[candidate.number]
            reason = f"rank {rank} of {len(candidates)} by {by}, of which {count} are kept"
            yield Verdict(rank <= count, rank, reason)

    return RowFilter("rank", judge)
