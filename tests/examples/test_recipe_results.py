"""Questions about facts, the number of steps within a time, and the summary of real_model.sh."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RunScript
from recipe_results.fact_questions import RELATIONS, count_correct_answers, fact_questions
from recipe_results.real_model_summary import perplexities, summary_table


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_questions_come_from_the_published_relations(shared_data: Path) -> None:
    rows = fact_questions(shared_data / "real/facts", 24)
    wordings = {row["instruction"].replace("Canada", "{}") for row in rows if "Canada" in row["instruction"]}
    assert len(rows) == 24 * 14  # three wordings for four relations, two for one
    assert len(wordings) == 9
    assert rows[1]["instruction"] == "Complete the sentence: The capital city of Canada is …"
    assert (rows[1]["output"], rows[1]["relation"]) == ("Ottawa", "country_capital_city")


def test_number_of_questions_below_one_is_refused(shared_data: Path, tmp_path: Path, run_script: RunScript) -> None:
    options = ("--facts_path", shared_data / "real/facts", "--output", tmp_path / "facts.jsonl", "--number", -1)
    refused = run_script("examples/make_demo.py", "facts", *options, status=2)
    assert refused.stderr == "error: --number -1 is too small; it must be at least 1\n"


@pytest.mark.parametrize(
    "content", [{}, [], {"prompt_templates": ["no place"], "samples": []}, {"prompt_templates": ["{}"], "samples": [1]}]
)
def test_error_for_facts_of_another_format_names_the_file(tmp_path: Path, content: Any) -> None:
    (tmp_path / f"{RELATIONS[0]}.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{RELATIONS[0]}.json does not have the format .*samples"):
        fact_questions(tmp_path, 2)


def test_answer_that_contains_the_object_is_correct(tmp_path: Path) -> None:
    answers = [("Bogotá", "It is bogota."), ("Rome", "Milan"), ("Oslo", "Oslo")]
    write_lines(tmp_path / "answers.jsonl", [{"output": fact, "prediction": text} for fact, text in answers])
    assert count_correct_answers(str(tmp_path / "answers.jsonl")) == (2, 3)


def test_rehearsal_rows_are_the_complete_answers(tmp_path: Path, run_script: RunScript) -> None:
    answers = [("stop", "Oslo."), ("length", "It is"), ("stop", " ")]
    rows = [{"instruction": "q", "prediction": text, "finish_reason": reason} for reason, text in answers]
    write_lines(tmp_path / "a.jsonl", rows)
    arguments = ("--answers", tmp_path / "a.jsonl", "--output", tmp_path / "r.jsonl")
    run_script("examples/make_demo.py", "rehearsal", *arguments, "--copies", 2)
    written = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert written == [{"instruction": "q", "input": "", "output": "Oslo."}] * 2
    write_lines(tmp_path / "a.jsonl", [{"instruction": "q"}])
    refused = run_script("examples/make_demo.py", "rehearsal", *arguments, status=2)
    assert "a.jsonl:1 is not an answer to an instruction; give an output of ie_run.py" in refused.stderr


def test_steps_within_a_time_follow_from_the_speed_after_the_first_step(tmp_path: Path, run_script: RunScript) -> None:
    log = tmp_path / "train_log.jsonl"
    etas = [60, 6, 4, 2, 0]  # seconds to the end after each of five steps: the first one took 15 s, the others 2 s
    entries = [{"loss": 1.0, "eta_seconds": eta, "step": step} for step, eta in enumerate(etas, 1)]
    write_lines(log, [*entries, {"train_runtime": 23.0, "step": 5}])
    for seconds, expected in ((61, "30"), (1, "2")):
        done = run_script("examples/make_demo.py", "steps", "--train_log", log, "--seconds", seconds)
        assert done.stdout.strip() == expected
    for rows in (entries[:2], [], [{"loss": 1.0}]):
        write_lines(log, rows)
        done = run_script("examples/make_demo.py", "steps", "--train_log", log, "--seconds", 9, status=2)
        remedy = "run 3 or more steps with --logging_steps 1"
        assert done.stderr == f"error: {log} does not show the time of a step; {remedy}\n"


def test_summary_compares_the_models_of_each_step(tmp_path: Path) -> None:
    held_out = [
        {"eval_perplexity_zh": zh, "eval_perplexity_en": en} for zh, en in ((8.0, 2.0), (4.0, 2.02), (5.0, 1.0))
    ]
    for run, entries in (("trained", [held_out[0], {"loss": 1.0}, held_out[1]]), ("evaluated", held_out[2:])):
        (tmp_path / run).mkdir()
        write_lines(tmp_path / run / "train_log.jsonl", entries)
    assert perplexities(tmp_path) == {
        "zh": {"base": 8.0, "trained": 4.0, "interpolated": 5.0},
        "en": {"base": 2.0, "trained": 2.02, "interpolated": 1.0},
    }
    scores = {"entity": {"f1": 0.5}, "triple": {"f1": 0.25}, "parsed": 1.0, "not_in_text": 0.01, "examples": 9}
    summary = {
        "perplexity": perplexities(tmp_path), "facts": {"base": (3, 4), "merged": (2, 4)}, "recovery": "equal",
        "scores": dict.fromkeys(("base", "merged", "merged-q8_0", "merged-q4_0", "extracted"), scores), "answer": {},
        "seconds": {"base": 90},
    }  # fmt: skip
    table = summary_table(summary)
    lines = [line.split() for line in table.splitlines()]
    assert lines[:2] == [
        ["base", "trained", "interpolated", "merged"],
        ["perplexity", "zh", "8.00", "(+0%)", "4.00", "(-50%)", "5.00", "(-38%)"],
    ]
    assert ["facts", "known", "3/4", "2/4"] in lines
    assert table.count("0.500        0.250   100.0%         1.0%         9") == 5
