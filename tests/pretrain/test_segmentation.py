"""segmentation.py: the samples of a document are fewest, balanced and made of whole sentences."""

import itertools
import time

import numpy as np
import pytest
from corpus_building import segmentation
from corpus_tokenizer import tokenizer_engines
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentence_ends.sentence_boundaries import LANGUAGES, sentence_ends, sentence_ends_between


def best(edges: list[int], limit: int) -> tuple[int, int]:
    """Return (pieces, sum of squared lengths) of the best division, found by trying every division."""
    inner = edges[1:-1]
    divisions = []
    for count in range(len(edges)):
        for cuts in itertools.combinations(inner, count):
            lengths = np.diff([edges[0], *cuts, edges[-1]])
            if lengths.max() <= limit:
                divisions.append((count + 1, int((lengths**2).sum())))
        if divisions:
            return min(divisions)
    raise AssertionError("no division")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=11), st.integers(9, 25))
def test_balanced_cuts_equal_the_best_of_all_divisions(lengths: list[int], limit: int) -> None:
    edges = [0, *itertools.accumulate(lengths)]
    chosen = segmentation.balanced_cuts(edges, limit)
    pieces = np.diff(chosen)
    assert set(chosen) <= set(edges) and pieces.max() <= limit
    assert (len(pieces), int((pieces**2).sum())) == best(edges, limit)


def best_predecessors_by_trying_all(before: list[int], cost: list[int], after: list[int], limit: int) -> list[int]:
    """Return the result of segmentation._best_predecessors by trying every pair of offsets."""
    totals = [
        [cost[i] + (edge - b) ** 2 if edge - b <= limit else np.inf for i, b in enumerate(before)] for edge in after
    ]
    return [row.index(min(row)) if min(row) < np.inf else len(before) - 1 for row in totals]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=200, max_size=600), st.integers(100, 500))
def test_balanced_cuts_in_large_windows_equal_trying_all_pairs(lengths: list[int], limit: int) -> None:
    edges = [0, *itertools.accumulate(lengths)]
    found = segmentation.balanced_cuts(edges, limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "_best_predecessors", best_predecessors_by_trying_all)
        assert found == segmentation.balanced_cuts(edges, limit)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 30), max_size=40), min_size=1, max_size=4), st.integers(10, 60))
def test_best_cuts_with_unreachable_candidates_equal_trying_all_pairs(steps: list[list[int]], limit: int) -> None:
    columns = [[0]]
    for step in steps:
        columns.append([columns[-1][-1] + at for at in itertools.accumulate(step)] or [columns[-1][-1] + 1])
    found = segmentation._best_cuts(columns, limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "_best_predecessors", best_predecessors_by_trying_all)
        assert found == segmentation._best_cuts(columns, limit)


def ends_of(starts: list[int], characters: int) -> np.ndarray:
    """Return the end of each token in characters. starts: the beginning of each token; -1: inside a character."""
    return tokenizer_engines.token_ends(
        [(max(starts[: i + 1]), max(starts[: i + 1]) + 1) for i in range(len(starts))], characters
    )


TEXTS = st.text(st.sampled_from(list("ab .,!?\n。，！“”山水🤖")), min_size=0, max_size=120)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(8, 40), st.sampled_from(LANGUAGES), st.integers(0, 1))
@example("a" * 100, 8, "auto", 1)
@example("🤖" * 30, 9, "auto", 1)
def test_samples_cover_the_document_and_end_at_the_best_kind_of_place(
    text: str, limit: int, language: str, bos: int
) -> None:
    """Lengths add up, none is over the limit, and a character is cut only if it must be.

    Every UTF-8 byte of a character outside ASCII is a token here.
    """
    starts = [start for i, c in enumerate(text) for start in [i] + [-1] * (len(c.encode()) - 1)]
    lengths = segmentation.sample_lengths(text, ends_of(starts, len(text)), limit, language, bos)
    total = len(starts) + bos + 1
    assert lengths.dtype == np.int32 and lengths.sum() == total and 0 < lengths.min() <= lengths.max() <= limit
    cuts = np.cumsum(lengths)[:-1] - bos
    assert all(starts[cut] >= 0 for cut in cuts)
    ends = set(sentence_ends(text, language))
    edges = [0, *(i + bos for i, c in enumerate(starts) if i and c in ends), total]
    if max(np.diff(edges)) <= limit:
        assert all(starts[cut] in ends for cut in cuts)
        greedy, at = 0, 0
        while at < total:
            at = max(edge for edge in edges if edge <= at + limit)
            greedy += 1
        assert len(lengths) == greedy


def sentence_edges(text: str, ends: np.ndarray, language: str) -> list[int]:
    return segmentation._TokenOffsets(ends, 1, len(ends) + 2).offsets_at(sentence_ends(text, language))


PHRASES = (
    "It rained. ", "Dr. J. Smith said “No!” ", "山水。", "他说：“好！！”", "x = 3.5\n", "\n \n", "…", "a" * 9, "Why?! ",
)  # fmt: skip
SENTENCES = st.lists(st.sampled_from(PHRASES), min_size=20, max_size=80).map("".join)


@pytest.mark.integration
@settings(max_examples=300, deadline=None)
@given(text=SENTENCES, limit=st.integers(20, 120), language=st.sampled_from(LANGUAGES), data=st.data())
def test_cuts_near_the_even_division_are_as_balanced_as_cuts_from_all_sentence_ends(
    text: str, limit: int, language: str, data: st.DataObject
) -> None:
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    inside = [end for end in sentence_ends(text, language) if start <= end <= stop]
    assert sentence_ends_between(text, language, start, stop) == inside
    ends = ends_of([at if at % 5 else -1 for at in range(len(text))], len(text))
    near = segmentation.sample_lengths(text, ends, limit, language)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "_cuts_at_sentence_ends", lambda *_: None)
        everywhere = segmentation.sample_lengths(text, ends, limit, language)
    assert len(near) == len(everywhere) and (near**2).sum() == (everywhere**2).sum()
    if max(np.diff([0, *sentence_edges(text, ends, language), len(ends) + 2])) <= limit:
        assert set(np.cumsum(near)[:-1].tolist()) <= set(sentence_edges(text, ends, language))


def test_sentence_over_the_limit_is_cut_between_clauses_then_words() -> None:
    def pieces(text: str, limit: int) -> list[str]:
        ends = np.cumsum(segmentation.sample_lengths(text, np.arange(1, len(text) + 1), limit)) - 1
        return [text[max(0, a) : b] for a, b in itertools.pairwise([0, *ends.tolist()])]

    assert pieces("one two, three four, five six", 16) == ["one two,", " three four,", " five six"]
    assert pieces("one two three four", 12) == ["one two", " three four"]
    assert pieces("山水人家国学生东西", 8) == ["山水人家", "国学生东西"]  # 1 + 4 and 5 + 1 tokens
    assert pieces("A b. " + "c" * 20 + ". D e.", 12)[0].startswith("A b.")


def test_document_within_the_limit_is_one_sample() -> None:
    assert segmentation.sample_lengths("a b", np.arange(1, 4), 5).tolist() == [5]
    assert segmentation.sample_lengths("", np.arange(0), 8, bos=0).tolist() == [1]


@pytest.mark.integration
@pytest.mark.parametrize(
    "unit", [".", " ", "\n", " \n", "…", "。", "a", "a. ", "a.  b", "?!\"'", "\n   ", ",", "e.g. "]
)
def test_time_is_linear_for_repeated_text(unit: str) -> None:
    """Each text repeats a unit up to 100,000 characters; regular expressions tend to backtrack on such texts."""
    text = unit * (100_000 // len(unit))
    start = time.process_time()
    for language in LANGUAGES:
        lengths = segmentation.sample_lengths(text, np.arange(1, len(text) + 1), 1000, language)
        assert lengths.max() <= 1000
    assert time.process_time() - start < 15
