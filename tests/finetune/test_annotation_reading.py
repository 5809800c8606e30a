"""Annotated sentences in rows of data sets, checks of annotations, and errors for malformed rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from annotation_reading.annotated_sentences import AnnotatedSentence, Entity, Event, Mention, Relation
from annotation_reading.annotation_checks import check_sentence
from annotation_reading.annotation_files import FORMATS, read_annotation_files, recognise_format

ANN = "Ann Lee was born in Oslo."
OWN = {
    "sentence": ANN,
    "entity_list": [{"name": "Ann Lee", "type": "person", "spans": [[0, 7]]}, {"name": "Oslo", "type": "place"}],
    "relation_list": [
        {
            "subject": "Ann Lee",
            "relation": "born in",
            "object": "Oslo",
            "subject_spans": [[0, 7]],
            "object_type": "place",
        }
    ],
    "event_list": [
        {
            "type": "birth",
            "trigger": "born",
            "trigger_spans": [[12, 16]],
            "arguments": [{"role": "where", "name": "Oslo"}],
        },
        {"type": "stay"},
    ],
}
# A published example of each data set of which no file is at hand.
DUIE = {
    "text": "王雪纯是87版《红楼梦》中晴雯的配音者，她是《正大综艺》的主持人",
    "spo_list": [
        {
            "predicate": "配音",
            "subject": "王雪纯",
            "subject_type": "娱乐人物",
            "object": {"@value": "晴雯", "inWork": "红楼梦"},
            "object_type": {"@value": "人物", "inWork": "影视作品"},
        },
        {
            "predicate": "主持人",
            "subject": "正大综艺",
            "subject_type": "电视综艺",
            "object": {"@value": "王雪纯"},
            "object_type": {"@value": "人物"},
        },
    ],
}
DUEE = {
    "text": "雀巢裁员4000人：时代抛弃你时，连招呼都不会打！",
    "id": "409389c96efe78d6af1c86e0450fd2d7",
    "event_list": [
        {
            "event_type": "组织关系-裁员",
            "trigger": "裁员",
            "trigger_start_index": 2,
            "arguments": [
                {"argument_start_index": 0, "role": "裁员方", "argument": "雀巢", "alias": []},
                {"argument_start_index": 4, "role": "裁员人数", "argument": "4000人", "alias": []},
            ],
            "class": "组织关系",
        }
    ],
}
NYT = {
    "sentText": "Bobby Fischer dished out in March at a news conference in Reykjavik , Iceland .",
    "relationMentions": [
        {"em1Text": "Bobby Fischer", "em2Text": "Iceland", "label": "/people/person/nationality"},
        {"em1Text": "Iceland", "em2Text": "Bobby Fischer", "label": "None"},
    ],
    "entityMentions": [{"start": 0, "label": "PERSON", "text": "Bobby Fischer"}],
}
INSTRUCTIE = {
    "id": "841ef2af4cfe766dd9295fb7daf321c2",
    "cate": "天文对象",
    "text": "NGC1313 is a galaxy in the constellation of Reticulum.",
    "relation": [
        {
            "head": "NGC1313",
            "head_type": "astronomical object type",
            "relation": "constellation",
            "tail": "Reticulum",
            "tail_type": "astronomical object type",
        }
    ],
}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_one(folder: Path, row: Any, form: str) -> AnnotatedSentence:
    """Return the sentence of a row whose format is recognised as `form`."""
    path = write(folder, row)
    assert recognise_format(path) == form
    (sentence,) = read_annotation_files(path)
    assert list(read_annotation_files(path, form)) == [sentence]
    assert sentence.location == f"{path}:1"
    return sentence


def test_own_rows_have_entities_relations_and_events_with_places(tmp_path: Path) -> None:
    sentence = read_one(tmp_path, OWN, "json")
    ann, oslo = Mention("Ann Lee", ((0, 7),)), Mention("Oslo")
    assert sentence == AnnotatedSentence(
        ANN,
        "en",
        sentence.location,
        (Entity("person", ann), Entity("place", oslo)),
        (Relation("born in", ann, oslo, "", "place"),),
        (Event("birth", Mention("born", ((12, 16),)), (("where", oslo),)), Event("stay", None)),
    )
    assert check_sentence(sentence) == (sentence, [])
    (entities_only,) = read_annotation_files(write(tmp_path, {"sentence": ANN, "entity_list": []}), language="zh")
    assert entities_only[:6] == (ANN, "zh", sentence.location, (), None, None)


@pytest.mark.parametrize(("name", "count"), [("ai/train", 525), ("literature/test", 2215), ("music/test", 3223)])
def test_crossner_json_is_read_completely(shared_data: Path, name: str, count: int) -> None:
    path = shared_data / f"crossner/{name}.json"
    found = list(read_annotation_files(path))
    for sentence, row in zip(found, json.loads(path.read_text(encoding="utf-8")), strict=True):
        assert check_sentence(sentence) == (sentence, [])
        assert (sentence.text, sentence.relations, sentence.events) == (row["sentence"], None, None)
        names = [{"name": entity.mention.text, "type": entity.type} for entity in sentence.entities or ()]
        assert names == row["entity_list"]
    assert sum(len(sentence.entities or ()) for sentence in found) == count


@pytest.mark.parametrize(
    ("split", "texts", "events", "arguments"), [("train", 2732, 4682, 15607), ("test", 900, 1632, 5078)]
)
def test_fewfc_events_are_read_with_places(
    shared_data: Path, split: str, texts: int, events: int, arguments: int
) -> None:
    path = shared_data / f"real/events/fewfc_{split}.jsonl"
    assert recognise_format(path) == "fewfc"
    found = list(read_annotation_files(path))
    assert [check_sentence(sentence) for sentence in found] == [(sentence, []) for sentence in found]
    all_events = [event for sentence in found for event in sentence.events or ()]
    assert (len(found), len(all_events), sum(len(event.arguments) for event in all_events)) == (
        texts,
        events,
        arguments,
    )
    assert {sentence.language for sentence in found} == {"zh"}
    assert all(event.trigger and len(event.trigger.spans) == 1 for event in all_events)


# Items of the published samples, counted in the files.
IEPILE = {"NER": (6, 3, 0, 0), "RE": (6, 0, 9, 0), "SPO": (5, 0, 6, 0), "KG": (5, 0, 32, 0), "EE": (6, 0, 0, 9)}


@pytest.mark.parametrize("task", IEPILE)
def test_iepile_samples_are_read_completely(shared_data: Path, task: str) -> None:
    path = shared_data / f"iepile/{task}/sample.json"
    assert recognise_format(path) == "iepile"
    found = list(read_annotation_files(path))
    counts = [sum(len(items or ()) for items in lists) for lists in list(zip(*found, strict=True))[3:6]]
    assert (len(found), *counts) == IEPILE[task]
    assert [problem for sentence in found for problem in check_sentence(sentence)[1]] == []
    if task == "SPO":
        first = (found[0].relations or ())[0]
        assert first == Relation("作者", Mention("邪少兵王"), Mention("冰火未央"), "图书作品", "人物")
    if task == "EE":
        arguments = (("裁员人数", Mention("900余人")), ("时间", Mention("5月份")))
        assert (found[0].events or ())[0] == Event("组织关系-裁员", Mention("裁员"), arguments)


def test_duie_object_with_slots_becomes_a_relation_per_slot(tmp_path: Path) -> None:
    sentence = read_one(tmp_path, DUIE, "duie")
    singer = Mention("王雪纯")
    assert sentence.relations == (
        Relation("配音", singer, Mention("晴雯"), "娱乐人物", "人物"),
        Relation("配音_inWork", singer, Mention("红楼梦"), "娱乐人物", "影视作品"),
        Relation("主持人", Mention("正大综艺"), singer, "电视综艺", "人物"),
    )
    assert check_sentence(sentence) == (sentence, [])
    plain = {"predicate": "p", "subject": "王雪纯", "object": "晴雯"}  # DuIE 1.0
    row = {"text": DUIE["text"], "spo_list": [plain, plain | {"object": {"@value": "晴雯", "inWork": ""}}]}
    assert read_one(tmp_path, row, "duie").relations == (Relation("p", singer, Mention("晴雯")),) * 2


def test_duee_events_have_places(tmp_path: Path) -> None:
    sentence = read_one(tmp_path, DUEE, "duee")
    arguments = (("裁员方", Mention("雀巢", ((0, 2),))), ("裁员人数", Mention("4000人", ((4, 9),))))
    assert sentence.events == (Event("组织关系-裁员", Mention("裁员", ((2, 4),)), arguments),)
    assert check_sentence(sentence) == (sentence, [])
    without_offsets = {
        "event_type": "裁员",
        "arguments": [{"role": "方", "argument": "雀巢", "argument_start_index": -1}],
    }
    event = read_one(tmp_path, {"text": DUEE["text"], "event_list": [without_offsets]}, "duee").events
    assert event == (Event("裁员", None, (("方", Mention("雀巢")),)),)


def test_nyt_rows_of_both_forms_are_read(tmp_path: Path) -> None:
    triple = Relation("/people/person/nationality", Mention("Bobby Fischer"), Mention("Iceland"))
    sentence = read_one(tmp_path, NYT, "nyt")
    assert (sentence.entities, sentence.relations) == ((Entity("PERSON", Mention("Bobby Fischer")),), (triple,))
    row = {"text": NYT["sentText"], "triple_list": [["Bobby Fischer", "/people/person/nationality", "Iceland"]]}
    assert read_one(tmp_path, row, "nyt")[3:5] == (None, (triple,))


def test_instructie_rows_of_all_forms_are_read(tmp_path: Path) -> None:
    kind = "astronomical object type"
    triple = Relation("constellation", Mention("NGC1313"), Mention("Reticulum"), kind, kind)
    assert read_one(tmp_path, INSTRUCTIE, "instructie").relations == (triple,)
    row = {"id": "1", "cate": "x", "input": INSTRUCTIE["text"], "kg": [["NGC1313", "constellation", "Reticulum"]]}
    assert read_one(tmp_path, row, "instructie").relations == (triple._replace(subject_type="", object_type=""),)


NO_TYPE = Entity(" ", Mention("Ann"))


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (NO_TYPE, "entity 'Ann' has no type"),
        (Entity("x", Mention(" ")), "entity ' ' has no name"),
        (Entity("x", Mention("Bob\n")), r"entity 'Bob\n' is not in the text"),
        (Entity("x", Mention("Ann", ((0, 4),))), "entity 'Ann' has the span [0, 4], where the text is 'Ann '"),
        (Entity("x", Mention("Ann", ((0, 26),))), "entity 'Ann' has the span [0, 26], but the text has 25 characters"),
        (Entity("x", Mention("Ann", ((-25, -22),))), "the span [-25, -22], but the text has 25 characters"),
        (Entity("x", Mention("", ((3, 3),))), "entity '' has the empty span [3, 3]"),
        (Entity("x", Mention("Ann", ((0, 10**4000),))), "entity 'Ann' has the span [0, huge], but"),
        (Entity("x", Mention("Lee Ann", ((4, 7), (0, 3)))), "entity 'Lee Ann' has spans that overlap or are not in"),
        (
            Entity("x", Mention("Ann is", ((0, 3), (8, 11)))),
            "has the span [0, 3], [8, 11], where the text is 'Ann was'",
        ),
        (Entity("x", Mention("y" * 90)), f"entity '{'y' * 59}…' is not in the text"),
        (Relation("r", Mention("Ann"), Mention("Bob")), "relation 'r' has the object 'Bob', which is not in the text"),
        (Relation("", Mention("Ann"), Mention("Lee")), "relation '' has no type"),
        (Event("e", Mention("Bob")), "event 'e' has the trigger 'Bob', which is not in the text"),
    ],
)
def test_bad_item_is_removed_and_described(item: Any, problem: str) -> None:
    items: dict[str, Any] = {{Entity: "entities", Relation: "relations", Event: "events"}[type(item)]: (item,)}
    empty = AnnotatedSentence(ANN, "en", "a.json:3", (), (), (), ("a.json:3 earlier problem",))
    sentence = empty._replace(**items)
    checked, problems = check_sentence(sentence)
    assert checked == empty._replace(problems=())
    assert problems[0] == "a.json:3 earlier problem"
    assert problems[1].startswith("a.json:3 ") and problem in problems[1] and len(problems) == 2
    assert "\n" not in problems[1]


def test_bad_argument_is_removed_from_its_event() -> None:
    good = ("where", Mention("Oslo", ((20, 24),)))
    event = Event("e", None, (("who", Mention("Bob")), good, ("", Mention("Ann"))))
    checked, problems = check_sentence(AnnotatedSentence(ANN, "en", "a.json:3", events=(event,)))
    assert checked.events == (Event("e", None, (good,)),)
    assert problems == [
        "a.json:3 event 'e' has the argument 'who' 'Bob', which is not in the text",
        "a.json:3 event 'e' has no role",
    ]


def test_discontinuous_mention_is_spelled_by_its_fragments() -> None:
    for text in ("Ann was", "Annwas"):  # written with or without spaces
        entity = Entity("x", Mention(text, ((0, 3), (8, 11))))
        sentence = AnnotatedSentence(ANN, "en", "a.json:3", (entity,))
        assert check_sentence(sentence) == (sentence, [])


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        (
            "json",
            {"sentence": 7},
            r"1 has no text under 'sentence' \(keys: sentence\); {\"sentence\", \"entity_list\"",
        ),
        ("json", {"sentence": ANN}, "has no list under 'entity_list', 'relation_list', 'event_list'"),
        ("json", {"sentence": ANN, "entity_list": {}}, "has no list under 'entity_list'"),
        ("json", {"sentence": ANN, "entity_list": ["Ann"]}, "'Ann' under 'entity_list', which is not a JSON object"),
        ("json", {"sentence": ANN, "entity_list": [{"name": "Ann"}]}, r"has no text under 'type' \(keys: name\)"),
        ("json", {"sentence": ANN, "entity_list": [{"type": "x", "name": "Ann", "spans": [0, 3]}]}, "not a list of"),
        (
            "json",
            {"sentence": ANN, "entity_list": [{"type": "x", "name": "A", "spans": [[0, "3"]]}]},
            "pair of integers",
        ),
        ("iepile", {"text": ANN}, "has no list under 'entity', 'relation' or 'event'"),
        ("iepile", {"text": ANN, "relation": [["Ann", "r"]]}, "which is not a list of three texts"),
        ("instructie", {"text": ANN}, "has no list under 'kg'"),
        ("duie", {"text": ANN, "spo_list": [{"predicate": "p", "subject": "s", "object": {}}]}, "without '@value'"),
        (
            "duie",
            {"text": ANN, "spo_list": [{"predicate": "p", "subject": "s", "object": 5}]},
            "no text under '@value'",
        ),
        (
            "duee",
            {"text": ANN, "event_list": [{"event_type": "e", "trigger": "a", "trigger_start_index": "0"}]},
            "pair of",
        ),
        ("fewfc", {"content": ANN, "events": [{"type": "x", "mentions": [{"span": [0]}]}]}, r"is not \[start, end\]"),
        ("nyt", {"sentText": ANN, "relationMentions": [{}]}, r"has no text under 'label' \(keys: none\)"),
        ("doccano", {"text": ANN, "label": ["positive"]}, r"'positive', which is not \[start, end, type\]"),
        ("labelstudio", {"data": {"image": 5}, "annotations": []}, "has no text under 'text'"),
    ],
)
def test_error_for_malformed_row_names_file_line_and_form(tmp_path: Path, form: str, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        list(read_annotation_files(write(tmp_path, row), form))
    assert str(raised.value).startswith(f"{tmp_path}/rows.jsonl:1 ")
    assert str(raised.value).endswith(" is expected") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "form", [name for name in FORMATS if not name.startswith("conll") and name not in ("brat", "spacy")]
)
def test_deeply_nested_row_is_an_error_of_one_line(tmp_path: Path, form: str) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text('{"text": ' + "[" * 200_000)
    with pytest.raises(ValueError, match=r"deep.jsonl:1 .*(nested too deep|not JSON)"):
        list(read_annotation_files(path, form))


def test_sentences_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path, OWN)
    with path.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    sentences = read_annotation_files(path)
    assert next(sentences).text == ANN
    with pytest.raises(ValueError, match=r"rows.jsonl:2 is not JSON"):
        next(sentences)
