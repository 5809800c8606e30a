"""Filters by length, language, lexical diversity (MTLD) and similarity to earlier rows (ROUGE-L)."""

from collections.abc import Iterable, Sequence

from instruction_generation.rouge_pool import RougePool, similarity_tokens
from text_language.language_detection import language_of

from instruction_selection.candidate_rows import Candidate, RowFilter, Verdict, in_bounds, one_by_one

MTLD_RATIO = 0.72  # type-token ratio at which a factor ends (McCarthy and Jarvis 2010)


def length_filter(lowest: int, highest: int) -> RowFilter:
    """Return a filter by the tokens of the answer (words, Chinese characters). highest: 0 for no limit."""
    return RowFilter(
        "length",
        one_by_one(lambda row: in_bounds(len(similarity_tokens(row.answer)), lowest, highest, "answer tokens")),
    )


def language_filter(language: str) -> RowFilter:
    """Return a filter that keeps rows whose question is in a language, "en" or "zh"."""

    def judge(candidate: Candidate) -> Verdict:
        found = language_of(candidate.question)
        return Verdict(found == language, found, f"the question is in {found}")

    return RowFilter("language", one_by_one(judge))


def mtld_filter(lowest: float) -> RowFilter:
    """Return a filter by the MTLD of the answer."""
    return RowFilter("mtld", one_by_one(lambda row: in_bounds(mtld(similarity_tokens(row.answer)), lowest, 0, "MTLD")))


def mtld(tokens: Sequence[str]) -> float:
    """Return the measure of textual lexical diversity (McCarthy and Jarvis 2010, https://doi.org/10.3758/BRM.42.2.381).

    It is the mean length of the parts of a text whose type-token ratio stays above MTLD_RATIO, averaged over both
    directions; the last, incomplete part counts in proportion. For a text without repeated tokens, it is the length.
    """
    if not tokens:
        return 0.0
    return sum(len(tokens) / _factors(direction) for direction in (tokens, tokens[::-1])) / 2


def _factors(tokens: Iterable[str]) -> float:
    factors, types, size, ratio = 0.0, set[str](), 0, 1.0
    for token in tokens:
        types.add(token)
        size += 1
        ratio = len(types) / size
        if ratio <= MTLD_RATIO:
            factors, size, ratio = factors + 1, 0, 1.0
            types.clear()
    factors += (1 - ratio) / (1 - MTLD_RATIO)
    return factors or 1.0


def rouge_filter(highest: float) -> RowFilter:
    """Return a filter that rejects questions with a ROUGE-L of `highest` or more with the question of a kept row."""
    pool, numbers = RougePool(), list[int]()

    def judge(candidate: Candidate) -> Verdict:
        tokens = similarity_tokens(candidate.question)
        match = pool.most_similar(tokens)
        if match.number < 0:
            reason = "no earlier row shares a word"
        else:
            reason = f"ROUGE-L {match.score:.3f} with row {numbers[match.number]}"
        if match.score >= highest:
            return Verdict(False, match.score, f"{reason} is not below {highest:g}")
        pool.add(tokens)
        numbers.append(candidate.number)
        return Verdict(True, match.score, reason)

    return RowFilter("rouge", one_by_one(judge))
