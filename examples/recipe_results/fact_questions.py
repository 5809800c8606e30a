"""Questions about facts: make instruction rows for ie_run.py from files of relations, and count correct answers.

The files have the format of https://github.com/evandez/relations (MIT): {"prompt_templates": ["The capital of {} is"],
"samples": [{"subject": "France", "object": "Paris"}]}.
"""

import json
import unicodedata
from pathlib import Path
from typing import Any

from json_rows.row_files import iterate_objects, read_json
from partial_folders.atomic_outputs import new_file

# Relations with one short object per subject; a small model knows some of the objects.
RELATIONS = (
    "country_capital_city", "country_language", "country_largest_city", "landmark_on_continent", "product_by_company",
)  # fmt: skip
WORDINGS = 3  # of each question, so that the count depends less on one wording


def fact_questions(folder: Path, number: int) -> list[dict[str, str]]:
    """Return {"instruction", "input", "output", "relation"} for the first `number` samples of each of RELATIONS.

    Each sample is asked about in the first WORDINGS different wordings of its file. Raises FileNotFoundError, or
    ValueError if a file has another format.
    """
    rows = []
    for relation in RELATIONS:
        file = folder / f"{relation}.json"
        content = read_json(str(file), "--facts_path takes a folder of relations")
        try:
            templates = [*content["prompt_templates"], *content.get("prompt_templates_zs", [])]
            wordings = [template.split("{}") for template in list(dict.fromkeys(templates))[:WORDINGS]]
            pairs = [(str(sample["subject"]), str(sample["object"])) for sample in content["samples"][:number]]
            questions = [
                (f"{before}{subject}{after}", answer) for before, after in wordings for subject, answer in pairs
            ]
        except (TypeError, KeyError, IndexError, ValueError, AttributeError):
            form = '{"prompt_templates": ["… {} …"], "samples": [{"subject", "object"}]}'
            raise ValueError(f"{file} does not have the format {form}; download it again") from None
        rows += [
            {"instruction": f"Complete the sentence: {question} …", "input": "", "output": answer, "relation": relation}
            for question, answer in questions
        ]
    return rows


def write_fact_questions(facts_path: str, output: str, number: int = 24) -> None:
    """Write questions about facts as instruction rows (JSONL).

    Args:
        facts_path: folder with one file per relation, such as country_capital_city.json.
        output: the file to write.
        number: number of samples of each relation, each with up to three questions.
    """
    if number < 1:
        raise ValueError(f"--number {number} is too small; it must be at least 1")
    rows = fact_questions(Path(facts_path), number)
    with new_file(output, replace=True) as file:
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{output}: {len(rows)} questions about {len(RELATIONS)} relations")


def count_correct_answers(predictions: str) -> tuple[int, int]:
    """Return (correct answers, questions) of a file that ie_run.py wrote.

    An answer is correct if it contains the object; case and accents are ignored.
    """
    rows: list[dict[str, Any]] = [row for _, row in iterate_objects(predictions)]
    correct = sum(without_accents(row["output"]) in without_accents(row["prediction"]) for row in rows)
    return correct, len(rows)


def without_accents(text: str) -> str:
    """Return the text in lower case without combining characters."""
    return "".join(each for each in unicodedata.normalize("NFD", text.casefold()) if not unicodedata.combining(each))
