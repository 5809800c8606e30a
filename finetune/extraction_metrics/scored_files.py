"""Pairs of prediction and right answer from the files that ie_run.py writes and reads."""

from typing import Any

from json_rows.row_files import iterate_objects


def read_texts(path: str, key: str) -> list[dict[str, Any]]:
    """The rows of a file, each with text under `key`; raises FileNotFoundError, or ValueError with file and line."""
    rows = []
    for place, row in iterate_objects(path):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{place} has no text under {key!r}; finetune/ie_run.py writes predictions")
        rows.append(row)
    return rows


def answer_pairs(predictions: str, gold: str = "") -> list[tuple[str, str]]:
    """(prediction, right answer) for each row of `predictions`; right answers are its own, or those of `gold`.

    Raises FileNotFoundError, or ValueError where the rows of the two files do not ask the same.
    """
    answered = read_texts(predictions, "prediction")
    right = read_texts(gold or predictions, "output")
    if len(answered) != len(right):
        raise ValueError(
            f"{predictions} has {len(answered)} rows, {gold} {len(right)}; give files with the same rows in one order"
        )
    for number, (one, other) in enumerate(zip(answered, right, strict=True), 1):
        for key in ("instruction", "input"):
            if key in one and key in other and one[key] != other[key]:
                raise ValueError(
                    f"row {number} of {predictions} has another {key} than row {number} of {gold}; give files with the "
                    "same rows in one order"
                )
    return [(one["prediction"], other["output"]) for one, other in zip(answered, right, strict=True)]
