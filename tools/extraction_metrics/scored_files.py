"""Read pairs of prediction and correct answer from the files that ie_run.py writes and reads."""

from typing import Any

from json_rows.row_files import iterate_objects


def read_rows_with_text(path: str, key: str) -> list[dict[str, Any]]:
    """Return the rows of a file. Raises FileNotFoundError, or ValueError with file and line if `key` has no text."""
    rows = []
    for location, row in iterate_objects(path):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{location} has no text under {key!r}; finetune/ie_run.py writes predictions")
        rows.append(row)
    return rows


def answer_pairs(predictions: str, gold: str = "") -> list[tuple[str, str]]:
    """Return (prediction, correct answer) for each row of `predictions`.

    The correct answers are those of `gold`, else those of `predictions`. Raises FileNotFoundError, or ValueError if the
    two files differ in the number of rows or in the instruction or input of a row.
    """
    gold = gold or predictions
    answered, correct = read_rows_with_text(predictions, "prediction"), read_rows_with_text(gold, "output")
    remedy = "give two files with the same rows in the same order"
    if len(answered) != len(correct):
        counts = f"{len(answered)} and {len(correct)}"
        raise ValueError(f"{predictions} and {gold} have different numbers of rows, {counts}; {remedy}")
    pairs = list(zip(answered, correct, strict=True))
    for number, (one, other) in enumerate(pairs, 1):
        for key in ("instruction", "input"):
            if key in one and key in other and one[key] != other[key]:
                raise ValueError(
                    f"row {number} of {predictions} has another {key} than row {number} of {gold}; {remedy}"
                )
    return [(one["prediction"], other["output"]) for one, other in pairs]
