"""sentence_boundaries.py: precision and recall on texts labelled by hand, and linear time.

FLOORS are at or just below the measured values, so that a test fails if precision or recall decreases. The remaining
errors can only be avoided with the meaning of the words: whether a sentence continues after a quotation, an
ellipsis or "p.m.", and whether "U.S." or the exclamation mark of a title ends a sentence.
"""

import itertools
import time

import pytest
from bench_sentences import inner_ends, labelled, score
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_ends.sentence_boundaries import LANGUAGES, clause_ends, sentence_ends, sentence_ends_between, word_ends

LABELLED = labelled()
FLOORS = [  # kind, language, precision, recall
    ("en", "en", 0.97, 0.82),
    ("en", "auto", 0.97, 0.82),
    ("zh", "zh", 0.85, 0.99),
    ("zh", "auto", 0.85, 0.99),
    ("mixed", "auto", 0.99, 0.91),
    ("code", "code", 1.0, 1.0),
]


MARKED = [  # `|` at each position that is returned
    ("en", "It rained.| The road was wet.| Why?| Nobody asked!| They left..."),
    ("en", "Dr. J. Smith met Mrs. Lee at 3.15 p.m. on the U.S. coast.| They spoke, e.g. about Fig. 2 and No. 5."),
    ("en", 'He said "Stop."| Then he ran.| (Nobody saw it.)| “Why not?” she asked.'),
    ("en", "Pi is 3.14159.| See example.com or v1.2.3 for more.| 1999 was a good year."),
    ("en", "He said no.| She agreed.| Well... he was right."),
    ("en", "Things to buy:\n|1. Bread\n|2. Milk.\n\n|12. Old wine\n|And that is all."),
    ("zh", "他来了。|你好吗？|太好了！！|“走吧。”|她说：“好。”|价格是3.5元。|等等……|再说。|"),
    ("zh", "第一段。\n|第二段没有句号\n  \n|（完。）|《书》出版了！|Yes!|是的"),
    ("auto", "他说OK!|我们走。| It works.| Now 版本2.0 runs.| 结束"),
    ("auto", "def f():\n|    return a.b  # Done.\n\n\n|x = 1.5\n|"),
    ("auto", "Maj. Smith lives on Fifth Ave. Near the park.| He owns approx. Five houses."),
    ("auto", "1. First item.| 2. Second item."),
    ("code", "import os\n\n\n|if x:  # Why? Because.\n|    y = 2\n|"),
]


@pytest.mark.parametrize(("language", "marked"), MARKED)
def test_sentence_ends_equal_the_marked_ends(language: str, marked: str) -> None:
    text = marked.replace("|", "")
    ends = sentence_ends(text, language)
    assert "|".join(text[a:b] for a, b in itertools.pairwise([0, *ends, len(text)])) == marked


@pytest.mark.parametrize(("kind", "language", "precision", "recall"), FLOORS)
def test_precision_and_recall_stay_above_the_floors(kind: str, language: str, precision: float, recall: float) -> None:
    reached = score(LABELLED[kind], lambda text: sentence_ends(text, language))
    assert reached[0] >= precision and reached[1] >= recall, reached


def test_labelled_texts_are_parsed() -> None:
    assert all(len(texts) >= 10 for texts in LABELLED.values())
    assert inner_ends("It works.\n\nYes?", [9, 11, 15]) == {9}
    text, ends = LABELLED["code"][0]
    assert text.startswith("import os\nimport sys\n\n\ndef main():\n") and ends == {9, 20, 34}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", LABELLED)
def test_search_in_a_part_finds_the_same_ends_as_a_search_in_the_whole_text(kind: str, language: str) -> None:
    """This holds since no rule matches across a letter or digit, or looks ahead beyond the next letter or digit."""
    for text, _ in LABELLED[kind]:
        ends = sentence_ends(text, language)
        for start in range(len(text) + 1):
            for stop in (start, start + 1, start + 7, start + 40):
                inside = [end for end in ends if start <= end <= stop]
                assert sentence_ends_between(text, language, start, min(stop, len(text))) == inside, (text, start, stop)


def seconds(text: str, languages: tuple[str, ...] = LANGUAGES) -> float:
    """Return the CPU seconds of all searches in a text."""
    began = time.process_time()
    for language in languages:
        sentence_ends(text, language)
        sentence_ends_between(text, language, len(text) // 2, len(text) // 2 + 1)
    clause_ends(text)
    word_ends(text)
    return time.process_time() - began


@pytest.mark.parametrize(
    "unit", [".", "!", "!)", '."', ".*", ". . ", "1. ", "No. ", "ab.", "山.", "。)", '。"', "山……", "! 山", " ", "\n "]
)
def test_a_million_characters_of_repeated_text_take_seconds(unit: str) -> None:
    """A pattern that reads a run of marks again from each mark would take quadratic time."""
    assert seconds(unit * (10**6 // len(unit)) + "x", ("auto",)) < 5


def test_two_hundred_thousand_full_stops_take_less_than_half_a_second() -> None:
    assert seconds("." * 200_000 + "x") < 0.5


@settings(max_examples=40, deadline=None)
@given(st.text('.!?…。！？"”)】*_ \n,，a山1', min_size=1, max_size=5), st.text(".x山\n ", max_size=2))
@pytest.mark.integration
def test_time_is_linear_for_repeated_marks(unit: str, ending: str) -> None:
    assert seconds(unit * (100_000 // len(unit)) + ending) < 1.5
