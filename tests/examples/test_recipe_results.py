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
    assert len(rows) == 24 * len(RELATIONS)
    assert rows[1]["instruction"] == "Complete the sentence: The capital city of Canada is …"
    assert (rows[1]["output"], rows[1]["relation"]) == ("Ottawa", "country_capital_city")


@pytest.mark.parametrize(
    "content", [{}, [], {"prompt_templates": ["no place"], "samples": []}, {"prompt_templates": ["{}"], "samples": [1]}]
)
def test_facts_of_another_format_are_refused_by_file(tmp_path: Path, content: Any) -> None:
    (tmp_path / f"{RELATIONS[0]}.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{RELATIONS[0]}.json does not have the format .*samples"):
        fact_questions(tmp_path, 2)


def test_an_answer_that_contains_the_object_is_right(tmp_path: Path) -> None:
    answers = [("Paris", "It is paris."), ("Rome", "Milan"), ("Oslo", "Oslo")]
    write_lines(tmp_path / "answers.jsonl", [{"output": fact, "prediction": text} for fact, text in answers])
    assert count_correct_answers(str(tmp_path / "answers.jsonl")) == (2, 3)


def test_steps_within_a_time_follow_from_the_speed_of_a_short_run(tmp_path: Path, run_script: RunScript) -> None:
    log = tmp_path / "train_log.jsonl"
    for seconds, expected in ((60, "24"), (1, "2")):
        write_lines(log, [{"loss": 1.0, "step": 1}, {"train_runtime": 10.0, "step": 4}])
        done = run_script("examples/make_demo.py", "steps", "--train_log", log, "--seconds", seconds)
        assert done.stdout.strip() == expected
    write_lines(log, [{"loss": 1.0, "step": 1}])
    done = run_script("examples/make_demo.py", "steps", "--train_log", log, "--seconds", 9, status=2)
    assert done.stderr == f"error: {log} has no train_runtime in its last entry; finish its run first\n"


def test_summary_compares_before_and_after(tmp_path: Path) -> None:
    held_out = [{"eval_perplexity_zh": 8.0, "eval_perplexity_en": 2.0}, {"loss": 1.0}]
    write_lines(tmp_path / "train_log.jsonl", [*held_out, {"eval_perplexity_zh": 4.0, "eval_perplexity_en": 2.02}])
    assert perplexities(tmp_path) == {"zh": [8.0, 4.0], "en": [2.0, 2.02]}
    scores = {"entity": {"f1": 0.5}, "triple": {"f1": 0.25}, "parsed": 1.0, "not_in_text": 0.01, "examples": 9}
    summary = {
        "perplexity": perplexities(tmp_path), "facts": {"base": (3, 4), "merged": (2, 4)}, "recovery": "equal",
        "scores": dict.fromkeys(("base", "merged", "merged-q8_0", "merged-q4_0", "extracted"), scores), "answer": {},
        "seconds": {"base": 90},
    }  # fmt: skip
    table = summary_table(summary)
    assert "zh" in table
    assert "(-50%)" in table
    assert "3/4 base, 2/4 merged" in table
    assert table.count("0.500        0.250   100.0%         1.0%         9") == 5
