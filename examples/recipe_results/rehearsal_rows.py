"""Make instruction rows from a base model's own answers, so that tuning on new tasks preserves its other abilities.

The method is pseudo-rehearsal (Robins 1995, https://doi.org/10.1080/09540099550039318): the inputs are questions, the
correct outputs are the answers of the base. Tuning on extraction makes a model copy names from its input, and so lose
facts ("The capital of Nigeria is Nigeria"). Therefore most questions ask for a fact about a name in the training
examples, which the base can only answer from memory.
"""

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

from json_rows.row_files import iterate_objects
from partial_folders.atomic_outputs import new_file


def annotated_names(rows: str) -> Iterator[str]:
    """Yield the names of the annotated entities in rows of ie_build.py for the task ner, in order.

    Raises ValueError with file and line for a row without annotated entities.
    """
    for location, row in iterate_objects(rows):
        try:
            yield from [str(entity["name"]) for entity in row["gold"]["entities"]]
        except (KeyError, TypeError):
            raise ValueError(f"{location} has no annotated entities; give rows of ie_build.py --task ner") from None


def instructions_of(file: str) -> Iterator[dict[str, str]]:
    """Yield {"instruction", "input"} for each row of a JSON or JSONL file; the inputs are empty if rows have none.

    Raises ValueError with file and line for a row without an instruction.
    """
    for location, row in iterate_objects(file):
        instruction, input = row.get("instruction"), row.get("input", "")
        if not (isinstance(instruction, str) and isinstance(input, str)):
            raise ValueError(f'{location} has no "instruction"; give rows of "instruction" and, optionally, "input"')
        yield {"instruction": instruction, "input": input}


def write_rehearsal_prompts(rows: str, instructions: str, output: str, number: int = 1500, seed: int = 0) -> None:
    """Write instruction rows that a base model shall answer (JSONL): questions about names, and given instructions.

    Args:
        rows: training examples of ie_build.py for the task ner, whose annotated names are asked about.
        instructions: JSON or JSONL of {"instruction", "input"}, of which at most `number` are used.
        output: the file to write.
        number: how many different names are drawn; fewer if the examples have fewer.
        seed: of the draw.
    """
    if number < 1:
        raise ValueError(f"--number {number} is too small; it must be at least 1")
    names = list(dict.fromkeys(annotated_names(rows)))
    drawn = random.Random(seed).sample(names, min(number, len(names)))
    prompts = [{"instruction": f"State a fact about {name} in one sentence.", "input": ""} for name in drawn]
    prompts += list(instructions_of(instructions))[:number]
    write_rows(prompts, output)
    print(f"{output}: questions about {len(drawn)} of {len(names)} names, {len(prompts) - len(drawn)} instructions")


def rehearsal_rows(answers: str) -> Iterator[dict[str, str]]:
    """Yield {"instruction", "input", "output"} for each complete, non-empty answer of a file.

    answers: an output of ie_run.py. Raises ValueError with file and line for a row of another format.
    """
    for location, row in iterate_objects(answers):
        texts = [row.get("instruction"), row.get("input", ""), row.get("prediction"), row.get("finish_reason")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{location} is not an answer to an instruction; give an output of ie_run.py")
        instruction, input, prediction, finish_reason = texts
        if finish_reason == "stop" and prediction.strip():
            yield {"instruction": instruction, "input": input, "output": prediction}


def write_rehearsal_rows(answers: str, output: str) -> None:
    """Write instruction rows whose correct answers are the predictions of a model (JSONL).

    Args:
        answers: an output of ie_run.py; truncated and empty answers are omitted.
        output: the file to write.
    """
    rows = list(rehearsal_rows(answers))
    write_rows(rows, output)
    print(f"{output}: {len(rows)} complete answers")


def write_rows(rows: Iterable[dict[str, Any]], output: str) -> None:
    """Write rows as JSONL; the file appears complete or not at all."""
    with new_file(output, replace=True) as file:
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
