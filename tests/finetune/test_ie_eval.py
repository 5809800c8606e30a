"""finetune/ie_eval.py: scores of small cases, agreement with the published scorer, and invalid inputs."""

import json
from pathlib import Path

import pytest
from conftest import RunScript
from extraction_metrics.answer_scores import AnswerItem, parse_answer, precision_recall_f1, score_answers


def entities(**types: list[str]) -> str:
    return json.dumps(types)


def triples(*found: tuple[str, str, str]) -> str:
    answer: dict[str, list[dict[str, str]]] = {}
    for subject, relation, value in found:
        answer.setdefault(relation, []).append({"subject": subject, "object": value})
    return json.dumps(answer)


def test_parse_answer_reads_entities_and_triples() -> None:
    assert parse_answer('{"person": ["Ann", "Ann"], "place": []}') == {AnswerItem("entity", ("person", "Ann")): 2}
    born = AnswerItem("triple", ("Ann", "born in", "Oslo"))
    assert parse_answer('{"born in": [{"subject": "Ann", "object": "Oslo"}]}') == {born: 1}
    assert parse_answer('{"born in": [{"head": "Ann", "tail": "Oslo"}]}') == {born: 1}
    assert parse_answer('{"a": [3]}') == {AnswerItem("other", ("a", "3")): 1}
    assert parse_answer("{}") == {}
    for unparsable in ("", "Ann", "[]", '{"person": "Ann"}', '{"person": ["Ann"', '{"a": []} and more', "[" * 100_000):
        assert parse_answer(unparsable) is None


def test_entities_are_matched_as_multisets_over_all_examples() -> None:
    pairs = [
        (
            entities(person=["Ann", "Ann", "Bo"]),
            entities(person=["Ann"], place=["Oslo"]),
        ),  # 1 correct of 3 predicted, 2 annotated
        (entities(place=["Rome"]), entities(place=["Rome"])),
        ("no JSON", entities(person=["Cy"])),
        (entities(person=["Di"]), entities(person=[])),  # nothing annotated: a false entity
        (entities(), entities(person=[])),
    ]
    scores = score_answers(pairs)
    assert scores["entity"] == precision_recall_f1(2, 5, 4) | {"correct": 2, "predicted": 5, "gold": 4}
    assert scores["entity"]["f1"] == pytest.approx(4 / 9)
    assert scores["triple"] == {"precision": 0, "recall": 0, "f1": 0, "correct": 0, "predicted": 0, "gold": 0}
    assert (scores["examples"], scores["exact"], scores["parsed"]) == (5, 2 / 5, 4 / 5)


def test_shape_of_the_correct_answer_decides_the_task() -> None:
    right = triples(("Ann", "born in", "Oslo"), ("Ann", "author of", "Dusk"))
    pairs = [
        (triples(("Ann", "born in", "Oslo"), ("Dusk", "author of", "Ann")), right),
        ('{"born in": ["Ann"], "author of": []}', right),  # names instead of triples count as wrong triples
    ]
    scores = score_answers(pairs)
    assert scores["triple"]["correct"] == 1
    assert scores["triple"]["predicted"] == 3
    assert scores["triple"]["gold"] == 4
    assert scores["entity"]["predicted"] == 0


def test_correct_answer_that_does_not_parse_is_an_error() -> None:
    with pytest.raises(ValueError, match="correct answer of example 2"):
        score_answers([("{}", "{}"), ("{}", "Ann")])


@pytest.mark.parametrize("variant", ["NER.gold", "NER.noisy", "NER.broken", "RE.gold_subjobj", "RE.noisy", "RE.broken"])
def test_scores_equal_those_of_the_published_scorer(shared_data: Path, variant: str) -> None:
    """Multiset matching; a published example asks for some of the types, so only their items are compared."""
    pairs = []
    for line in (shared_data / f"iepile/eval/{variant}.json").read_text().splitlines():
        row = json.loads(line)
        right: dict[str, list[object]] = {name: [] for name in json.loads(row["instruction"])["schema"]}
        for found in json.loads(row["label"]):
            label = found.get("entity_type", found.get("relation"))
            if label in right:
                item = {"subject": found["head"], "object": found["tail"]} if "relation" in found else found["entity"]
                right[label].append(item)
        pairs.append((row["output"], json.dumps(right)))
    ours = score_answers(pairs)["entity" if variant.startswith("NER") else "triple"]
    published = json.loads((shared_data / f"iepile/eval/{variant}.normal.score").read_text())["total"]
    assert [round(100 * ours[key], 2) for key in ("precision", "recall", "f1")] == [
        published["P"], published["R"], published["F1"],
    ]  # fmt: skip


def lines(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_script_prints_a_table_and_writes_json(tmp_path: Path, run_script: RunScript) -> None:
    question = {"instruction": "a", "input": "b"}
    predictions = lines(tmp_path / "p.jsonl", {**question, "prediction": entities(person=["Ann"])})
    gold = lines(tmp_path / "g.jsonl", {**question, "output": entities(person=["Ann", "Bo"])})
    target = tmp_path / "scores.json"
    done = run_script("finetune/ie_eval.py", "--predictions", predictions, "--gold", gold, "--output", target)
    scores = json.loads(target.read_text())
    assert (scores["entity"]["precision"], scores["entity"]["recall"], scores["exact"]) == (1, 0.5, 0)
    assert "entity      1.0000    0.5000    0.6667" in done.stdout
    assert "1 example, 0.0% exactly right, 100.0% of answers parse" in done.stdout


def test_error_for_invalid_input_names_the_file(tmp_path: Path, run_script: RunScript) -> None:
    one = lines(tmp_path / "one.jsonl", {"instruction": "a", "prediction": "{}", "output": "{}"})
    two = lines(tmp_path / "two.jsonl", {"output": "{}"}, {"output": "{}"})
    other = lines(tmp_path / "other.jsonl", {"instruction": "z", "output": "{}"})
    empty = lines(tmp_path / "empty.jsonl")
    for arguments, message in (
        (("--predictions", tmp_path / "gone"), "gone does not exist"),
        (("--predictions", two), "no text under 'prediction'"),
        (("--predictions", empty), "holds no rows"),
        (("--predictions", one, "--gold", two), "have different numbers of rows, 1 and 2; give two files with"),
        (("--predictions", one, "--gold", other), "has another instruction"),
        (("--predictions", one, "--golden", other), "unknown option --golden"),
    ):
        done = run_script("finetune/ie_eval.py", *arguments, "--output", tmp_path / "scores.json", status=2)
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "scores.json").exists()
