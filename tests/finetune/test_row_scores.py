"""Scores of rows: intervals of F1, scores by type and by order, names not in the text, finish reasons, /extract."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from extraction_metrics.answer_scores import precision_recall_f1, score_answers
from extraction_metrics.confidence_intervals import f1_interval
from extraction_metrics.item_kinds import TASKS
from extraction_metrics.row_scores import ScoredRow, score_rows
from extraction_metrics.score_tables import scores_table
from extraction_metrics.scored_files import scored_rows
from hypothesis import given
from hypothesis import strategies as st

ANN = json.dumps({"person": ["Ann"]})
BORN = json.dumps({"born in": [{"subject": "Ann", "object": "Oslo"}]})


def f1_of(counts: list[tuple[int, int, int]]) -> float:
    correct, predicted, gold = (sum(column) for column in zip(*counts, strict=True))
    return precision_recall_f1(correct, predicted, gold)["f1"]


def test_interval_is_the_percentiles_of_the_binomial_distribution() -> None:
    """F1 of a resample is 2k / (k + n) for k correct answers of n examples, k binomial; quantiles from tables."""
    right, missing = (1, 1, 1), (0, 0, 1)
    assert f1_interval([right, missing]) == [0, 1]
    assert f1_interval([right, *[missing] * 3]) == [0, 6 / 7]  # P(k = 0) is 0.316, P(k > 3) is 0.004
    assert f1_interval([*[right] * 3, missing]) == [2 / 5, 1]
    low, high = f1_interval([right, missing] * 200)  # 2.5 % and 97.5 % quantiles of B(400, 1/2): 180 and 220
    assert low == pytest.approx(360 / 580, abs=0.01)
    assert high == pytest.approx(440 / 620, abs=0.01)


def test_interval_of_equal_examples_is_their_f1() -> None:
    assert f1_interval([(2, 3, 4)] * 50) == [4 / 7, 4 / 7]
    assert f1_interval([(2, 3, 4)]) == [4 / 7, 4 / 7]
    assert f1_interval([(0, 0, 0)] * 3) == [0, 0]


COUNTS = st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3)).map(
    lambda each: (each[0], each[0] + each[1], each[0] + each[2])
)


@given(st.lists(COUNTS, min_size=1, max_size=30))
def test_interval_contains_f1_and_shrinks_with_more_rows(counts: list[tuple[int, int, int]]) -> None:
    low, high = f1_interval(counts)
    assert 0 <= low <= f1_of(counts) <= high <= 1
    more_low, more_high = f1_interval(counts * 16)
    assert more_low <= f1_of(counts) <= more_high
    assert more_high - more_low < (high - low) * 0.6 or low == high == more_low == more_high


def test_interval_of_ten_thousand_different_examples_takes_less_than_a_second() -> None:
    started = time.process_time()
    low, high = f1_interval([(number % 7, number + 7, number + 9) for number in range(10_000)])
    assert 0 < low < high
    assert time.process_time() - started < 1


def test_scores_by_type_add_up_to_those_of_the_task() -> None:
    pairs = [
        ('{"person": ["Ann", "Bo"], "place": ["Oslo"]}', '{"person": ["Ann"], "place": ["Rome", "Bonn"]}'),
        ('{"person": ["Cy"], "city": ["Rome"]}', '{"person": ["Cy", "Di"]}'),
        (BORN, BORN),
        ('{"born in": ["Ann"], "wrote": [{"subject": "Ann", "object": "Dusk"}]}', BORN),
    ]
    scores = score_rows([ScoredRow(*pair) for pair in pairs])
    assert scores["entity"]["by_type"] == {
        "person": precision_recall_f1(2, 3, 3), "place": precision_recall_f1(0, 1, 2),
        "city": precision_recall_f1(0, 1, 0),
    }  # fmt: skip
    assert scores["triple"]["by_type"] == {
        "born in": precision_recall_f1(1, 2, 2), "wrote": precision_recall_f1(0, 1, 0),
    }  # fmt: skip
    assert list(scores["entity"]["by_type"]) == ["person", "place", "city"]
    assert scores["entity"]["by_type"]["person"]["f1"] == 2 / 3
    assert {key: scores["entity"][key] for key in precision_recall_f1(0, 0, 0)} == score_answers(pairs)["entity"]
    assert not {"not_in_text", "stopped", "orders"} & set(scores)


def test_table_shows_types_in_one_line_each() -> None:
    scores = score_rows([ScoredRow(json.dumps({"a\nb\x1b[31m\ud800": ["Ann"]}), BORN), ScoredRow("{}", ANN)])
    assert scores_table(scores, by_type=True).splitlines()[4:] == [
        "precision    recall        F1 predicted      gold  type",
        "   0.0000    0.0000    0.0000         0         1  person",
        "precision    recall        F1 predicted      gold  relation",
        "   0.0000    0.0000    0.0000         0         1  born in",
        "   0.0000    0.0000    0.0000         1         0  a\\nb\\x1b[31m\\ud800",
    ]


@pytest.mark.parametrize(
    ("answer", "text", "share"),
    [
        ({"person": ["Ann Lee", "Bo"]}, "Ann\n  Lee came.", 1 / 2),
        ({"person": ["Ann\tLee "]}, "Ann Lee came.", 0),
        ({"person": ["Lee came"], "place": ["Le", "lee"]}, "Ann Lee came.", 1 / 3),  # parts of words; case matters
        ({"person": ["", "Ann"]}, "Ann", 1 / 2),
        ({"person": ["Bo", "Bo", "Ann"]}, "Ann", 2 / 3),
        ({"born in": [{"subject": "Ann", "object": "Rome"}, {"head": "Bo", "tail": "Oslo"}]}, "Ann, Oslo", 2 / 4),
        ({"person": [3, {"name": "Bo"}]}, "Ann", 0),  # no names
        ({"人物": ["孙美静", "陈辉"]}, "孙美静在信德医院工作。", 1 / 2),
    ],
)
def test_not_in_text_is_the_share_of_predicted_names(answer: dict[str, Any], text: str, share: float) -> None:
    assert score_rows([ScoredRow(json.dumps(answer), ANN, text)])["not_in_text"] == share
    rows = [ScoredRow(json.dumps(answer), ANN, text), ScoredRow('{"person": ["Zoe"]}', ANN), ScoredRow("no", ANN, "")]
    assert score_rows(rows)["not_in_text"] == share  # only rows with a text count


def test_stopped_is_a_share_of_the_rows_with_a_finish_reason() -> None:
    rows = [ScoredRow(ANN, ANN, None, reason) for reason in ("stop", "length", "stop", "abort", "")]
    scores = score_rows(rows)
    assert scores["stopped"] == 2 / 4
    assert "5 examples, 100.0% exactly right, 100.0% of answers parse, 50.0% complete" in scores_table(scores)


def test_orders_of_a_test_set_have_mean_and_deviation_of_f1() -> None:
    """F1 of the three orders: 1, 1 / 2 and 1 / 2; the sample variance is 1 / 12."""
    answers = {"0": ANN, "1": '{"person": ["Ann", "Bo", "Cy"]}', "2": '{"person": ["Ann", "Di", "Cy"]}'}
    rows = [ScoredRow(answer, ANN, "Ann, Bo, Cy", "", order) for order, answer in answers.items()]
    scores = score_rows(rows)
    assert scores["orders"] == {
        "number": 3, "entity": {"f1_mean": pytest.approx(2 / 3), "f1_std": pytest.approx(12**-0.5)},
        "triple": {"f1_mean": 0, "f1_std": 0},
    }  # fmt: skip
    assert scores["entity"]["f1"] == 6 / 10
    assert scores["entity"]["f1_interval"] == [6 / 10, 6 / 10]  # the orders of one text are one unit
    assert scores_table(scores).endswith("3 orders of the types: entity F1 0.6667 ± 0.2887, triple F1 0.0000 ± 0.0000")
    other_text = ScoredRow(ANN, ANN, "Ann", "", "2")
    for incomplete in (rows[:1], [*rows, other_text], [*rows, ScoredRow(ANN, ANN, "Ann, Bo, Cy")]):
        assert "orders" not in score_rows(incomplete)


def test_interval_of_several_orders_equals_the_interval_of_one_order() -> None:
    """The same answers in four orders do not narrow the interval."""
    rows = [ScoredRow(ANN if number % 3 else "{}", ANN, f"text {number}", "", "0") for number in range(60)]
    four = [row._replace(order=str(order)) for order in range(4) for row in rows]
    assert score_rows(four)["entity"]["f1_interval"] == score_rows(rows)["entity"]["f1_interval"]


def read(path: Path, *rows: dict[str, Any]) -> list[ScoredRow]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return scored_rows(str(path))


def test_rows_of_extract_are_scored(tmp_path: Path) -> None:
    """batch.py writes the request and the response of /extract; the correct answer is under "output"."""
    name = {"offsets": [[0, 3]], "in_text": True}
    ends = {"subject": {"name": "Ann"} | name, "object": {"name": "Rome", "offsets": [], "in_text": False}}
    request = {"text": "Ann was born in Oslo.", "task": "ner", "schema": ["person"]}
    response = {"complete": True, "windows": 1, "num_output_tokens_cf": 9, "error": None}
    rows = read(
        tmp_path / "p.jsonl",
        request | {"output": ANN, "entities": [{"type": "person", "name": "Ann"} | name]} | response,
        request | {"output": ANN, "entities": []} | response,
        request
        | {"task": "re", "output": BORN, "triples": [{"relation": "born in"} | ends]}
        | response
        | {"complete": False},
    )
    assert [row.prediction for row in rows] == [
        ANN, "{}", json.dumps({"born in": [{"subject": "Ann", "object": "Rome"}]}),
    ]  # fmt: skip
    assert {row.text for row in rows} == {"Ann was born in Oslo."}
    assert [row.finish_reason for row in rows] == ["stop", "stop", "length"]
    scores = score_rows(rows)
    assert [(scores[task]["correct"], scores[task]["predicted"], scores[task]["gold"]) for task in TASKS] == [
        (1, 1, 2), (0, 1, 1),
    ]  # fmt: skip
    assert (scores["parsed"], scores["exact"], scores["stopped"]) == (1, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert scores["not_in_text"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"complete": False, "windows": 0, "error": "busy"}, r"an error instead of an answer \(busy\)"),
        ({"entities": ["Ann"]}, "an item under 'entities' that /extract does not return"),
        ({"entities": [{"name": "Ann", "type": [1]}]}, "an item under 'entities'"),
        ({"triples": [{"subject": "Ann", "relation": "r", "object": "Bo"}]}, "an item under 'triples'"),
        ({"triples": [{"subject": {"name": "Ann"}, "relation": "r"}]}, "an item under 'triples'"),
        ({"entities": None}, "has no text under 'prediction'"),
    ],
)
def test_row_of_extract_that_cannot_be_scored_is_an_error(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"p\.jsonl:1 has {message}".replace("has has", "has")):
        read(tmp_path / "p.jsonl", {"text": "Ann", "output": ANN} | row)


TALK = [
    {"role": "user", "content": "Extract.", "input": "Ann came."}, {"role": "assistant", "content": "{}"},
    {"role": "user", "content": "And Bo left."}, {"role": "assistant", "content": ANN},
]  # fmt: skip


def test_text_order_and_ending_of_a_row_are_read(tmp_path: Path) -> None:
    asked, found = {"instruction": "q", "output": ANN, "prediction": ANN}, ScoredRow(ANN, ANN)
    assert read(
        tmp_path / "p.jsonl",
        asked | {"input": "Ann", "finish_reason": "length", "order": 0},
        asked | {"input": ""},
        {"messages": TALK, "prediction": ANN, "finish_reason": "stop", "complete": False, "order": "b"},
        {"prediction": ANN, "output": ANN},
    ) == [
        found._replace(text="Ann", finish_reason="length", order="0"),
        found._replace(text="q"),
        found._replace(text="Extract.\nAnn came.\nAnd Bo left.", finish_reason="stop", order='"b"'),
        found,
    ]
    gold = tmp_path / "g.jsonl"
    gold.write_text(json.dumps(asked | {"input": "Ann", "order": 3}))
    read(tmp_path / "q.jsonl", {"prediction": ANN, "output": ANN})
    assert scored_rows(str(tmp_path / "q.jsonl"), str(gold)) == [found._replace(text="Ann", order="3")]
