"""segmentation.py on texts labelled by hand: how many sentence ends are right and how many are found, by kind.

The floors are just under what the rules reach, so a change that makes them worse on a kind of text fails. What they get
wrong today needs the meaning of words, which a pattern does not know: whether a sentence goes on after a quotation, an
ellipsis or "p.m.", whether "U.S." was its last word, whether a title's exclamation mark ends anything.
"""

import time

import pytest
from bench_sentences import inner, labelled, score
from corpus_building import sentences

LABELLED = labelled()
FLOORS = [  # kind, language, precision, recall
    ("english", "english", 0.97, 0.82),
    ("english", "auto", 0.97, 0.82),
    ("chinese", "chinese", 0.85, 0.99),
    ("chinese", "auto", 0.85, 0.99),
    ("mixed", "auto", 0.99, 0.91),
    ("code", "code", 1.0, 1.0),
]


@pytest.mark.parametrize(("kind", "language", "precision", "recall"), FLOORS)
def test_as_many_ends_are_right_and_found_as_before(kind: str, language: str, precision: float, recall: float) -> None:
    reached = score(LABELLED[kind], lambda text: sentences.sentence_ends(text, language))
    assert reached[0] >= precision and reached[1] >= recall, reached


def test_the_labels_are_read_as_they_are_written() -> None:
    assert all(len(texts) >= 10 for texts in LABELLED.values())
    assert inner("It works.\n\nYes?", [9, 11, 15]) == {9}
    text, ends = LABELLED["code"][0]
    assert text.startswith("import os\nimport sys\n\n\ndef main():\n") and ends == {9, 20, 34}


@pytest.mark.parametrize("language", sentences.LANGUAGES)
@pytest.mark.parametrize("kind", LABELLED)
def test_looking_at_a_part_finds_what_looking_at_all_finds(kind: str, language: str) -> None:
    """No rule may match over a letter or digit, nor look further ahead than to the next one."""
    for text, _ in LABELLED[kind]:
        ends = sentences.sentence_ends(text, language)
        for start in range(len(text) + 1):
            for stop in (start, start + 1, start + 7, start + 40):
                inside = [end for end in ends if start <= end <= stop]
                assert sentences.ends_within(text, language, start, min(stop, len(text))) == inside, (text, start, stop)


@pytest.mark.parametrize(
    "unit", ["!", "!)", '."', ".*", ". . ", "1. ", "No. ", "ab.", "山.", "。)", '。"', "山……", "! 山"]
)
def test_a_run_of_what_the_rules_look_for_takes_no_longer(unit: str) -> None:
    """200,000 characters in milliseconds; where a run is read again from each of its places, it is minutes."""
    text = unit * (200_000 // len(unit))
    start = time.process_time()
    for language in sentences.LANGUAGES:
        sentences.sentence_ends(text, language)
    assert time.process_time() - start < 5
