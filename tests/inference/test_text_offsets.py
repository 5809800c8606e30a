"""extraction_results.py: the offsets of names in a text."""

import time
from itertools import pairwise

import pytest
from extraction.extraction_results import find_name
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("Ann", "Anna and Ann", ["Ann@9"]),
        ("Ann", "Anna and JoAnn", ["Ann@0", "Ann@11"]),  # no whole word matches
        ("Ann", "ANN", []),
        ("", "Ann", []),
        (" Ann ", "Ann's", ["Ann@0"]),
        ("Ann", "我是Ann呢", ["Ann@2"]),
        ("王", "王者与王", ["王@0", "王@3"]),
        ("서울", "서울은 서울", ["서울@0", "서울@4"]),
        ("cafe", "cafe\u0301 cafe", ["cafe@6"]),  # a mark belongs to the word
        ("New York", "New\n  York, New Yorkers", ["New\n  York@0"]),
        ("New  York", "a New Yorker", ["New York@2"]),
        ("New York", "New York and New\nYork", ["New York@0", "New\nYork@13"]),
        ("a b a", "a b a b a", ["a b a@0"]),
        ("U.S.", "the U.S. Army", ["U.S.@4"]),
        ("$5 (x)", "for $5 (x).*", ["$5 (x)@4"]),
        ("🤖", "a🤖b𝒳🤖", ["🤖@1", "🤖@4"]),
    ],
)
def test_find_name_returns_the_expected_offsets(name: str, text: str, found: list[str]) -> None:
    assert [f"{text[first:last]}@{first}" for first, last in find_name(name, text)] == found


def test_find_name_stays_within_the_window() -> None:
    text = "Ann. Ann. Ann."
    assert find_name("Ann", text, 4, 9) == [(5, 8)]
    assert find_name("Ann", text, 4, 7) == []
    assert find_name("Ann Lee", "Ann Lee and Ann \t Lee", 8) == [(12, 21)]


@settings(max_examples=300, deadline=None)
@given(st.text("ab \n我.", max_size=30), st.text("ab \n我.", min_size=1, max_size=4), st.text("ab \n我.", max_size=30))
def test_find_name_finds_every_name_that_is_in_the_text(before: str, name: str, after: str) -> None:
    text = before + name + after
    found = find_name(name, text)
    assert bool(found) == bool(name.strip())
    assert all(text[first:last].split() == name.split() for first, last in found)
    assert all(left[1] <= right[0] for left, right in pairwise(found))
    alone = (len(before) + 1, len(before) + 1 + len(name))
    near = find_name(name, f"{before} {name} {after}", 0)
    assert not name.strip() or any(first < alone[1] and alone[0] < last for first, last in near)


@pytest.mark.integration
def test_find_name_is_linear_on_repetitive_text() -> None:
    texts = ("a" * 200_000, "a " * 100_000, "a" + " " * 200_000, ("a" * 99 + " ") * 2000)
    names = ("a" * 1000, "a " * 500 + "b", "a" * 500 + "b", "a \n a", "((a+)+)+b")
    for text in texts:
        for name in names:
            began = time.process_time()
            find_name(name, text)
            assert time.process_time() - began < 2
