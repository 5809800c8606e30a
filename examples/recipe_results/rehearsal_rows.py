"""Make instruction rows from a base model's own answers, so that tuning on new tasks preserves its other abilities.

The method is pseudo-rehearsal (Robins 1995, https://doi.org/10.1080/09540099550039318), with instructions as inputs.
"""

import json
from collections.abc import Iterator

from json_rows.row_files import iterate_objects
from partial_folders.atomic_outputs import new_file


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


def write_rehearsal_rows(answers: str, output: str, copies: int = 1) -> None:
    """Write instruction rows whose correct answers are the predictions of a model (JSONL).

    Args:
        answers: an output of ie_run.py; truncated and empty answers are omitted.
        output: the file to write.
        copies: how often each row is written.
    """
    if copies < 1:
        raise ValueError(f"--copies {copies} is too small; it must be at least 1")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rehearsal_rows(answers)]
    with new_file(output, replace=True) as file:
        file.write_text("".join(lines) * copies, encoding="utf-8")
    print(f"{output}: {len(lines)} answers, each {copies} times")
