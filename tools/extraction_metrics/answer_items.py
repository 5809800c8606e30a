"""Read the items of an extraction answer: entities and triples.

An answer is a JSON object of lists. Names are entities ({"person": ["Ann Lee"]}). Objects with subject and object are
triples ({"born in": [{"subject": "Ann Lee", "object": "Oslo"}]}).
"""

import json
import re
from collections import Counter
from itertools import islice
from typing import Any, NamedTuple

TASKS = ("entity", "triple")
PAIRS = (("subject", "object"), ("head", "tail"))  # keys of a triple in our answers, and in published annotations
MAX_BRACES = 100  # maximum number of opening braces at which json_object_in tries to parse an object


class AnswerItem(NamedTuple):
    """An entity, a triple or another value of an answer; two items match if they are equal."""

    kind: str  # "entity", "triple" or "other"
    content: tuple[str, ...]

    @property
    def label(self) -> str:
        """The type of an entity, or the relation of a triple."""
        return self.content[1 if self.kind == "triple" else 0]

    @property
    def names(self) -> tuple[str, ...]:
        """The name of an entity, or subject and object of a triple."""
        return {"entity": self.content[1:], "triple": self.content[::2]}.get(self.kind, ())


class Answer(NamedTuple):
    """The items of an answer as a multiset, and whether it is a JSON object of lists."""

    items: Counter[AnswerItem]
    parsed: bool


def parse_answer(answer: str) -> Counter[AnswerItem] | None:
    """Return the items of an answer as a multiset; None if it is not a JSON object of lists."""
    items, parsed = read_answer(answer)
    return items if parsed else None


def read_answer(answer: str) -> Answer:
    """Return the items of an answer.

    If the answer is JSON but not an object of lists, each value, or each item of a list, is an item. Lists under equal
    keys are joined.
    """
    try:
        found = json.loads(answer, object_pairs_hook=_with_joined_lists)
    except (ValueError, RecursionError):  # a number of more than 4300 digits is a ValueError
        return Answer(Counter(), False)
    by_label = found if isinstance(found, dict) else {"": found}
    parsed = by_label is found and all(isinstance(value, list) for value in found.values())
    lists = {label: value if isinstance(value, list) else [value] for label, value in by_label.items()}
    return Answer(Counter(to_item(label, value) for label, items in lists.items() for value in items), parsed)


def _with_joined_lists(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        both_lists = isinstance(value, list) and isinstance(found.get(key), list)
        found[key] = found[key] + value if both_lists else value
    return found


def json_object_in(answer: str) -> str:
    """Return the first JSON object of lists in an answer, without code fence and other text; "" if there is none."""
    decoder, end = json.JSONDecoder(), 0
    for brace in islice(re.finditer(r"\{", answer), MAX_BRACES):
        if brace.start() >= end:
            try:
                found, end = decoder.raw_decode(answer, brace.start())
            except (ValueError, RecursionError):
                continue
            if all(isinstance(value, list) for value in found.values()):
                return answer[brace.start() : end]
    return ""


def to_item(label: str, value: Any) -> AnswerItem:
    """Return a value of an answer as an item.

    Text is an entity of type `label`, an object with subject and object is a triple, all else is of kind "other".
    """
    if isinstance(value, str):
        return AnswerItem("entity", (label, value))
    if isinstance(value, dict):
        for first, second in PAIRS:
            if isinstance(value.get(first), str) and isinstance(value.get(second), str):
                return AnswerItem("triple", (value[first], label, value[second]))
    return AnswerItem("other", (label, json.dumps(value, sort_keys=True, ensure_ascii=False)))


def gold_error(output: str) -> str:
    """Return the reason why a correct answer cannot be scored, or "" if it can."""
    gold = parse_answer(output)
    if gold is None:
        return f"is not a JSON object of lists ({output[:60]!r})"
    other = next((item for item in gold if item.kind not in TASKS), None)
    if other is None:
        return ""
    label, value = other.content
    return f"has {value[:60]} under {label[:60]!r}, which is neither a name nor an object with subject and object"
