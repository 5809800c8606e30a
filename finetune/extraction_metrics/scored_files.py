"""Read predictions and correct answers from the files of ie_run.py and batch.py, and from instruction rows."""

import json
from collections import defaultdict
from typing import Any

from json_rows.instruction_rows import messages_of, prompt_messages, row_error
from json_rows.row_files import iterate_objects

from extraction_metrics.answer_items import gold_error
from extraction_metrics.row_scores import ScoredRow

PREDICTION_KEYS = ("prediction", "generated_text")  # of ie_run.py, and of batch.py with /generate
ITEM_KEYS = ("entities", "triples")  # of batch.py with /extract


def prediction_of(location: str, row: dict[str, Any]) -> str:
    """Return the prediction of a row; the items of an /extract response are converted to an answer.

    Raises ValueError if the row has an error of batch.py, or if it has no prediction.
    """
    if row.get("error") and (row.get("generated_text") is not None or row.get("complete") is False):
        raise ValueError(f"{location} has an error instead of an answer ({str(row['error'])[:80]}); answer it again")
    text = next((row[key] for key in PREDICTION_KEYS if isinstance(row.get(key), str)), None)
    if text is None and any(isinstance(row.get(key), list) for key in ITEM_KEYS):
        return extracted_answer(location, row)
    if text is None:
        raise ValueError(
            f"{location} has no text under 'prediction', entities or triples; give a file of ie_run.py or batch.py"
        )
    return str(text)


def extracted_answer(location: str, row: dict[str, Any]) -> str:
    """Convert the items of an /extract response to an answer, JSON of {type: [name]} and {relation: [triple]}.

    Raises ValueError if an item does not have the form that /extract returns.
    """
    answer = defaultdict[str, list[Any]](list)
    for key in ITEM_KEYS:
        for item in row[key] if isinstance(row.get(key), list) else ():
            try:
                if key == "entities":
                    label, content = item["type"], item["name"]
                    texts = [label, content]
                else:
                    label, content = item["relation"], {end: item[end]["name"] for end in ("subject", "object")}
                    texts = [label, *content.values()]
            except (TypeError, KeyError):
                texts = [None]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{location} has an item under {key!r} that /extract does not return; answer it again")
            answer[label].append(content)
    return json.dumps(answer)


def finish_reason_of(row: dict[str, Any]) -> str:
    """Return the finish reason of a row, "" if it has none; `complete` of /extract becomes "stop" or "length"."""
    if isinstance(row.get("finish_reason"), str):
        return str(row["finish_reason"])
    complete = row.get("complete") if any(key in row for key in ITEM_KEYS) else None
    return ("stop" if complete else "length") if isinstance(complete, bool) else ""


def text_of(row: dict[str, Any]) -> str | None:
    """Return the text from which items are extracted, or None.

    This is the `input` of the row, or the `text` of an /extract request, else all user messages.
    """
    for key in ("input", "text"):
        if row.get("messages") is None and isinstance(row.get(key), str) and row[key]:
            return str(row[key])
    if row_error(row, answers=False):
        return None
    questions = [message for message in prompt_messages(row) if message["role"] == "user"]
    return "\n".join(message[key] for message in questions for key in ("content", "input") if message.get(key))


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
    """Return the question of a row, in the same form for both kinds of instruction rows; None if it has no question.

    The question of a row that is not an instruction row is its `input`.
    """
    if row_error(row, answers=False):
        return row.get("input")
    return [{key: text for key, text in message.items() if text} for message in prompt_messages(row)]


def scored_rows(predictions: str, gold: str = "") -> list[ScoredRow]:
    """Return the rows of `predictions` with their correct answers.

    The correct answers are read from `gold`, or from `predictions` if `gold` is empty. Text and order are read from
    `gold` for rows of `predictions` without them. Raises FileNotFoundError, or ValueError if a row has no prediction or
    no correct answer that can be scored, or if the two files differ in the number of rows or in the question of a row.
    """
    gold = gold or predictions
    answered = list(iterate_objects(predictions))
    answers = [prediction_of(*each) for each in answered]
    correct = list(iterate_objects(gold))
    remedy = "give two files with the same rows in the same order"
    if len(answered) != len(correct):
        counts = f"{len(answered)} and {len(correct)}"
        raise ValueError(f"{predictions} and {gold} have different numbers of rows, {counts}; {remedy}")
    rows = []
    for number, (answer, (_, one), (location, other)) in enumerate(zip(answers, answered, correct, strict=True), 1):
        questions = question_of(one), question_of(other)
        if None not in questions and questions[0] != questions[1]:
            fact = f"row {number} of {predictions} has another question than row {number} of {gold}"
            raise ValueError(f"{fact}; {remedy}")
        text = text_of(one)
        order = one.get("order", other.get("order"))
        rows.append(
            ScoredRow(
                prediction=answer,
                gold=correct_answer_of(location, other),
                text=text_of(other) if text is None else text,
                finish_reason=finish_reason_of(one),
                order="" if order is None else json.dumps(order, sort_keys=True),
            )
        )
    return rows
