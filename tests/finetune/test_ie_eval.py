"""finetune/ie_eval.py: scores of small cases, agreement with the published scorer, and invalid inputs."""

import json
import time
from pathlib import Path
from typing import Any

import ie_eval
import pytest
from conftest import RunScript
from extraction_metrics.answer_items import json_object_in, parse_answer
from extraction_metrics.answer_scores import precision_recall_f1, score_answers
from extraction_metrics.item_kinds import AnswerItem
from extraction_metrics.scored_files import scored_rows
from hypothesis import given
from hypothesis import strategies as st


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
    for unparsable in (
        "",
        "Ann",
        "[]",
        '{"person": "Ann"}',
        '{"person": ["Ann"',
        '{"a": []} and more',
        "[" * 100_000,
        "9" * 5000,
    ):
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


ANN = entities(person=["Ann"])
BORN = {"subject": "Ann", "object": "Oslo"}
EVENT = {"trigger": "cut", "arguments": {"company": "Ox"}}
MIXED = json.dumps({"person": ["Ann"], "born in": [BORN]})


@pytest.mark.parametrize(
    ("gold", "prediction", "entity", "triple"),  # (correct, predicted, gold)
    [
        (entities(person=[]), json.dumps([BORN]), (0, 0, 0), (0, 1, 0)),
        (entities(person=[]), json.dumps({"person": [BORN, EVENT, 3]}), (0, 1, 0), (0, 2, 0)),
        (entities(person=[]), json.dumps({"person": BORN}), (0, 0, 0), (0, 1, 0)),
        ("{}", json.dumps({"layoff": [EVENT]}), (0, 0, 0), (0, 1, 0)),
        (MIXED, json.dumps({"person": ["Ann", 3], "born in": [{"name": "Ann"}]}), (1, 2, 1), (0, 1, 1)),
        (MIXED, MIXED, (1, 1, 1), (1, 1, 1)),
        (ANN, '{"person": ["Ann"], "person": ["Bo", "Cy"]}', (1, 3, 1), (0, 0, 0)),  # json.loads keeps the last list
        (ANN, '{"person": "Ann"}', (0, 1, 1), (0, 0, 0)),
        (ANN, '["Ann", "Bo"]', (0, 2, 1), (0, 0, 0)),
        (ANN, '"Ann"', (0, 1, 1), (0, 0, 0)),
        (ANN, '{"layoff": [{"trigger": "cut"}]}', (0, 1, 1), (0, 0, 0)),
    ],
)
def test_every_answered_item_counts(
    gold: str, prediction: str, entity: tuple[int, ...], triple: tuple[int, ...]
) -> None:
    scores = score_answers([(prediction, gold)])
    for task, counts in (("entity", entity), ("triple", triple)):
        assert tuple(scores[task][key] for key in ("correct", "predicted", "gold")) == counts
    assert scores["exact"] == (prediction == gold)


JSON_VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.just(BORN),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=3), st.lists(JSON_VALUES, max_size=4), max_size=4), st.sampled_from([
    "{}", ANN, json.dumps({"born in": [BORN]}), MIXED,
]))  # fmt: skip
def test_predicted_items_are_all_items_of_the_answer(answer: dict[str, list[object]], gold: str) -> None:
    scores = score_answers([(json.dumps(answer), gold)])
    predicted = sum(scores[task]["predicted"] for task in ("entity", "triple"))
    assert predicted == sum(map(len, answer.values()))


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ("Ann", "is not a JSON object of lists ('Ann')"),
        (json.dumps([BORN]), "is not a JSON object of lists"),
        (json.dumps({"layoff": [EVENT]}), 'has {"arguments": {"company": "Ox"}, "trigger": "cut"} under \'layoff\''),
        ('{"a": ["b", 3]}', "has 3 under 'a', which is neither a name nor an object with subject and object"),
    ],
)
def test_correct_answer_that_cannot_be_scored_is_an_error(tmp_path: Path, gold: str, message: str) -> None:
    with pytest.raises(ValueError, match="the correct answer of example 2") as caught:
        score_answers([("{}", "{}"), ("{}", gold)])
    assert message in str(caught.value)
    rows = lines(tmp_path / "p.jsonl", {"prediction": "{}", "output": "{}"}, {"prediction": "{}", "output": gold})
    with pytest.raises(ValueError, match=r"p\.jsonl:2 has a correct answer that ") as caught:
        scored_rows(str(rows))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        ANN, f"```json\n{ANN}\n```", f"```\n{ANN}```", f"{ANN}\n\nI hope that this helps {{:",
        f"Here it is: {ANN} {{}}",
        f"The set {{a, b}} gives\n{ANN}", '{"a": 1} ' + ANN,
    ],
)  # fmt: skip
def test_json_object_in_text_is_found(answer: str) -> None:
    assert json_object_in(answer) == ANN
    assert json_object_in(answer.replace(ANN, "nothing")) in ("", "{}")


def test_search_for_a_json_object_takes_linear_time() -> None:
    started = time.process_time()
    for text in ("{" * 500_000, '{"' * 250_000, '{"a":[' * 100_000):
        assert json_object_in(text) == ""
    assert time.process_time() - started < 5  # a quadratic search takes minutes


@pytest.mark.parametrize("variant", ["NER.gold", "NER.noisy", "NER.broken", "RE.gold_subjobj", "RE.noisy", "RE.broken"])
def test_scores_equal_those_of_the_published_scorer(shared_data: Path, variant: str) -> None:
    """Items match as multisets. A published example asks for some of the types; only their items are compared."""
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


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MESSAGES = [{"role": "user", "content": "a", "input": "b"}, {"role": "assistant", "content": ANN}]


def test_rows_of_all_forms_are_paired(tmp_path: Path) -> None:
    """Correct answers are in a JSON list with a BOM or in messages, predictions in rows of ie_run.py or batch.py."""
    rows: dict[str, Any] = {"instruction": "a", "input": "b", "output": ANN}
    listed, talk = tmp_path / "list.json", lines(tmp_path / "m.jsonl", {"messages": MESSAGES})
    listed.write_text(json.dumps([rows], indent=1), encoding="utf-8-sig")
    predicted: list[dict[str, Any]] = [
        {"messages": MESSAGES, "prediction": "p"}, rows | {"prediction": "p"},
        {"instruction": "a", "input": "b", "prediction": "p"},
        rows | {"generated_text": "p", "num_output_tokens_cf": 1, "error": None},
    ]  # fmt: skip
    for number, row in enumerate(predicted):
        file = lines(tmp_path / f"p{number}.jsonl", row)
        for gold in (listed, talk, *([file] if "output" in row or "messages" in row else [])):
            (scored,) = scored_rows(str(file), str(gold))
            assert (scored.prediction, scored.gold) == ("p", ANN)
    other = lines(tmp_path / "o.jsonl", {"messages": [{"role": "user", "content": "z"}, MESSAGES[1]]})
    for file, gold, message in (
        (tmp_path / "p0.jsonl", other, "row 1 of .* and row 1 of .* have different questions"),
        (tmp_path / "p2.jsonl", tmp_path / "p2.jsonl", r"p2\.jsonl:1 has no text under 'output', the correct answer"),
        (talk, talk, r"m\.jsonl:1 has no text under 'prediction'"),
        (lines(tmp_path / "e.jsonl", rows | {"generated_text": "", "error": "busy"}), talk, r"an error instead .*busy"),
        (tmp_path / "p0.jsonl", lines(tmp_path / "q.jsonl", {"messages": MESSAGES[:1]}), "do not end with an answer"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            scored_rows(str(file), str(gold))


def test_lenient_scores_are_added_to_the_strict_scores(tmp_path: Path, run_script: RunScript) -> None:
    answers = (ANN, f"```json\n{ANN}\n```", f"{ANN} That is all.", "Ann")
    predictions = lines(tmp_path / "p.jsonl", *({"prediction": answer, "output": ANN} for answer in answers))
    target = tmp_path / "scores.json"
    done = run_script("finetune/ie_eval.py", "--predictions", predictions, "--lenient", "--output", target)
    scores = json.loads(target.read_text())
    lenient = scores["lenient"]
    assert [scores["entity"][key] for key in ("correct", "predicted", "gold")] == [1, 1, 4]
    assert [lenient["entity"][key] for key in ("correct", "predicted", "gold")] == [3, 3, 4]
    assert (scores["parsed"], lenient["parsed"], lenient["exact"]) == (0.25, 0.75, 0.75)
    strict, tolerant = done.stdout.split("\nlenient: only the first JSON object in each answer\n")
    assert "entity      1.0000    0.2500    0.4000    0.0000-0.8571         1         1         4" in strict
    assert "entity      1.0000    0.7500    0.8571    0.4000-1.0000         3         3         4" in tolerant
    assert "lenient" not in run_script("finetune/ie_eval.py", "--predictions", predictions).stdout


def test_script_prints_a_table_and_writes_json(tmp_path: Path, run_script: RunScript) -> None:
    question = {"instruction": "a", "input": "b"}
    predictions = lines(tmp_path / "p.jsonl", {**question, "prediction": entities(person=["Ann"])})
    gold = lines(tmp_path / "g.jsonl", {**question, "output": entities(person=["Ann", "Bo"])})
    target = tmp_path / "scores.json"
    arguments = ("--predictions", predictions, "--gold", gold, "--output", target)
    done = run_script("finetune/ie_eval.py", *arguments)
    scores = json.loads(target.read_text())
    assert (scores["entity"]["precision"], scores["entity"]["recall"], scores["exact"]) == (1, 0.5, 0)
    assert done.stdout.splitlines() == [
        "         precision    recall        F1     95% interval   correct predicted      gold",
        "entity      1.0000    0.5000    0.6667    0.6667-0.6667         1         1         2",
        "triple      0.0000    0.0000    0.0000    0.0000-0.0000         0         0         0",
        "1 example, 0.0% exactly right, 100.0% of answers parse, 100.0% of predicted names are not in the text",
    ]
    assert run_script("finetune/ie_eval.py", *arguments, "--by_type").stdout.splitlines() == [
        *done.stdout.splitlines(),
        "precision    recall        F1 predicted      gold  type",
        "   1.0000    0.5000    0.6667         1         2  person",
    ]


def test_output_that_cannot_be_written_is_refused_before_the_rows_are_read(
    tmp_path: Path, run_script: RunScript
) -> None:
    (tmp_path / "rows.jsonl").write_text("no JSON")
    for output, message in (
        ("no/scores.json", f"{tmp_path / 'no'} does not exist; create the folder of --output"),
        (".", f"{tmp_path / '.'} is a folder; name a file"),
        ("rows.jsonl", f"{tmp_path / 'rows.jsonl'} is an input file; give --output another name"),
    ):
        arguments = ("--predictions", tmp_path / "rows.jsonl", "--output", tmp_path / output)
        done = run_script("finetune/ie_eval.py", *arguments, status=2)
        assert (done.stdout, done.stderr.count("\n")) == ("", 1) and message in done.stderr


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
        (("--predictions", one, "--gold", other), "have different questions"),
        (("--predictions", one, "--golden", other), "unknown option --golden"),
    ):
        done = run_script("finetune/ie_eval.py", *arguments, "--output", tmp_path / "scores.json", status=2)
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "scores.json").exists()


def test_number_of_error_rows_without_a_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--error_rows 5 has no effect without --errors; add --errors"):
        ie_eval.main(str(tmp_path / "predictions.jsonl"), error_rows=5)
