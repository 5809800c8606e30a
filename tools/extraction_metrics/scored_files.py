"""Read pairs of prediction and correct answer from the files of ie_run.py and batch.py, and from instruction rows."""

from typing import Any

from json_rows.instruction_rows import messages_of, prompt_messages, row_error
from json_rows.row_files import iterate_objects

from extraction_metrics.answer_scores import gold_error

PREDICTION_KEYS = ("prediction", "generated_text")  # of ie_run.py, and of batch.py


def prediction_of(location: str, row: dict[str, Any]) -> str:
    """Return the prediction of a row; raises ValueError if it has an error of batch.py instead, or none."""
    if row.get("generated_text") is not None and row.get("error"):
        raise ValueError(f"{location} has an error instead of an answer ({str(row['error'])[:80]}); answer it again")
    text = next((row[key] for key in PREDICTION_KEYS if isinstance(row.get(key), str)), None)
    if text is None:
        raise ValueError(f"{location} has no text under 'prediction'; finetune/ie_run.py writes predictions")
    return str(text)


def correct_answer_of(location: str, row: dict[str, Any]) -> str:
    """Return the correct answer of a row: its `output`, or the last answer of its `messages`.

    Raises ValueError if there is none, or if it cannot be scored.
    """
    if row.get("messages") is not None:
        if error := row_error(row, answers=True):
            raise ValueError(f"{location} {error}; give rows with the correct answers")
        text = messages_of(row)[-1]["content"]
    elif isinstance(row.get("output"), str):
        text = row["output"]
    else:
        raise ValueError(f"{location} has no text under 'output', the correct answer; give rows with correct answers")
    if error := gold_error(text):
        raise ValueError(f"{location} has a correct answer that {error}; give a file of extraction examples")
    return text


def question_of(row: dict[str, Any]) -> Any:
    """Return what a row asks, equal for both forms of instruction rows; None if the row does not say."""
    if row_error(row, answers=False):
        return row.get("input")
    return [{key: text for key, text in message.items() if text} for message in prompt_messages(row)]


def answer_pairs(predictions: str, gold: str = "") -> list[tuple[str, str]]:
    """Return (prediction, correct answer) for each row of `predictions`.

    The correct answers are those of `gold`, else those of `predictions`. Raises FileNotFoundError, or ValueError if a
    row has no prediction, or no correct answer that can be scored, or if the two files differ in the number of rows or
    in the question of a row.
    """
    gold = gold or predictions
    answered = list(iterate_objects(predictions))
    answers = [prediction_of(*each) for each in answered]
    correct = list(iterate_objects(gold))
    remedy = "give two files with the same rows in the same order"
    if len(answered) != len(correct):
        counts = f"{len(answered)} and {len(correct)}"
        raise ValueError(f"{predictions} and {gold} have different numbers of rows, {counts}; {remedy}")
    for number, ((_, one), (_, other)) in enumerate(zip(answered, correct, strict=True), 1):
        questions = question_of(one), question_of(other)
        if None not in questions and questions[0] != questions[1]:
            fact = f"row {number} of {predictions} has another question than row {number} of {gold}"
            raise ValueError(f"{fact}; {remedy}")
    return list(zip(answers, [correct_answer_of(*each) for each in correct], strict=True))
