"""extraction_prompts.py: instructions from schemas, whose wording counts, and what is read from answers."""

import json
from pathlib import Path

import pytest
from demo_pages import extraction_prompts
from text_language.language_detection import language_of

EVENTS = {"layoff": ["company", "time"], "meeting": ["who"]}
OWN = {"tasks": {"ner": {"en": {"instruction": "List: {schema}"}, "zh": {"instruction": "抽取实体。"}}}}


def test_our_wording_names_the_schema_in_both_languages() -> None:
    instruction, text = extraction_prompts.build("ner", ["person", "place"], "Ann.")
    assert "person, place" in instruction
    assert text == "Ann."
    assert "人物、地点" in extraction_prompts.build("ner", ["人物", "地点"], "安。", "zh")[0]
    assert '{"subject": …, "object": …}' in extraction_prompts.build("re", ["born in"], "")[0]
    assert "layoff (company, time); meeting (who)" in extraction_prompts.build("ee", EVENTS, "")[0]
    assert (
        "裁员（公司、时间）；会见"
        in extraction_prompts.build("ee", {"裁员": ["公司", "时间"], "会见": []}, "", "zh")[0]
    )


def test_the_checkpoints_own_wording_goes_first() -> None:
    assert extraction_prompts.build("ner", ["a", "b"], "t", "en", OWN) == ("List: a, b", "t")
    assert extraction_prompts.build("ner", [], "t", "zh", OWN) == ("抽取实体。", "t")  # it has no place for a schema
    assert extraction_prompts.build("re", ["a"], "t", "en", OWN) == extraction_prompts.build("re", ["a"], "t")


def test_braces_in_schema_and_text_are_only_text() -> None:
    instruction, text = extraction_prompts.build("ner", ["{schema}", "{0} %s"], "{x} {{ y }}", "en", OWN)
    assert instruction == "List: {schema}, {0} %s"
    assert text == "{x} {{ y }}"


@pytest.mark.parametrize(
    ("task", "schema", "language", "said"),
    [
        ("xx", ["a"], "en", "no extraction task 'xx'"),
        ("ner", ["a"], "fr", "in 'fr'"),
        ("ner", [], "en", "needs a schema such as `person, place`"),
        ("ee", ["a"], "en", "such as `layoff: company, time"),
        ("re", EVENTS, "en", "needs a schema"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    task: str, schema: extraction_prompts.Schema, language: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        extraction_prompts.build(task, schema, "t", language)


def test_schemas_as_people_type_them() -> None:
    assert extraction_prompts.parse_schema(" person,place ，地点、机构\n", "ner") == ["person", "place", "地点", "机构"]
    assert extraction_prompts.parse_schema("layoff: company, time; meeting: who", "ee") == EVENTS
    assert extraction_prompts.parse_schema("裁员：公司，时间；会见", "ee") == {"裁员": ["公司", "时间"], "会见": []}
    for task, schema in (("ner", ["a", "b c"]), ("ee", EVENTS)):
        assert extraction_prompts.parse_schema(extraction_prompts.typed(schema), task) == schema


def test_answers_are_read_and_shown() -> None:
    answer = ' {"person": ["Ann Lee"], "place": []}\n'
    assert extraction_prompts.read_answer(answer) == {"person": ["Ann Lee"], "place": []}
    assert extraction_prompts.read_answer("```json\n{}\n```") == {}
    for broken in ("", "none", '{"a": ', "}{", "[1]"):
        assert extraction_prompts.read_answer(broken) is None
    found = {
        "person": ["Ann Lee", "Bo"], "born in": [{"subject": "Ann", "object": "Oslo"}],
        "layoff": [{"trigger": "cut", "arguments": {"time": "May"}}], "odd": {"x": 1}, "count": 3, "empty": [],
    }  # fmt: skip
    assert list(extraction_prompts.rows(found)) == [
        ("person", "Ann Lee"), ("person", "Bo"), ("born in", "Ann → Oslo"), ("layoff", "cut (time: May)"),
        ("odd", '{"x": 1}'), ("count", "3"),
    ]  # fmt: skip


def test_every_case_on_file_can_be_asked(repository: Path) -> None:
    suites = {
        name: json.loads((repository / f"examples/cases/{name}.json").read_text())["cases"]
        for name in ("pretraining", "general", "ie")
    }
    assert [len(cases) for cases in suites.values()] == [17, 8, 6]
    for case in suites["ie"]:
        instruction, text = extraction_prompts.build(case["task"], case["schema"], case["text"], case["language"])
        assert text == case["text"]
        assert language_of(text) == language_of(instruction) == case["language"]


def test_the_published_prompts_stand_as_they_were_published(repository: Path, shared_data: Path) -> None:
    published = json.loads((shared_data / "published_cases.json").read_text())["cases"]
    for suite, name, key in (("pretraining", "pretraining", "text"), ("general abilities", "general", "instruction")):
        cases = json.loads((repository / f"examples/cases/{name}.json").read_text())["cases"]
        ours = [(case["group"], case[key], case["published_ending"]) for case in cases]
        theirs = [(c["group"], c["prompt"], c["published_ending"]) for c in published if c["suite"] == suite]
        assert ours == theirs
