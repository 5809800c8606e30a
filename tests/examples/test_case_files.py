"""case_files.py: files of cases in JSON, JSONL and as suites, and errors with the place of the case."""

import json
from pathlib import Path
from typing import Any

import pytest
from demo_pages.case_files import case_error, case_text, case_title, read_suite

CASES: list[dict[str, Any]] = [
    {"instruction": "Translate.", "input": "x"},
    {"text": "Ann"},
    {"task": "ner", "schema": ["人物"], "text": "小安在奥斯陆。"},
]


def test_rows_and_suites_give_the_same_cases(tmp_path: Path) -> None:
    """The files are a JSON list, JSONL and a suite; the suite's decoding takes precedence over the given one."""
    contents = {
        "list.json": json.dumps(CASES, indent=1),
        "lines.jsonl": "\n".join(json.dumps(case) for case in CASES),
        "suite.json": json.dumps({"decoding": {"num_beams": 2}, "cases": CASES, "source": "a paper"}),
    }
    suites = []
    for name, content in contents.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        suites.append(read_suite(tmp_path / name, {"num_beams": 3, "max_new_tokens": 9}))
    assert all(suite.cases == CASES for suite in suites)
    assert [suite.decoding["num_beams"] for suite in suites] == [3, 3, 2]
    assert [suite.source for suite in suites] == ["", "", "a paper"]
    assert suites[1].places == [f"{tmp_path}/lines.jsonl:{line}" for line in (1, 2, 3)]
    assert suites[2].places[2] == f"{tmp_path}/suite.json, case 3"


def test_language_and_title_of_a_case_have_defaults() -> None:
    instruction, text, is_instruction = case_text(CASES[2], {})
    assert (instruction.startswith("请从输入文本中找出下列类型的实体：人物"), text) == (True, "小安在奥斯陆。")
    assert is_instruction
    assert [case_title(case) for case in [*CASES, {"group": "g", "text": "x"}]] == [
        "instruction",
        "text",
        "ner (zh)",
        "g",
    ]


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"prompt": "x"}, 'has no text under \'text\' (keys: prompt); a case is {"instruction", "input"}, {"text"} or'),
        ({"text": "x", "schema": ["a"]}, 'has a schema but no task; add "task": "ner", "re" or "ee"'),
        ({"task": "ner", "schema": ["a"]}, "has no text under 'text' (keys: task, schema)"),
        ({"task": "ner", "schema": "person", "text": "x"}, "has a schema that is not a list of types"),
        ({"task": "ee", "schema": {"layoff": "who"}, "text": "x"}, "has a schema that is not a list of types"),
        ({"instruction": 5}, "has no text under 'instruction'"),
        ({"instruction": "a", "input": ["b"]}, "has an input that is not text"),
        ({"text": " "}, "has no text under 'text'"),
        (
            {"text": "x", "decoding": {"beams": 4}},
            "has a decoding that cannot be used: there is no decoding setting beams",
        ),
        ({"text": "x", "decoding": {"num_beams": [4]}}, "cannot be used: num_beams takes a number, not [4]"),
        (
            {"text": "x", "decoding": {"do_sample": "false"}},
            "cannot be used: do_sample takes true or false, not 'false'",
        ),
        ({"text": "x", "decoding": 4}, "has a decoding that is not an object"),
    ],
)
def test_row_that_is_not_a_case_is_refused_with_file_and_line(tmp_path: Path, row: dict[str, Any], error: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "x"}\n' + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_suite(file)
    assert str(caught.value).startswith(f"{file}:2 has ")
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_suite_without_a_list_of_cases_is_refused(tmp_path: Path) -> None:
    (tmp_path / "suite.json").write_text('{"cases": {"text": "x"}}')
    with pytest.raises(ValueError, match=r"suite\.json:1 has cases that are not a list"):
        read_suite(tmp_path / "suite.json")
    assert case_error("x").startswith("is not a JSON object")
