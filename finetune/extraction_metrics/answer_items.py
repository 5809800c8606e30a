"""Read the items of an extraction answer: entities, triples, triggers and arguments.

An answer is a JSON object of lists. Names are entities ({"person": ["Ann Lee"]}). Objects with subject and object are
triples ({"born in": [{"subject": "Ann Lee", "object": "Oslo"}]}). If the task of the answer is known, the task decides
how the answer is read; task_answers.py reads events and knowledge graphs.
"""

import json
import re
from collections import Counter
from itertools import islice
from typing import Any, NamedTuple

from extraction_metrics.item_kinds import KINDS_OF_TASK, TASKS, AnswerItem, as_json
from extraction_metrics.task_answers import STRUCTURED, structured_items

PAIRS = (("subject", "object"), ("head", "tail"))  # keys of a triple in our answers, and in published annotations
MAX_BRACES = 100  # maximum number of opening braces at which json_object_in tries to parse an object


class Answer(NamedTuple):
    """The items of an answer as a multiset, and whether it has the form of an answer."""

    items: Counter[AnswerItem]
    parsed: bool


def parse_answer(answer: str, task: str = "") -> Counter[AnswerItem] | None:
    """Return the items of an answer as a multiset; None if it does not have the form of an answer."""
    items, parsed = read_answer(answer, task)
    return items if parsed else None


def read_answer(answer: str, task: str = "") -> Answer:
    """Return the items of an answer.

    task: a key of KINDS_OF_TASK, or "" if it is not known. If the answer is JSON but not an object of lists (kg: of
    objects), each value, or each item of a list, is an item. Lists and objects under equal keys are joined.
    """
    found = parse_json(answer)
    if found is INVALID:
        return Answer(Counter(), False)
    if task in STRUCTURED:
        return Answer(*structured_items(found, task))
    by_label = found if isinstance(found, dict) else {"": found}
    parsed = by_label is found and all(isinstance(value, list) for value in found.values())
    lists = {label: value if isinstance(value, list) else [value] for label, value in by_label.items()}
    return Answer(Counter(to_item(label, value) for label, items in lists.items() for value in items), parsed)


INVALID = object()  # result of parse_json for text that is not JSON


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, with values of equal keys joined; INVALID if it is not JSON."""
    try:
        return json.loads(text, object_pairs_hook=_joined_object)
    except (ValueError, RecursionError):  # a number of more than 4300 digits is a ValueError
        return INVALID


def _joined_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = joined(found[key], value) if key in found else value
    return found


def joined(first: Any, second: Any) -> Any:
    """Extend the first of two lists or objects, in linear time, and return it; of other values, return the second."""
    if isinstance(first, list) and isinstance(second, list):
        first.extend(second)
        return first
    if isinstance(first, dict) and isinstance(second, dict):
        for key, value in second.items():
            first[key] = joined(first[key], value) if key in first else value
        return first
    return second


def json_object_in(answer: str, task: str = "") -> str:
    """Return the first JSON object of lists in an answer, without code fence and other text; "" if there is none.

    task: for kg, the values must be objects, not lists.
    """
    decoder, end = json.JSONDecoder(), 0
    values = dict if task == "kg" else list
    for brace in islice(re.finditer(r"\{", answer), MAX_BRACES):
        if brace.start() >= end:
            try:
                found, end = decoder.raw_decode(answer, brace.start())
            except (ValueError, RecursionError):
                continue
            if all(isinstance(value, values) for value in found.values()):
                return answer[brace.start() : end]
    return ""


def to_item(label: str, value: Any) -> AnswerItem:
    """Return a value of an answer as an item.

    Text is an entity of type `label`, an object with subject and object is a triple, another value is of kind "other".
    """
    if isinstance(value, str):
        return AnswerItem("entity", (label, value))
    if isinstance(value, dict):
        for first, second in PAIRS:
            if isinstance(value.get(first), str) and isinstance(value.get(second), str):
                return AnswerItem("triple", (value[first], label, value[second]))
    return AnswerItem("other", (label, as_json(value)))


def gold_error(output: str, task: str = "") -> str:
    """Return the reason why a correct answer cannot be scored, or "" if it can; task: as in read_answer."""
    gold = parse_answer(output, task)
    if gold is None:
        return f"is not a JSON object of {'objects' if task == 'kg' else 'lists'} ({output[:60]!r})"
    kinds = KINDS_OF_TASK.get(task, TASKS)
    other = next((item for item in gold if item.kind not in kinds or not item.well_formed), None)
    if other is None:
        return ""
    if task:
        return f"has {as_json(other.content[-1])[:60]} under {other.label[:60]!r}, which is not an item of task {task}"
    label, value = other.content
    return f"has {value[:60]} under {label[:60]!r}, which is neither a name nor an object with subject and object"
