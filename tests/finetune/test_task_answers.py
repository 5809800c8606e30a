"""Scores of events, knowledge graphs and places of entities, on hand-worked examples and beside nervaluate."""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from extraction_metrics.answer_items import gold_error, json_object_in, parse_answer, read_answer
from extraction_metrics.answer_scores import precision_recall_f1
from extraction_metrics.item_kinds import AnswerItem
from extraction_metrics.row_scores import ScoredRow, score_rows
from extraction_metrics.score_tables import scores_table
from extraction_metrics.scored_files import scored_rows
from hostile_answers import HOSTILE

LAYOFF = {"trigger": "cut", "arguments": {"company": "Ox", "number": ["900", "12"], "date": "NAN"}}
GOLD_EVENTS = json.dumps({"layoff": [LAYOFF], "merger": []})


def items(task: str, answer: Any) -> Counter[AnswerItem]:
    return read_answer(json.dumps(answer), task).items


def counts(scores: dict[str, Any], kind: str) -> tuple[int, int, int]:
    return scores[kind]["correct"], scores[kind]["predicted"], scores[kind]["gold"]


def test_items_of_each_task() -> None:
    assert items("eet", {"layoff": ["cut", "NAN", ""], "merger": []}) == {AnswerItem("trigger", ("layoff", "cut")): 1}
    assert items("eea", {"layoff": [{"company": "Ox", "date": "NAN", "number": []}], "merger": {}}) == {
        AnswerItem("argument", ("layoff", "company", "Ox")): 1
    }
    assert items("ee", {"layoff": [LAYOFF | {"arguments": {"company": "Ox"}}]}) == {
        AnswerItem("trigger", ("layoff", "cut")): 1,
        AnswerItem("argument", ("layoff", "company", "Ox")): 1,
        AnswerItem("argument_with_trigger", ("layoff", "company", "Ox", "cut")): 1,
    }
    assert items("kg", {"person": {"Ann": {"work": ["Dusk", "Dawn"], "born": ""}}}) == {
        AnswerItem("entity", ("person", "Ann")): 1,
        AnswerItem("triple", ("Ann", "work", "Dusk")): 1,
        AnswerItem("triple", ("Ann", "work", "Dawn")): 1,
    }
    for task in ("re", "spo"):
        assert items(task, {"born": [{"subject": "Ann", "object": "Oslo"}]}) == {
            AnswerItem("triple", ("Ann", "born", "Oslo")): 1
        }


@pytest.mark.parametrize("absent", ["NAN", "", None, [], {}])
def test_absent_arguments_and_triggers_are_not_items(absent: object) -> None:
    assert not items("ee", {"layoff": [{"trigger": absent, "arguments": {"company": absent, "number": [absent]}}]})
    assert not items("ee", {"layoff": [{"trigger": absent, "arguments": absent}]})
    assert not items("eea", {"layoff": [{"company": absent}]})
    assert not items("kg", {"person": {}})


def test_scores_of_events_are_those_of_a_hand_worked_example() -> None:
    """Gold: one trigger and three arguments. Predicted: right trigger, company right, number in the wrong role."""
    predicted = {"layoff": [{"trigger": "cut", "arguments": {"company": "Ox", "date": "900"}}], "merger": []}
    second = {"layoff": [{"trigger": "fired", "arguments": {"company": "Ox", "number": ["900", "12"]}}]}
    rows = [
        ScoredRow(json.dumps(predicted), GOLD_EVENTS, task="ee"), ScoredRow(json.dumps(second), GOLD_EVENTS, task="ee"),
    ]  # fmt: skip
    scores = score_rows(rows)
    assert counts(scores, "trigger") == (1, 2, 2)
    assert counts(scores, "argument") == (4, 5, 6)  # 1 of 2, and 3 of 3 in an event with a wrong trigger
    assert counts(scores, "argument_with_trigger") == (1, 5, 6)
    assert scores["argument"]["f1"] == pytest.approx(8 / 11)
    assert scores["argument"]["by_type"]["layoff: number"] == precision_recall_f1(2, 2, 4)
    assert scores["argument"]["by_type"]["layoff: date"] == precision_recall_f1(0, 1, 0)
    assert (scores["exact"], scores["parsed"], counts(scores, "entity")) == (0, 1, (0, 0, 0))
    table = scores_table(scores, by_type=True)
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["trigger", "argument", "argument_with_trigger"]
    assert "event type: role (with trigger)" in table


def test_events_without_triggers_and_arguments_of_repeated_events_are_multisets() -> None:
    gold = json.dumps({"layoff": [{"company": "Ox"}, {"company": "Ox"}]})
    scores = score_rows([ScoredRow(json.dumps({"layoff": [{"company": ["Ox"]}]}), gold, task="eea")])
    assert counts(scores, "argument") == (1, 1, 2)


def test_scores_of_a_knowledge_graph() -> None:
    gold = json.dumps({"person": {"Ann": {"work": ["Dusk", "Dawn"]}, "Bo": {"born": "Oslo"}}})
    predicted = json.dumps({"person": {"Ann": {"work": "Dusk"}}, "place": {"Bo": {"born": "Oslo", "work": "Noon"}}})
    scores = score_rows([ScoredRow(predicted, gold, "Ann, Bo, Dusk, Dawn, Oslo", task="kg")])
    assert counts(scores, "triple") == (2, 3, 3)
    assert counts(scores, "entity") == (1, 2, 2)  # Bo has the wrong type
    assert scores["not_in_text"] == pytest.approx(1 / 8)  # 2 heads, 3 subjects and 3 values; Noon is not in the text


def test_triples_with_swapped_ends_are_inverted() -> None:
    peers = [{"subject": "a", "object": "b"}, {"subject": "b", "object": "a"}]
    gold = json.dumps({"born": [{"subject": "Ann", "object": "Oslo"}], "peer": peers})
    swapped = {"subject": "Oslo", "object": "Ann"}
    predicted = json.dumps({"born": [swapped, swapped], "peer": peers[:1], "died": [swapped]})
    scores = score_rows([ScoredRow(predicted, gold, task="re")])
    assert scores["inverted"] == 2 / 4  # a correct triple of a symmetric relation is not inverted
    assert "50.0% of predicted triples are inverted" in scores_table(scores)
    assert "inverted" not in score_rows([ScoredRow("{}", gold, task="re")])


@pytest.mark.parametrize(
    ("task", "answer", "kind"),
    [
        ("ee", {"layoff": ["cut"]}, "trigger"),
        ("ee", {"layoff": [{"trigger": ["cut"]}]}, "trigger"),
        ("ee", {"layoff": [{"arguments": ["Ox"]}]}, "argument"),
        ("ee", {"layoff": [{"arguments": {"company": {"name": "Ox"}}}]}, "argument"),
        ("ee", {"layoff": LAYOFF | {"arguments": {}}}, "trigger"),
        ("eet", {"layoff": [3]}, "trigger"),
        ("eet", {"layoff": "cut"}, "trigger"),
        ("eea", {"layoff": [{"number": 900}]}, "argument"),
        ("eea", ["Ox"], "argument"),
        ("kg", {"person": ["Ann"]}, "entity"),
        ("kg", {"person": {"Ann": ["Dusk"]}}, "triple"),
        ("ner", {"person": [{"name": "Ann"}]}, "entity"),
        ("re", {"born": ["Ann"]}, "triple"),
    ],
)
def test_malformed_value_counts_as_one_wrong_item(task: str, answer: Any, kind: str) -> None:
    gold = "{}"
    scores = score_rows([ScoredRow(json.dumps(answer), gold, "text", task=task)])
    assert counts(scores, kind) == (0, 1, 0) or (task, kind) == ("kg", "triple")
    assert counts(scores, kind)[1] == 1
    # A value that only looks like a correct item does not match it.
    assert not (items(task, answer) & items("eet", {"layoff": ["3"]}))


@pytest.mark.parametrize(
    ("task", "gold", "message"),
    [
        ("ee", {"layoff": [{"trigger": 3}]}, "has 3 under 'layoff', which is not an item of task ee"),
        ("ee", {"layoff": LAYOFF}, "is not a JSON object of lists"),
        ("kg", {"person": ["Ann"]}, "is not a JSON object of objects"),
        ("ner", {"born": [{"subject": "Ann", "object": "Oslo"}]}, "not an item of task ner"),
        ("re", {"person": ["Ann"]}, "not an item of task re"),
    ],
)
def test_correct_answer_of_another_form_is_an_error(tmp_path: Path, task: str, gold: Any, message: str) -> None:
    assert message in gold_error(json.dumps(gold), task).replace('"3"', "3")
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"task": task.upper(), "prediction": "{}", "output": json.dumps(gold)}))
    with pytest.raises(ValueError, match=r"p\.jsonl:1 has a correct answer that "):
        scored_rows(str(file))


def test_task_of_a_row_precedes_the_option(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    rows = [{"prediction": "{}", "output": "{}"}, {"task": "EET", "prediction": "{}", "output": "{}"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row.task for row in scored_rows(str(file), task="re")] == ["re", "eet"]
    assert [row.task for row in scored_rows(str(file))] == ["", "eet"]
    file.write_text(json.dumps(rows[1] | {"task": "parsing"}))
    with pytest.raises(ValueError, match=r"p\.jsonl:1 has the task 'parsing'; a task is one of ner, re"):
        scored_rows(str(file))


def test_text_of_a_json_question_and_events_of_extract_are_read(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    question = json.dumps({"instruction": "q", "schema": ["layoff"], "input": "Ox cut 900 jobs."})
    name = {"offsets": [[0, 2]], "in_text": True}
    event = {
        "type": "layoff",
        "trigger": {"name": "cut"} | name,
        "arguments": [{"role": "company", "name": "Ox"} | name],
    }
    rows = [
        {"task": "ee", "instruction": question, "output": GOLD_EVENTS, "prediction": GOLD_EVENTS},
        {"task": "ee", "text": "Ox cut.", "schema": {}, "output": GOLD_EVENTS, "events": [event], "complete": True},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = scored_rows(str(file))
    assert (first.text, second.text) == ("Ox cut 900 jobs.", "Ox cut.")
    assert json.loads(second.prediction) == {"layoff": [{"trigger": "cut", "arguments": {"company": ["Ox"]}}]}
    assert counts(score_rows([first, second]), "argument") == (4, 4, 6)


def test_lenient_reading_finds_the_object_of_each_task() -> None:
    graph = json.dumps({"person": {"Ann": {"work": "Dusk"}}})
    assert json_object_in(f"```json\n{graph}\n```", "kg") == graph
    assert json_object_in(f"Events: {GOLD_EVENTS}", "ee") == GOLD_EVENTS


def span_row(gold: list[tuple[str, list[list[int]]]], predicted: list[tuple[str, list[list[int]]]]) -> dict[str, Any]:
    def entities(found: list[tuple[str, list[list[int]]]]) -> list[dict[str, Any]]:
        return [{"type": label, "name": "x", "spans": spans} for label, spans in found]

    return {"task": "ner", "output": "{}", "gold": {"entities": entities(gold)}, "entities": entities(predicted)}


def write_rows(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_places_of_nested_and_discontinuous_entities_are_compared(tmp_path: Path) -> None:
    nested = [("org", [[0, 20]]), ("place", [[14, 20]]), ("place", [[24, 28], [33, 41]])]
    row = span_row(nested, [nested[0], ("place", [[14, 19]]), ("place", [[33, 41], [24, 28]])])
    scores = score_rows(scored_rows(write_rows(tmp_path / "p.jsonl", row)))
    assert counts(scores, "entity_span") == (2, 3, 3)
    assert scores["entity_span"]["by_type"]["place"] == precision_recall_f1(1, 2, 2)
    # Of /extract: each occurrence of a name is a mention; a name that is not in the text is wrong.
    extracted = [
        {"type": "org", "name": "a", "offsets": [[0, 20], [50, 70]]},
        {"type": "org", "name": "b", "offsets": []},
    ]
    scores = score_rows(scored_rows(write_rows(tmp_path / "p.jsonl", row | {"entities": extracted})))
    assert counts(scores, "entity_span") == (1, 3, 3)
    for change in ({"prediction": "{}"}, {"gold": {"entities": [{"type": "org", "name": "a"}]}}):
        assert "entity_span" not in score_rows(scored_rows(write_rows(tmp_path / "p.jsonl", row | change)))
    for entities in ([{"type": "org", "spans": [5]}], [{"type": "org", "spans": []}], 3):
        with pytest.raises(ValueError, match=r"p\.jsonl:1 has entities under 'gold' that are not of the form"):
            scored_rows(write_rows(tmp_path / "p.jsonl", row | {"gold": {"entities": entities}}))


def tagged_entities(path: Path) -> list[list[tuple[str, int, int]]]:
    """Return (type, start, end) of the entities of each sentence of a BIO file; tokens are joined by spaces."""
    sentences: list[list[tuple[str, int, int]]] = []
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        at, found = 0, list[tuple[str, int, int]]()
        for token, tag in map(str.split, block.splitlines()):
            if tag.startswith("B-"):
                found.append((tag[2:], at, at + len(token)))
            elif tag.startswith("I-") and found:
                found[-1] = (*found[-1][:2], at + len(token))
            at += len(token) + 1
        sentences.append(found)
    return sentences


def test_strict_f1_of_places_equals_that_of_nervaluate(tmp_path: Path, shared_data: Path) -> None:
    """Predictions are the annotated entities of WNUT 2017 with dropped, moved and retyped ones, and invented ones.

    No two predictions overlap one correct entity: nervaluate would count this entity twice.
    """
    nervaluate = pytest.importorskip("nervaluate", reason="nervaluate is not installed; see tests/requirements.txt")
    file = shared_data / "real/ner/wnut17.dev.conll"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    draw, rows = random.Random(0), []
    true: list[list[dict[str, Any]]] = []
    found: list[list[dict[str, Any]]] = []
    for gold in tagged_entities(file):
        predicted = []
        for label, start, end in gold:
            choice = draw.random()
            if choice >= 0.2:
                other = label if choice < 0.7 else draw.choice(["person", "location", "group"])
                predicted.append((other, start, end - (choice > 0.85 and end - start > 1)))
        if not gold and draw.random() < 0.1:
            predicted.append(("person", 0, 1))
        places = [[(label, [[start, end]]) for label, start, end in each] for each in (gold, predicted)]
        rows.append(span_row(*places))
        for spans, target in ((gold, true), (predicted, found)):
            target.append([{"label": label, "start": start, "end": end} for label, start, end in spans])
    labels = sorted({each["label"] for spans in (*true, *found) for each in spans})
    overall = nervaluate.Evaluator(true, found, tags=labels, loader="dict").evaluate()["overall"]["strict"]
    ours = score_rows(scored_rows(write_rows(tmp_path / "p.jsonl", *rows)))["entity_span"]
    assert ours["gold"] > 500 and 0.3 < ours["f1"] < 0.9
    assert (ours["precision"], ours["recall"], ours["f1"]) == pytest.approx(
        (overall.precision, overall.recall, overall.f1), abs=1e-12
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_prediction_is_scored_in_linear_time(name: str) -> None:
    started = time.process_time()
    golds = {"ee": GOLD_EVENTS, "kg": '{"person": {"Ann": {"work": "Dusk"}}}', "": '{"person": ["Ann"]}'}
    for task in ("", "ner", "ee", "kg"):
        row = ScoredRow(HOSTILE[name], golds.get(task, "{}"), "Ann wrote Dusk.", task=task)
        lenient = row._replace(prediction=json_object_in(row.prediction, task))
        for each in (row, lenient):
            scores_table(score_rows([each]), by_type=True).encode()
    assert time.process_time() - started < 5  # a quadratic algorithm takes minutes


def test_lists_and_objects_under_equal_keys_are_joined() -> None:
    assert parse_answer('{"a": ["x"], "a": ["y"]}') == items("", {"a": ["x", "y"]})
    assert parse_answer('{"p": {"Ann": {"r": ["x"]}}, "p": {"Ann": {"r": ["y"]}, "Bo": {}}}', "kg") == items(
        "kg", {"p": {"Ann": {"r": ["x", "y"]}, "Bo": {}}}
    )
