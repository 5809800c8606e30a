"""Read predictions and correct answers from the files of ie_run.py and batch.py, and from instruction rows."""

import json
from typing import Any

from json_rows.instruction_rows import messages_of, prompt_messages, row_error
from json_rows.row_files import iterate_objects

from extraction_metrics.answer_items import INVALID, gold_error, parse_json
from extraction_metrics.extract_responses import ITEM_KEYS, annotated_spans, extracted_answer, predicted_spans
from extraction_metrics.item_kinds import KINDS_OF_TASK
from extraction_metrics.labelled_rows import is_labelled, labelled_answer
from extraction_metrics.row_scores import ScoredRow

PREDICTION_KEYS = ("prediction", "generated_text")  # of ie_run.py, and of batch.py with /generate


def prediction_of(location: str, row: dict[str, Any]) -> str:
    """Return the prediction of a row; the items of an /extract response are converted to an answer.

    Raises ValueError if the row has an error of batch.py, or if it has no prediction.
    """
    if row.get("error") and (row.get("generated_text") is not None or row.get("complete") is False):
        raise ValueError(f"{location} has an error instead of an answer ({str(row['error'])[:80]}); rerun batch.py")
    text = next((row[key] for key in PREDICTION_KEYS if isinstance(row.get(key), str)), None)
    if not has_text(row) and any(isinstance(row.get(key), list) for key in ITEM_KEYS):
        return extracted_answer(location, row)
    if text is None and is_labelled(row, has_prediction=False) and isinstance(row.get("output"), str):
        return str(row["output"])
    if text is None:
        fact = "has no text under 'prediction', entities, triples or events"
        raise ValueError(f"{location} {fact}; give a file of ie_run.py or batch.py")
    return str(text)


def has_text(row: dict[str, Any]) -> bool:
    """Return whether a row has its prediction as text."""
    return any(isinstance(row.get(key), str) for key in PREDICTION_KEYS)


def finish_reason_of(row: dict[str, Any]) -> str:
    """Return the finish reason of a row, "" if it has none; `complete` of /extract becomes "stop" or "length"."""
    if isinstance(row.get("finish_reason"), str):
        return str(row["finish_reason"])
    complete = row.get("complete") if any(key in row for key in ITEM_KEYS) else None
    return ("stop" if complete else "length") if isinstance(complete, bool) else ""


def text_of(row: dict[str, Any]) -> str | None:
    """Return the text from which items are extracted, or None.

    This is the `input` of the row, or the `text` of an /extract request, or the "input" of an instruction in JSON
    ({"instruction", "schema", "input"}), else all user messages.
    """
    for key in ("input", "text"):
        if row.get("messages") is None and isinstance(row.get(key), str) and row[key]:
            return str(row[key])
    if row_error(row, answers=False):
        return None
    question = json_question(row)
    if isinstance(question.get("input"), str):
        return str(question["input"])
    questions = [message for message in prompt_messages(row) if message["role"] == "user"]
    return "\n".join(message[key] for message in questions for key in ("content", "input") if message.get(key))


def json_question(row: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON object of an instruction {"instruction", "schema", "input"}; {} if it is not one."""
    instruction = row.get("instruction")
    if not isinstance(instruction, str) or not instruction.lstrip().startswith("{") or '"schema"' not in instruction:
        return {}
    found = parse_json(instruction)
    return found if found is not INVALID and isinstance(found, dict) and "schema" in found else {}


def task_of(location: str, row: dict[str, Any], default: str = "") -> str:
    """Return the task of a row, in lower case: its "task", or `default`; raises ValueError for an unknown task."""
    task = row.get("task")
    if task is None or task == "":
        return default
    if isinstance(task, str) and task.lower() in KINDS_OF_TASK:
        return task.lower()
    raise ValueError(
        f"{location} has the task {str(task)[:40]!r}; a task is one of {', '.join(KINDS_OF_TASK)}; correct or remove it"
    )


def correct_answer_of(location: str, row: dict[str, Any], task: str = "") -> str:
    """Return the correct answer of a row: its `output`, the last answer of its `messages`, or that of its `label`.

    Raises ValueError if there is none, or if it cannot be scored.
    """
    has_prediction = has_text(row) or any(isinstance(row.get(key), list) for key in ITEM_KEYS)
    if row.get("messages") is None and is_labelled(row, has_prediction):
        text = labelled_answer(location, row, json_question(row), task)
    elif row.get("messages") is not None:
        if error := row_error(row, answers=True):
            raise ValueError(f"{location} {error}; give rows with the correct answers")
        text = messages_of(row)[-1]["content"]
    elif isinstance(row.get("output"), str):
        text = row["output"]
    else:
        raise ValueError(f"{location} has no text under 'output', the correct answer; give rows with correct answers")
    if error := gold_error(text, task):
        raise ValueError(f"{location} has a correct answer that {error}; give a file of extraction examples")
    return text


def question_of(row: dict[str, Any]) -> Any:
    """Return the question of a row, in the same form for both kinds of instruction rows; None if it has no question.

    The question of a row that is not an instruction row is its `input`.
    """
    if row_error(row, answers=False):
        return row.get("input")
    return [{key: text for key, text in message.items() if text} for message in prompt_messages(row)]


def scored_rows(predictions: str, gold: str = "", task: str = "") -> list[ScoredRow]:
    """Return the rows of `predictions` with their correct answers.

    The correct answers are read from `gold`, or from `predictions` if `gold` is empty. Text, order and task are read
    from `gold` for rows of `predictions` without them. task: that of rows without "task". Raises FileNotFoundError, or
    ValueError if a row has no prediction or no correct answer that can be scored, or if the two files differ in the
    number of rows or in the question of a row.
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
    for number, (answer, (place, one), (location, other)) in enumerate(zip(answers, answered, correct, strict=True), 1):
        questions = question_of(one), question_of(other)
        if None not in questions and questions[0] != questions[1]:
            fact = f"row {number} of {predictions} and row {number} of {gold} have different questions"
            raise ValueError(f"{fact}; {remedy}")
        text = text_of(one)
        order = one.get("order", other.get("order"))
        own_task = task_of(place, one) or task_of(location, other, task)
        parts = one.get("unparsed_parts")
        rows.append(
            ScoredRow(
                prediction=answer,
                gold=correct_answer_of(location, other, own_task),
                text=text_of(other) if text is None else text,
                finish_reason=finish_reason_of(one),
                order="" if order is None else json.dumps(order, sort_keys=True),
                task=own_task,
                gold_spans=annotated_spans(location, other),
                predicted_spans=None if has_text(one) else predicted_spans(place, one),
                unparsed_parts=parts if isinstance(parts, int) else 0,
            )
        )
    return rows
