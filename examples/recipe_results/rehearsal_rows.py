"""Make instruction rows from a base model's own answers, so that tuning on new tasks preserves its other abilities.

The method is pseudo-rehearsal (Robins 1995, https://doi.org/10.1080/09540099550039318): the inputs are instructions and
beginnings of sentences, the correct outputs are the answers of the base. Many different inputs preserve more than a
few repeated ones, whose answers the model memorises (benchmarks/RESULTS.md).
"""

import json
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

from json_rows.row_files import iterate_objects
from partial_folders.atomic_outputs import new_file

SENTENCE_WORDS = range(10, 31)  # numbers of words of a sentence whose first half is an input


def sentence_beginnings(corpus: str) -> Iterator[str]:
    """Yield the first half of each sentence of 10 to 30 words that begins with a capital letter.

    corpus: JSONL of {"text"}, in a language that separates words by spaces. Raises ValueError with file and line for a
    row of another format.
    """
    for location, row in iterate_objects(corpus):
        if not isinstance(row.get("text"), str):
            raise ValueError(f'{location} has no "text"; give a corpus with one {{"text": …}} per line')
        for sentence in re.split(r"(?<=[.!?])\s+|\n", row["text"]):
            words = sentence.split()
            if len(words) in SENTENCE_WORDS and words[0][0].isupper() and words[-1][-1] in ".!?":
                yield " ".join(words[: len(words) // 2])


def instructions_of(file: str) -> Iterator[dict[str, str]]:
    """Yield {"instruction", "input"} for each row of a JSON or JSONL file; the inputs are empty if rows have none.

    Raises ValueError with file and line for a row without an instruction.
    """
    for location, row in iterate_objects(file):
        instruction, input = row.get("instruction"), row.get("input", "")
        if not (isinstance(instruction, str) and isinstance(input, str)):
            raise ValueError(f'{location} has no "instruction"; give rows of "instruction" and, optionally, "input"')
        yield {"instruction": instruction, "input": input}


def write_rehearsal_prompts(corpus: str, instructions: str, output: str, number: int = 1000, seed: int = 0) -> None:
    """Write instruction rows that a base model shall answer (JSONL): sentences to complete, and given instructions.

    Args:
        corpus: JSONL of {"text"}, in a language that separates words by spaces.
        instructions: JSON or JSONL of {"instruction", "input"}, of which at most `number` are used.
        output: the file to write.
        number: how many different sentences of the corpus are drawn; fewer if the corpus has fewer.
        seed: of the draw.
    """
    if number < 1:
        raise ValueError(f"--number {number} is too small; it must be at least 1")
    beginnings = list(dict.fromkeys(sentence_beginnings(corpus)))
    drawn = random.Random(seed).sample(beginnings, min(number, len(beginnings)))
    rows = [{"instruction": f"Complete the sentence: {beginning} …", "input": ""} for beginning in drawn]
    rows += list(instructions_of(instructions))[:number]
    write_rows(rows, output)
    print(f"{output}: {len(drawn)} of {len(beginnings)} sentences, {len(rows) - len(drawn)} instructions")


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
