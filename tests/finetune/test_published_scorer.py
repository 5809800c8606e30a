"""finetune/ie_eval.py --parity: the figures of IEPile's published scorer, for given files and small cases."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RunScript
from extraction_metrics.item_kinds import KINDS_OF_TASK
from extraction_metrics.row_scores import score_rows
from extraction_metrics.scored_files import scored_rows
from extraction_reports.published_scorer import published_scores, score_published_file


def test_every_published_score_is_reproduced(shared_data: Path) -> None:
    scores = sorted((shared_data / "iepile/eval").glob("*.score"))
    assert len(scores) >= 14
    for score in scores:
        task, variant, mode, _ = score.name.split(".")
        figures = score_published_file(str(score.with_name(f"{task}.{variant}.json")), mode)
        assert figures == json.loads(score.read_text(encoding="utf-8")), score.name


def rows(task: str, label: list[dict[str, Any]], *outputs: str) -> list[tuple[str, dict[str, Any]]]:
    row = {"id": "1", "task": task, "source": "s", "label": json.dumps(label), "instruction": "{}"}
    return [(f"p.json:{number}", row | {"output": output}) for number, output in enumerate(outputs, 1)]


EVENT = {
    "event_type": "layoff",
    "event_trigger": "cut",
    "arguments": [{"argument": "Ox", "role": "company"}, {"argument": "900", "role": "number"}],
}


def test_figures_of_events_are_those_of_events_and_arguments() -> None:
    """An event is right with its trigger alone; F1 is computed from the rounded P and R."""
    predicted = {
        "layoff": [
            {"trigger": "cut", "arguments": {"company": "Ox", "number": ["9", "900", "NAN"], "date": "NAN"}},
            {"trigger": "cut", "arguments": {"company": "Ox"}}, {"trigger": 3, "arguments": {"company": "Ox"}},
        ],
        "merger": "no list",
    }  # fmt: skip
    cases = rows("EE", [EVENT], json.dumps(predicted), "no JSON", "[]")
    assert published_scores(cases, "normal") == {"total": {
        "总样本数": 1, "错误数": 2, "event_P": 50.0, "event_R": 100.0, "event_F1": 66.67,
        "argument_P": 50.0, "argument_R": 100.0, "argument_F1": 66.67,
    }}  # fmt: skip
    figures = published_scores(cases, "set")["total"]
    assert (figures["event_P"], figures["argument_P"], figures["argument_F1"]) == (100.0, 66.67, 80.0)


def test_figures_of_triggers_and_of_arguments_without_triggers() -> None:
    assert published_scores(rows("EET", [EVENT], '{"layoff": ["cut", "cut", 3]}'), "normal")["total"] == {
        "总样本数": 1, "错误数": 0, "P": 50.0, "R": 100.0, "F1": 66.67,
    }  # fmt: skip
    answer = '{"layoff": [{"company": "Ox", "number": "NAN"}, 3]}'
    assert published_scores(rows("EEA", [EVENT], answer), "normal")["total"] == {
        "总样本数": 1, "错误数": 0, "event_P": 100.0, "event_R": 100.0, "event_F1": 100.0,
        "argument_P": 100.0, "argument_R": 50.0, "argument_F1": 66.67,
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["normal", "set"])
def test_knowledge_graphs_never_match_and_triples_with_types_are_read_as_triples(mode: str) -> None:
    label = [{"head": "Ann", "relation": "work", "tail": "Dusk"}]
    figures = published_scores(rows("KG", label, '{"person": {"Ann": {"work": "Dusk"}}}'), mode)["total"]
    assert (figures["P"], figures["R"], figures["F1"]) == (0.0, 0.0, 0.0)
    typed = [label[0] | {"head_type": "person", "tail_type": "book"}]
    answer = '{"work": [{"subject": "Ann", "object": "Dusk"}]}'
    assert published_scores(rows("SPO", typed, answer), mode)["total"]["F1"] == 100.0


def test_rows_of_equal_source_and_id_are_one_text() -> None:
    label = [{"entity": "Ann", "entity_type": "person"}, {"entity": "Oslo", "entity_type": "place"}]
    parts = rows("NER", label, '{"person": ["Ann"]}', '{"place": ["Oslo"]}')
    assert published_scores(parts, "normal")["total"]["F1"] == 100.0
    parts[1][1]["source"] = "t"
    figures = published_scores(parts, "normal")["total"]
    assert (figures["总样本数"], figures["P"], figures["R"], figures["F1"]) == (2, 100.0, 50.0, 66.67)


def test_hostile_outputs_count_as_errors_or_wrong_items() -> None:
    outputs = ["[" * 1_000_000, "9" * 5000, '{"layoff": [{"trigger": "x", "arguments": {"a": {"b": []}, "c": [NaN]}}]}']
    for mode in ("normal", "set"):
        figures = published_scores(rows("EE", [EVENT], *outputs), mode)["total"]
        assert (figures["错误数"], figures["argument_P"]) == (2, 0.0)


@pytest.mark.parametrize(
    ("task", "label"),
    [
        ("NER", {"entity": ["Ann"], "entity_type": "person"}), ("NER", {"entity": "Ann", "entity_type": {}}),
        ("EET", {"event_trigger": [], "event_type": "layoff"}), ("EE", EVENT | {"event_trigger": {}}),
        ("EEA", EVENT | {"arguments": [{"argument": "Ox", "role": ["company"]}]}),
    ],
)  # fmt: skip
def test_error_for_a_label_with_a_list_or_object_as_a_name_names_the_row(task: str, label: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"p.json:1 has a 'label' that is not a JSON list of items of the task {task}"):
        published_scores(rows(task, [label], "{}"), "normal")


def test_script_prints_and_writes_the_figures(tmp_path: Path, run_script: RunScript) -> None:
    file, target = tmp_path / "p.json", tmp_path / "score.json"
    [(_, row)] = rows("NER", [{"entity": "Ann", "entity_type": "person"}], '{"person": ["Ann"]}')
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    done = run_script("finetune/ie_eval.py", "--predictions", file, "--parity", "normal", "--output", target)
    expected = {"total": {"总样本数": 1, "错误数": 0, "P": 100.0, "R": 100.0, "F1": 100.0}}
    assert json.loads(done.stdout) == json.loads(target.read_text(encoding="utf-8")) == expected
    for change, options, message in (
        ({"task": None}, (), 'p.json:1 has no "task"; give --task'),
        ({"label": 3}, (), "p.json:1 has no 'label'; --parity takes rows of the form"),
        (
            {"label": '[{"entity": "Ann"}]'},
            (),
            "p.json:1 has a 'label' that is not a JSON list of items of the task NER",
        ),
        ({}, ("--compare", target), "--parity takes only --predictions, --task and --output"),
        ({}, ("--by_type",), "--lenient and --by_type have no effect with --parity"),
        ({}, ("--task", "parsing"), "--task takes one of ner"),
    ):
        file.write_text(json.dumps(row | change) + "\n", encoding="utf-8")
        done = run_script("finetune/ie_eval.py", "--predictions", file, "--parity", "set", *options, status=2)
        assert message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("variant", "kind"),
    [("NER.noisy", "entity"), ("NER.broken", "entity"), ("RE.noisy", "triple"), ("RE.gold", "triple")],
)
def test_published_predictions_have_unrounded_scores(shared_data: Path, variant: str, kind: str) -> None:
    """Without --parity, head and tail are read as subject and object, so that the correct answers score 1."""
    file = shared_data / f"iepile/eval/{variant}.json"
    ours = score_rows(scored_rows(str(file)))[kind]
    if variant == "RE.gold":
        assert ours["f1"] == 1
        return
    published = json.loads(file.with_name(f"{variant}.normal.score").read_text(encoding="utf-8"))["total"]
    assert [round(100 * ours[key], 2) for key in ("precision", "recall")] == [published["P"], published["R"]]
    assert ours["f1_interval"][0] <= ours["f1"] <= ours["f1_interval"][1]


@pytest.mark.parametrize("task", ["NER", "RE", "SPO", "EE", "EET", "EEA", "KG"])
def test_labels_of_every_task_are_correct_answers(shared_data: Path, tmp_path: Path, task: str) -> None:
    """The items of the labels that a row asks for are its correct answer; repeated to the scorer, they score 1."""
    lines = (shared_data / f"iepile/{task}/test.zh.json").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) | {"prediction": "{}"} for line in lines]
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = scored_rows(str(file))
    scores = score_rows([row._replace(prediction=row.gold) for row in scored])
    assert (scores["exact"], scores["parsed"]) == (1, 1)
    assert all(scores[kind]["f1"] == 1 for kind in KINDS_OF_TASK[task.lower()])
    label = json.loads(rows[0]["label"])
    assert label == [] or score_rows(scored)[KINDS_OF_TASK[task.lower()][-1]]["gold"] >= len(label)
    file.write_text(json.dumps(rows[0] | {"label": '[{"entity": 3}]'}))
    with pytest.raises(ValueError, match=r"p\.jsonl:1 has a 'label' or a schema that is not of the form of task"):
        scored_rows(str(file))
