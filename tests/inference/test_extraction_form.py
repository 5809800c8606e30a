"""extraction_schema.py, extraction_form.py: valid schemas, instructions, forms of answers."""

import json
from pathlib import Path
from typing import Any

import pytest
from demo_pages import extraction_prompts
from extraction.extraction_form import (
    DEFAULTS,
    AnswerSlot,
    answer_form,
    check_extraction,
    prompts_for_types,
)
from extraction.extraction_schema import EXAMPLES, MAX_NAMES, SchemaType, check_schema
from instruction_data.extraction_wording import answer_entry, read_wording, updated_extraction

FATHER = {"subject_type": "人物", "predicate": "父亲", "object_type": "人物"}
EVENTS = {"layoff": ["company", "time"], "meeting": []}
SCHEMAS: dict[str, Any] = {"ner": ["person", "place"], "re": ["born in", "works for"], "spo": [FATHER], "ee": EVENTS}


def test_check_schema_accepts_the_schemas_of_each_task() -> None:
    assert check_schema("ner", ["person", "地点"]) == (SchemaType("person"), SchemaType("地点"))
    assert check_schema("ee", EVENTS) == (SchemaType("layoff", roles=("company", "time")), SchemaType("meeting"))
    assert (
        check_schema("spo", [FATHER])
        == check_schema("spo", ["人物_父亲_人物"])
        == (SchemaType("父亲", "人物", "人物"),)
    )
    for task, example in EXAMPLES.items():
        assert check_schema(task, json.loads(example))


@pytest.mark.parametrize(
    ("task", "schema", "message"),
    [
        ("ner", [], 'empty or not a list; the task ner needs a schema such as ["person", "place"]'),
        ("ner", "person", "empty or not a list"),
        ("ner", EVENTS, "empty or not a list"),
        (
            "ee",
            ["layoff"],
            'empty or not an object; the task ee needs a schema such as {"layoff": ["company", "time"]}',
        ),
        ("re", ["born in", 7], "the schema's entry 7 does not fit the task"),
        ("re", [" \t"], "does not fit the task"),
        ("ee", {"layoff": "company"}, "does not fit the task"),
        ("ee", {"layoff": [["company"]]}, "does not fit the task"),
        ("spo", ["place_of_birth_of_a_person"], "'place_of_birth_of_a_person' does not fit the task"),
        ("spo", ["父亲"], "does not fit the task"),
        ("spo", ["人物__人物"], "does not fit the task"),
        ("spo", [FATHER | {"more": "x"}], "does not fit the task"),
        ("spo", [FATHER, "人物_父亲_人物"], "repeats '父亲' or one of its roles"),
        ("ner", ["person", "person"], "repeats 'person' or one of its roles"),
        ("ee", {"layoff": ["time", "time"]}, "repeats 'layoff' or one of its roles"),
        ("ner", ["per\nson"], "has a control character"),
        ("ee", {"layoff": ["time\x85"]}, "has a control character"),
        ("ner", ["\ud83d"], "half a surrogate pair"),
        ("ner", ["x" * 201], "has more than 200 characters"),
        (
            "ner",
            [str(i) for i in range(MAX_NAMES + 1)],
            "500 types and roles; split it over several requests",
        ),
        ("ee", {"layoff": [str(i) for i in range(MAX_NAMES)]}, "more than 500 types and roles"),
    ],
)
def test_check_schema_refuses_invalid_schemas_in_one_line(task: str, schema: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        check_schema(task, schema)
    assert message in str(error.value)
    assert len(str(error.value).encode()) < 300


def ask(task: str, extraction: Any = None, text: str = "x", language: str = "auto", schema: Any = None) -> str:
    return prompts_for_types(task, check_schema(task, schema or SCHEMAS[task]), text, language, extraction)[
        0
    ].instruction


@pytest.mark.parametrize("task", ["ner", "re", "ee"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_demos_and_server_write_the_same_instruction(task: str, language: str) -> None:
    own = {"tasks": {task: {language: {"instruction": "List {schema}, {0} %s {schema}"}}}}
    for extraction in (None, own, {}):
        instruction = extraction_prompts.extraction_instruction(task, SCHEMAS[task], language, extraction)
        assert ask(task, extraction, language=language) == instruction


def test_schema_is_inserted_as_plain_text() -> None:
    own = {"tasks": {"ner": {"en": {"instruction": "List {schema} as {json}."}}}}
    assert ask("ner", own, schema=["{schema}", "{0} %s {{x}}", "\\1"]) == "List {schema}, {0} %s {{x}}, \\1 as {json}."
    assert "father (person, person); born in (person, place)" in ask(
        "spo", schema=["person_father_person", "person_born in_place"]
    )
    assert "裁员（公司、时间）；会见" in ask("ee", text="公司裁员", schema={"裁员": ["公司", "时间"], "会见": []})


def test_name_with_a_comma_is_refused_if_the_instruction_lists_the_names() -> None:
    """`film, play` would read as two types; finetune/ie_build.py refuses such names, too."""
    for task, schema, name in (
        ("ner", ["person", "film, play"], "film, play"),
        ("ner", ["电影、戏剧"], "电影、戏剧"),
        ("ee", {"layoff": ["company，firm"]}, "company，firm"),
        ("spo", [{"subject_type": "a", "predicate": "b", "object_type": "c,d"}], "c,d"),
    ):
        with pytest.raises(ValueError, match=f"^the schema's {name!r} contains a comma, which separates the names"):
            ask(task, schema=schema)
    own = {"tasks": {"ner": {"en": {"instruction": "List the entities."}}}}
    assert ask("ner", own, schema=["film, play"]) == "List the entities."


def test_own_instruction_and_language_take_precedence() -> None:
    own = {"tasks": {"ner": {"zh": {"instruction": "抽取{schema}。"}}, "re": {"fr": {"instruction": "Trouvez"}}}}
    assert ask("ner", own, "Ann Lee") == "抽取person、place。"  # the task's only language
    assert ask("re", own, "Ann Lee") == ask("re", text="Ann Lee")
    assert ask("ee", own, "在 Oslo") == ask("ee", language="zh")
    assert ask("ee", own, "在 Oslo", language="en") == ask("ee", text="in Oslo")
    assert ask("ee", own, "Ann Lee (李安娜) left Oslo.") == ask("ee", language="en")


def test_missing_answer_form_gets_the_defaults() -> None:
    explicit, implicit = (
        answer_form("ner", {"instruction": message}) for message in ("List {schema}.", "Extract the entities.")
    )
    assert explicit.item == implicit.item == (AnswerSlot("", "text"),)
    assert (explicit.all_types, implicit.all_types) == (True, False)
    assert answer_form("ner", {"instruction": "List {schema}.", "answer": {"absent": "left out"}}) == implicit


def test_default_instructions_are_complete_in_both_languages() -> None:
    check_extraction(DEFAULTS, "ours")
    for task in EXAMPLES:
        en, zh = DEFAULTS["tasks"][task]["en"], DEFAULTS["tasks"][task]["zh"]
        assert en["answer"] == zh["answer"]
        assert all(message["instruction"].count("{schema}") == 1 for message in (en, zh))


@pytest.mark.parametrize(
    ("task", "shape", "item"),
    [
        ("re", {"<r>": [{"head": "<a>", "tail": "<b>"}]}, (AnswerSlot("head", "text"), AnswerSlot("tail", "text"))),
        ("re", {"<r>": [{"tail": "<b>", "head": "<a>"}]}, (AnswerSlot("tail", "text"), AnswerSlot("head", "text"))),
        ("re", {"<r>": [{"s": "<a>", "o": ["<b>"]}]}, (AnswerSlot("s", "text"), AnswerSlot("o", "list"))),
        ("ner", {"<type>": [{"name": "<name>"}]}, (AnswerSlot("name", "text"),)),
        ("ee", {"<type>": ["<trigger>"]}, (AnswerSlot("", "text"),)),
        ("ee", {"<type>": [{"<role>": "<name>"}]}, (AnswerSlot("", "text", True),)),
        (
            "ee",
            {"<type>": [{"trigger": "<name>", "arguments": {"<role>": "<name>|[<name>]"}}]},
            (AnswerSlot("trigger", "text"), AnswerSlot("arguments", "either", True)),
        ),
    ],
)
def test_answer_form_reads_valid_shapes(task: str, shape: Any, item: tuple[AnswerSlot, ...]) -> None:
    form = answer_form(task, {"instruction": "x", "answer": {"shape": shape}})
    assert form.item == item
    assert [slot.key for slot in form.name_slots() if slot.key in ("head", "s")] == [
        s.key for s in form.name_slots()[:1] if s.key in ("head", "s")
    ]


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("ner", {}),
        ("ner", ["<name>"]),
        ("ner", {"person": ["<name>"]}),
        ("ner", {"<type>": "<name>"}),
        ("ner", {"<type>": {"<name>": "<x>"}}),
        ("ner", {"<type>": ["<name>", "<name>"]}),
        ("ner", {"<type>": ["name"]}),
        ("ner", {"<type>": [{}]}),
        ("ner", {"<type>": [{"a": "<x>", "b": "<y>"}]}),
        ("ner", {"<type>": [{"<role>": "<name>"}]}),
        ("re", {"<r>": ["<name>"]}),
        ("re", {"<r>": [{"subject": "<a>", "object": {"name": "<b>"}}]}),
        ("re", {"<r>": [{"<a>": "<a>", "object": "<b>"}]}),
        ("re", {"<r>": [{"": "<a>", "object": "<b>"}]}),
        ("re", {"<r>": [{"subject": "<a>", "object": []}]}),
        ("spo", {"<subject_type>": [{"subject": "<a>", "object": "<b>"}]}),
        ("ee", {"<type>": [{"a": "<x>", "b": "<y>"}]}),
        ("ee", {"<type>": [{"a": {"<x>": "<y>"}, "b": {"<x>": "<y>"}}]}),
    ],
)
def test_answer_form_refuses_shapes_that_cannot_be_decoded(task: str, shape: Any) -> None:
    extraction = {"tasks": {task: {"en": {"instruction": "x", "answer": {"shape": shape}}}}}
    with pytest.raises(
        ValueError, match=rf"^M/extraction.json, {task}, en: the shape .* does not fit the task {task}; write "
    ):
        check_extraction(extraction, "M/extraction.json")


@pytest.mark.parametrize(
    ("extraction", "message"),
    [
        ({"tasks": []}, "M does not have the form"),
        ({"tasks": {"ner": []}}, "M does not have the form"),
        ({"tasks": {"ner": {"en": "Extract."}}}, "M, ner, en: an object such as"),
        ({"tasks": {"ner": {"zh": {"instruction": " "}}}}, "M, ner, zh: an object such as"),
        ({"tasks": {"ner": {"zh": {"instruction": "x", "answer": {"absent": "null"}}}}}, "\"absent\" is 'null'; write"),
        (
            {"tasks": {"ner": {"zh": {"instruction": "x", "text_characters": 0}}}},
            '"text_characters" is 0; write a number',
        ),
        ({"tasks": {"ner": {"zh": {"instruction": "x", "text_characters": "9"}}}}, "\"text_characters\" is '9'; write"),
    ],
)
def test_check_extraction_refuses_invalid_files(extraction: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        check_extraction(extraction, "M")
    assert message in str(error.value)
    check_extraction({}, "M")
    check_extraction({"tasks": {"xx": {"en": 7}, "ner": {"fr": 7}}}, "M")  # unknown tasks and languages are ignored


@pytest.mark.parametrize("task", ["ner", "re", "spo", "ee"])
@pytest.mark.parametrize("style", ["prose", "schema_json"])
def test_extraction_json_of_ie_build_is_accepted(tmp_path: Path, task: str, style: str) -> None:
    schema = {"spo": ["a_b_c"], "ee": {"a": ["b"]}}.get(task, ["a"])
    for language, wording in read_wording("", task, style).items():
        entry = {"instruction": wording.instruction, "answer": answer_entry(task, style, wording)}
        new = {language: entry | {"text_characters": 70}}
        written = updated_extraction(tmp_path / "extraction.json", task, style, new)
        check_extraction(written, "M")
        types = check_schema(task, schema)
        assert prompts_for_types(task, types, "x", language, written)[0].usual_characters == 70
        assert prompts_for_types(task, types, "x", language)[0].usual_characters is None
        assert answer_form(task, written["tasks"][task][language]) == answer_form(
            task, DEFAULTS["tasks"][task][language]
        )


def test_relations_that_differ_in_types_share_or_split_keys() -> None:
    types = check_schema("spo", ["人物_父亲_人物", "动物_父亲_动物"])
    message = {"instruction": "x", "answer": {"shape": {"<predicate>": [{"subject": "<a>", "object": "<b>"}]}}}
    assert answer_form("spo", message).types_by_key(types) == {"父亲": list(types)}
    message["answer"] = {"shape": {"<subject_type>_<predicate>_<object_type>": [{"subject": "<a>", "object": "<b>"}]}}
    keys = answer_form("spo", message).types_by_key(types)
    assert keys == {"人物_父亲_人物": [types[0]], "动物_父亲_动物": [types[1]]}
    run_together = check_schema(
        "spo", [dict(zip(FATHER, names, strict=True)) for names in (("a", "b_c", "d"), ("a_b", "c", "d"))]
    )
    with pytest.raises(ValueError, match="'b_c' and 'c' have the same answer key 'a_b_c_d'"):
        prompts_for_types("spo", run_together, "x", "en", {"tasks": {"spo": {"en": message}}})


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("ner", ["person", "place"]),
        ("re", ["born in", "works for"]),
        ("spo", [FATHER]),
        (
            "ee",
            [
                {"event_type": "layoff", "trigger": True, "arguments": ["company", "time"]},
                {"event_type": "meeting", "trigger": True, "arguments": []},
            ],
        ),
    ],
)
def test_schema_json_asks_with_one_object_of_instruction_schema_and_text(task: str, expected: list[Any]) -> None:
    extraction = {"tasks": {task: {"en": {"instruction": "Extract; {braces} stay.", "style": "schema_json"}}}}
    check_extraction(extraction, "extraction.json")
    [prompt] = prompts_for_types(task, check_schema(task, SCHEMAS[task]), "x", "en", extraction)
    content, input = prompt.question('Ann "Lee"')
    assert input == ""
    assert json.loads(content) == {
        "instruction": "Extract; {braces} stay.", "schema": expected, "input": 'Ann "Lee"',
    }  # fmt: skip
    assert list(json.loads(content)) == ["instruction", "schema", "input"]
    assert prompt.form.all_types


@pytest.mark.parametrize(
    ("number", "size", "sizes"),
    [(6, 6, [6]), (8, 6, [8]), (9, 6, [6, 3]), (5, 4, [5]), (6, 4, [4, 2]), (3, 1, [1, 1, 1])],
)
def test_schema_json_asks_in_batches_and_few_types_join_the_last(number: int, size: int, sizes: list[int]) -> None:
    entry = {"instruction": "Extract", "style": "schema_json", "schema_batch": size}
    types = check_schema("ner", [f"type {index}, with a comma" for index in range(number)])
    prompts = prompts_for_types("ner", types, "x", "en", {"tasks": {"ner": {"en": entry}}})
    assert [len(prompt.types) for prompt in prompts] == sizes
    assert tuple(type_ for prompt in prompts for type_ in prompt.types) == types


@pytest.mark.parametrize("entry", [{"style": "xml"}, {"style": []}, {"schema_batch": 0}, {"schema_batch": True}])
def test_invalid_style_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r'extraction\.json, ner, en: "style" is'):
        check_extraction({"tasks": {"ner": {"en": {"instruction": "Extract"} | entry}}}, "extraction.json")
