"""extraction_schema.py, extraction_form.py: what can be asked for, in whose words, answered in which form."""

import json
from pathlib import Path
from typing import Any

import ie_build
import pytest
from demo_pages import extraction_prompts
from extraction.extraction_form import OURS, Slot, check_extraction, form_of, question
from extraction.extraction_schema import EXAMPLES, MOST_NAMES, Kind, check_schema

FATHER = {"subject_type": "人物", "predicate": "父亲", "object_type": "人物"}
EVENTS = {"layoff": ["company", "time"], "meeting": []}
SCHEMAS: dict[str, Any] = {"ner": ["person", "place"], "re": ["born in", "works for"], "spo": [FATHER], "ee": EVENTS}


# --- schemas ----------------------------------------------------------------------------------------------------------


def test_schemas_of_each_task() -> None:
    assert check_schema("ner", ["person", "地点"]) == (Kind("person"), Kind("地点"))
    assert check_schema("ee", EVENTS) == (Kind("layoff", roles=("company", "time")), Kind("meeting"))
    assert check_schema("spo", [FATHER]) == check_schema("spo", ["人物_父亲_人物"]) == (Kind("父亲", "人物", "人物"),)
    for task, example in EXAMPLES.items():
        assert check_schema(task, json.loads(example))


@pytest.mark.parametrize(
    ("task", "schema", "said"),
    [
        ("kg", ["a"], "there is no task 'kg'; take one of ner, re, spo, ee"),
        ("ner", [], 'empty or no list; the task ner needs one such as ["person", "place"]'),
        ("ner", "person", "empty or no list"),
        ("ner", EVENTS, "empty or no list"),
        ("ee", ["layoff"], 'empty or no object; the task ee needs one such as {"layoff": ["company", "time"]}'),
        ("re", ["born in", 7], "the schema's 7 is of another form"),
        ("re", [" \t"], "is of another form"),
        ("ee", {"layoff": "company"}, "is of another form"),
        ("ee", {"layoff": [["company"]]}, "is of another form"),
        ("spo", ["place_of_birth_of_a_person"], "'place_of_birth_of_a_person' is of another form"),
        ("spo", ["父亲"], "is of another form"),
        ("spo", ["人物__人物"], "is of another form"),
        ("spo", [FATHER | {"more": "x"}], "is of another form"),
        ("spo", [FATHER, "人物_父亲_人物"], "has '父亲', or a role of it, more than once"),
        ("ner", ["person", "person"], "has 'person', or a role of it, more than once"),
        ("ee", {"layoff": ["time", "time"]}, "has 'layoff', or a role of it, more than once"),
        ("ner", ["per\nson"], "holds a control character"),
        ("ee", {"layoff": ["time\x85"]}, "holds a control character"),
        ("ner", ["\ud83d"], "half a character"),
        ("ner", ["x" * 201], "has more than 200 characters"),
        ("ner", [str(i) for i in range(MOST_NAMES + 1)], "more than 500 types and roles; ask for them in several goes"),
        ("ee", {"layoff": [str(i) for i in range(MOST_NAMES)]}, "more than 500 types and roles"),
    ],
)
def test_what_is_no_schema_is_told_in_one_line(task: str, schema: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as told:
        check_schema(task, schema)
    assert said in str(told.value)
    assert len(str(told.value).encode()) < 300


# --- questions --------------------------------------------------------------------------------------------------------


def ask(task: str, extraction: Any = None, text: str = "x", language: str = "auto", schema: Any = None) -> str:
    return question(task, check_schema(task, schema or SCHEMAS[task]), text, language, extraction).instruction


@pytest.mark.parametrize("task", ["ner", "re", "ee"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_demos_and_the_server_ask_alike(task: str, language: str) -> None:
    own = {"tasks": {task: {language: {"instruction": "List {schema}, {0} %s {schema}"}}}}
    for extraction in (None, own, {}):
        asked, _ = extraction_prompts.build(task, SCHEMAS[task], "x", language, extraction)
        assert ask(task, extraction, language=language) == asked


def test_the_schema_is_text_and_nothing_else() -> None:
    own = {"tasks": {"ner": {"en": {"instruction": "List {schema} as {json}."}}}}
    assert ask("ner", own, schema=["{schema}", "{0} %s {{x}}", "\\1"]) == "List {schema}, {0} %s {{x}}, \\1 as {json}."
    assert "father (person, person); born in (person, place)" in ask(
        "spo", schema=["person_father_person", "person_born in_place"]
    )
    assert "裁员（公司、时间）；会见" in ask("ee", text="公司裁员", schema={"裁员": ["公司", "时间"], "会见": []})


def test_whose_words_in_which_language() -> None:
    own = {"tasks": {"ner": {"zh": {"instruction": "抽取{schema}。"}}, "re": {"fr": {"instruction": "Trouvez"}}}}
    assert ask("ner", own, "Ann Lee") == "抽取person、place。"  # the task's only language
    assert ask("re", own, "Ann Lee") == ask("re", text="Ann Lee")
    assert ask("ee", own, "在 Oslo") == ask("ee", language="zh")
    assert ask("ee", own, "在 Oslo", language="en") == ask("ee", text="in Oslo")
    assert ask("ee", own, "Ann Lee (李安娜) left Oslo.") == ask("ee", language="en")
    with pytest.raises(ValueError, match="there is no language 'fr'; take one of en, zh, auto"):
        ask("ner", language="fr")


# --- forms ------------------------------------------------------------------------------------------------------------


def test_what_a_wording_leaves_open() -> None:
    told, untold = (form_of("ner", {"instruction": said}) for said in ("List {schema}.", "Extract the entities."))
    assert told.item == untold.item == (Slot("", "text"),)
    assert (told.every, untold.every) == (True, False)
    assert form_of("ner", {"instruction": "List {schema}.", "answer": {"absent": "left out"}}) == untold


def test_our_own_wordings_are_whole_and_alike() -> None:
    check_extraction(OURS, "ours")
    for task in EXAMPLES:
        en, zh = OURS["tasks"][task]["en"], OURS["tasks"][task]["zh"]
        assert en["answer"] == zh["answer"]
        assert all(said["instruction"].count("{schema}") == 1 for said in (en, zh))


@pytest.mark.parametrize(
    ("task", "shape", "item"),
    [
        ("re", {"<r>": [{"head": "<a>", "tail": "<b>"}]}, (Slot("head", "text"), Slot("tail", "text"))),
        ("re", {"<r>": [{"tail": "<b>", "head": "<a>"}]}, (Slot("tail", "text"), Slot("head", "text"))),
        ("re", {"<r>": [{"s": "<a>", "o": ["<b>"]}]}, (Slot("s", "text"), Slot("o", "list"))),
        ("ner", {"<type>": [{"name": "<name>"}]}, (Slot("name", "text"),)),
        ("ee", {"<type>": ["<trigger>"]}, (Slot("", "text"),)),
        ("ee", {"<type>": [{"<role>": "<name>"}]}, (Slot("", "text", True),)),
        (
            "ee",
            {"<type>": [{"trigger": "<name>", "arguments": {"<role>": "<name>|[<name>]"}}]},
            (Slot("trigger", "text"), Slot("arguments", "either", True)),
        ),
    ],
)
def test_shapes(task: str, shape: Any, item: tuple[Slot, ...]) -> None:
    form = form_of(task, {"instruction": "x", "answer": {"shape": shape}})
    assert form.item == item
    assert [slot.key for slot in form.texts() if slot.key in ("head", "s")] == [
        s.key for s in form.texts()[:1] if s.key in ("head", "s")
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
def test_shapes_that_cannot_be_decoded_are_told(task: str, shape: Any) -> None:
    extraction = {"tasks": {task: {"en": {"instruction": "x", "answer": {"shape": shape}}}}}
    with pytest.raises(
        ValueError, match=rf"^M/extraction.json, {task}, en: the shape .* is none for {task}; write one "
    ):
        check_extraction(extraction, "M/extraction.json")


@pytest.mark.parametrize(
    ("extraction", "said"),
    [
        ({"tasks": []}, "M has not the form"),
        ({"tasks": {"ner": []}}, "M has not the form"),
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
def test_extraction_files_of_another_form_are_told(extraction: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as told:
        check_extraction(extraction, "M")
    assert said in str(told.value)
    check_extraction({}, "M")
    check_extraction({"tasks": {"xx": {"en": 7}, "ner": {"fr": 7}}}, "M")  # nobody asks for these


def test_what_ie_build_writes_is_understood(tmp_path: Path) -> None:
    for task in ("ner", "re"):
        for language, said in ie_build.WORDING[task].items():
            asked = {language: ie_build.Question(said, said, ["a"], ie_build.absent_of(said))}
            written = ie_build.extraction(tmp_path / "extraction.json", task, asked, {language: 70})
            check_extraction(written, "M")
            kinds = check_schema(task, ["a"])
            assert question(task, kinds, "x", language, written).characters == 70
            assert question(task, kinds, "x", language).characters is None
            assert form_of(task, written["tasks"][task][language]) == form_of(task, OURS["tasks"][task][language])


def test_keys_of_relations_that_differ_in_types_alone() -> None:
    kinds = check_schema("spo", ["人物_父亲_人物", "动物_父亲_动物"])
    said = {"instruction": "x", "answer": {"shape": {"<predicate>": [{"subject": "<a>", "object": "<b>"}]}}}
    assert form_of("spo", said).by_key(kinds) == {"父亲": list(kinds)}
    said["answer"] = {"shape": {"<subject_type>_<predicate>_<object_type>": [{"subject": "<a>", "object": "<b>"}]}}
    keys = form_of("spo", said).by_key(kinds)
    assert keys == {"人物_父亲_人物": [kinds[0]], "动物_父亲_动物": [kinds[1]]}
    run_together = check_schema(
        "spo", [dict(zip(FATHER, names, strict=True)) for names in (("a", "b_c", "d"), ("a_b", "c", "d"))]
    )
    with pytest.raises(ValueError, match="'b_c' and 'c' would both be answered as 'a_b_c_d'"):
        question("spo", run_together, "x", "en", {"tasks": {"spo": {"en": said}}})
