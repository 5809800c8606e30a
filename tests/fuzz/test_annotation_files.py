"""Readers of annotations return sentences whose items fit their text, or raise a one-line error, for any content.

The functions named *_holds are the properties; see test_rows_and_requests.py.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from annotation_reading.annotation_checks import check_sentence
from annotation_reading.annotation_files import FORMATS, read_annotation_files
from fuzzing import ANY_TEXT, SCALAR, run_for, share_of_seconds, value_or_error, write_lines
from hypothesis import strategies as st

COLUMN = st.sampled_from([
    "Ann", "李", "O", "B-p", "I-p", "E-q", "S-p", "M-", "0", "1", "['N']", "['r', 's']", "[0]", "[1, 0]", "[",
    "#", "#doc", "",
]) | st.text("ab O'[-\u3000\x00", max_size=4)  # fmt: skip
COLUMN_LINES = st.lists(st.lists(COLUMN, max_size=5), max_size=6)


def columns_holds(lines: list[list[str]], separator: str, form: str) -> None:
    """Assert that a file in columns gives sentences whose items fit their text, and problems, or an error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.txt")
        path.write_text("".join(separator.join(columns) + "\n" for columns in lines), encoding="utf-8")
        check_annotated_file(path, form)


def check_annotated_file(path: Path, form: str) -> None:
    """Assert that a file is read or refused in one line, and that the items that pass the check pass it again."""
    for sentence in value_or_error(lambda path: list(read_annotation_files(path, form)), str(path)) or []:
        assert sentence.text.strip()
        checked, problems = check_sentence(sentence)
        assert check_sentence(checked) == (checked, [])
        assert all(problem.splitlines() == [problem] for problem in problems)


# The keys of all formats; offsets are often in the text, and names often substrings of it.
ROW_KEYS = [
    "sentence", "text", "content", "input", "sentText", "data", "annotations", "result", "value", "from_id", "to_id",
    "id", "labels", "label", "entities", "entity", "entity_type", "entity_list", "name", "type", "spans", "relation",
    "relation_list", "relations", "subject", "object", "head", "tail", "kg", "spo_list", "predicate", "triple_list",
    "relationMentions", "em1Text", "em2Text", "event", "event_list", "events", "event_type", "trigger", "mentions",
    "word", "span", "role", "arguments", "argument", "start_offset", "end_offset", "start", "end",
]  # fmt: skip
ROW_TEXT = st.sampled_from(["Ann 😀 in Oslo", "Ann", "Oslo", "labels", "relation", "", "trigger"]) | ANY_TEXT
ROW_VALUE = st.recursive(
    ROW_TEXT | st.integers(-2, 15) | SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ROW_KEYS), inner, max_size=4),
    max_leaves=12,
)


def annotated_rows_holds(rows: list[Any], form: str) -> None:
    """Assert that rows with keys of the annotation formats are read or refused."""
    with tempfile.TemporaryDirectory() as folder:
        check_annotated_file(Path(write_lines(Path(folder, "x.jsonl"), rows)), form)


PROPERTIES: dict[Callable[..., None], list[st.SearchStrategy[Any]]] = {
    columns_holds: [
        COLUMN_LINES, st.sampled_from(["\t", " "]), st.sampled_from(["auto", "conll", "conll04"]),
    ],
    annotated_rows_holds: [
        st.lists(st.dictionaries(st.sampled_from(ROW_KEYS), ROW_VALUE, max_size=5), min_size=1, max_size=2),
        st.sampled_from(["auto", *(name for name in FORMATS if not name.startswith("conll"))]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_file_is_read_or_refused_in_one_line(holds: Callable[..., None]) -> None:
    run_for(0, holds, PROPERTIES[holds])


@pytest.mark.slow
@pytest.mark.timeout(share_of_seconds(0.1) + 1200)
@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_random_file_is_read_or_refused_in_one_line(holds: Callable[..., None]) -> None:
    run_for(share_of_seconds(0.03) / len(PROPERTIES), holds, PROPERTIES[holds])
