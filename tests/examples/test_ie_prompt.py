"""ie_prompt.py and extraction_prompts.py: instructions from schemas, wording of checkpoints, reading of answers."""

import json
from pathlib import Path

import pytest
from conftest import RunScript
from demo_pages import extraction_prompts
from demo_pages.extraction_prompts import extraction_instruction, extraction_question
from text_language.language_detection import language_of

EVENTS = {"layoff": ["company", "time"], "meeting": ["who"]}
OWN = {"tasks": {"ner": {"en": {"instruction": "List: {schema}"}, "zh": {"instruction": "抽取实体。"}}}}


def test_instruction_names_the_schema_in_both_languages() -> None:
    assert "person, place" in extraction_instruction("ner", ["person", "place"])
    assert "人物、地点" in extraction_instruction("ner", ["人物", "地点"], "zh")
    assert '{"subject": …, "object": …}' in extraction_instruction("re", ["born in"])
    assert "layoff (company, time); meeting (who)" in extraction_instruction("ee", EVENTS)
    assert "裁员（公司、时间）；会见" in extraction_instruction("ee", {"裁员": ["公司", "时间"], "会见": []}, "zh")


def test_wording_of_the_checkpoint_replaces_the_default() -> None:
    assert extraction_instruction("ner", ["a", "b"], "en", OWN) == "List: a, b"
    assert extraction_instruction("ner", [], "zh", OWN) == "抽取实体。"  # this wording has no {schema}
    assert extraction_instruction("re", ["a"], "en", OWN) == extraction_instruction("re", ["a"])


def test_schema_json_asks_with_one_object_and_no_input() -> None:
    for task, schema, types in (
        ("ner", ["a, b", "c"], ["a, b", "c"]),
        ("ee", {"layoff": ["time"]}, [{"event_type": "layoff", "trigger": True, "arguments": ["time"]}]),
    ):
        own = {"tasks": {task: {"en": {"instruction": "Extract.", "style": "schema_json"}}}}
        instruction, input = extraction_question(task, schema, 'Ann "Lee"', "en", own)
        assert instruction == json.dumps({"instruction": "Extract.", "schema": types, "input": 'Ann "Lee"'})
        assert input == ""
    assert extraction_question("ner", ["a"], "Ann", "en", OWN) == ("List: a", "Ann")


def test_braces_in_the_schema_are_not_replaced() -> None:
    assert extraction_instruction("ner", ["{schema}", "{0} %s"], "en", OWN) == "List: {schema}, {0} %s"


@pytest.mark.parametrize(
    ("task", "schema", "language", "message"),
    [
        ("xx", ["a"], "en", "there is no extraction task 'xx' in 'en'; the tasks are ner, re, ee, the languages"),
        ("ner", ["a"], "fr", "in 'fr'"),
        ("ner", [], "en", "needs a schema such as `person, place`"),
        ("ee", ["a"], "en", "such as `layoff: company, time"),
        ("re", EVENTS, "en", "needs a schema"),
        (
            "ner",
            ["person", "film, play"],
            "en",
            "the schema's 'film, play' contains a comma, which separates the names",
        ),
        ("ee", {"裁员": ["公司、部门"]}, "zh", "the schema's '公司、部门' contains a comma"),
    ],
)
def test_unknown_task_or_unsuitable_schema_is_refused(
    task: str, schema: extraction_prompts.Schema, language: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        extraction_instruction(task, schema, language)


def test_schema_is_read_from_text() -> None:
    assert extraction_prompts.parse_schema(" person,place ，地点、机构\n", "ner") == ["person", "place", "地点", "机构"]
    assert extraction_prompts.parse_schema("layoff: company, time; meeting: who", "ee") == EVENTS
    assert extraction_prompts.parse_schema("裁员：公司，时间；会见", "ee") == {"裁员": ["公司", "时间"], "会见": []}
    for task, schema in (("ner", ["a", "b c"]), ("ee", EVENTS)):
        assert extraction_prompts.parse_schema(extraction_prompts.schema_text(schema), task) == schema


def test_items_are_read_from_answers() -> None:
    answer = ' {"person": ["Ann Lee"], "place": []}\n'
    assert extraction_prompts.read_answer(answer) == {"person": ["Ann Lee"], "place": []}
    assert extraction_prompts.read_answer("```json\n{}\n```") == {}
    for broken in ("", "none", '{"a": ', "}{", "[1]"):
        assert extraction_prompts.read_answer(broken) is None
    found = {
        "person": ["Ann Lee", "Bo"], "born in": [{"subject": "Ann", "object": "Oslo"}],
        "layoff": [{"trigger": "cut", "arguments": {"time": "May"}}], "odd": {"x": 1}, "count": 3, "empty": [],
    }  # fmt: skip
    assert list(extraction_prompts.found_items(found)) == [
        ("person", "Ann Lee"), ("person", "Bo"), ("born in", "Ann → Oslo"), ("layoff", "cut (time: May)"),
        ("odd", '{"x": 1}'), ("count", "3"),
    ]  # fmt: skip


def test_every_case_has_an_instruction_in_the_language_of_its_text(repository: Path) -> None:
    suites = {
        name: json.loads((repository / f"examples/cases/{name}.json").read_text())["cases"]
        for name in ("pretraining", "general", "ie", "editing")
    }
    assert [len(cases) for cases in suites.values()] == [17, 8, 10, 1]
    for case in suites["ie"][4:]:
        instruction = extraction_instruction(case["task"], case["schema"], case["language"])
        assert language_of(case["text"]) == language_of(instruction) == case["language"]


def test_published_cases_equal_the_published_prompts(repository: Path, shared_data: Path) -> None:
    published = json.loads((shared_data / "published_cases.json").read_text())["cases"]
    for suite, name, key in (("pretraining", "pretraining", "text"), ("general abilities", "general", "instruction")):
        cases = json.loads((repository / f"examples/cases/{name}.json").read_text())["cases"]
        ours = [(case["group"], case[key], case["published_ending"]) for case in cases]
        theirs = [(c["group"], c["prompt"], c["published_ending"]) for c in published if c["suite"] == suite]
        assert ours == theirs


def test_published_extraction_cases_request_four_answer_formats_for_one_sentence(repository: Path) -> None:
    """The cases have the published decoding; all suites name the section of the README with the published answers."""
    suite = json.loads((repository / "examples/cases/ie.json").read_text())
    cases = suite["cases"][:4]
    asked = [
        "(事件触发词,事件类型,[(事件论元,论元角色)])",
        "（实体，实体类型）",
        "JSON字符串",
        '"输入中包含的关系三元组是：',
    ]
    assert all(form in case["instruction"] for form, case in zip(asked, cases, strict=True))
    assert len({case["input"] for case in cases}) == 1
    assert cases[0]["input"].startswith("John昨天在纽约的咖啡馆见到了他的朋友Merry。")
    assert [case["decoding"]["num_beams"] for case in cases] == [4, 2, 4, 4]
    assert {case["decoding"]["repetition_penalty"] for case in cases} == {1.3}
    for name, section in (("pretraining", "2.1"), ("ie", "2.2"), ("general", "2.3"), ("editing", "2.4")):
        source = json.loads((repository / f"examples/cases/{name}.json").read_text())["source"]
        assert source.startswith(f"https://github.com/zjunlp/KnowLM/blob/main/README.md, section {section}")


def test_command_prints_one_instruction_row(run_script: RunScript, tmp_path: Path) -> None:
    """The instruction has the language of the text and the wording of --extraction_path; errors are one line."""
    own = tmp_path / "extraction.json"
    own.write_text(json.dumps(OWN), encoding="utf-8")
    malformed = tmp_path / "malformed.json"
    malformed.write_text('{"tasks": {"ner": ["List"]}}', encoding="utf-8")
    english = ("--task", "ner", "--schema", "person, place", "--text", "Ann met Bo.")
    default = json.loads(run_script("examples/ie_prompt.py", *english).stdout)
    instruction = extraction_instruction("ner", ["person", "place"])
    assert default == {"instruction": instruction, "input": "Ann met Bo."}
    worded = json.loads(run_script("examples/ie_prompt.py", *english, "--extraction_path", own).stdout)
    assert worded == {"instruction": "List: person, place", "input": "Ann met Bo."}
    chinese = ("--task", "ner", "--text", "小安在奥斯陆。", "--extraction_path", own)
    assert run_script("examples/ie_prompt.py", *chinese).stdout == (
        '{"instruction": "抽取实体。", "input": "小安在奥斯陆。"}\n'
    )
    for arguments, error in (
        (("--task", "ner", "--text", "Ann"), "error: the task ner needs a schema such as `person, place`"),
        ((*english, "--extraction_path", tmp_path / "none.json"), "none.json does not exist"),
        ((*english, "--extraction_path", __file__), "is not JSON"),
        ((*english, "--extraction_path", malformed), "does not have the form"),
    ):
        done = run_script("examples/ie_prompt.py", *arguments, status=2)
        assert error in done.stderr
        assert done.stderr.count("\n") == 1
