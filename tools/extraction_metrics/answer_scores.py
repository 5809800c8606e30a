"""Score extraction answers: precision, recall and F1 of entities and triples, shares of exact and parsed answers.

An answer is a JSON object of lists. Names are entities ({"person": ["Ann Lee"]}). Objects with subject and object are
triples ({"born in": [{"subject": "Ann Lee", "object": "Oslo"}]}). Counts are summed over all examples (micro average).
Items are matched as multisets: a repeated item must also be repeated in the correct answer.

All items of a prediction count: in an example with one task for this task, otherwise for the task of their own shape.
The items of JSON in another form count as wrong. Text that is not JSON has no items; it lowers `parsed` and recall.
"""

import json
import re
from collections import Counter
from itertools import islice
from typing import Any, NamedTuple

TASKS = ("entity", "triple")
PAIRS = (("subject", "object"), ("head", "tail"))  # keys of a triple in our answers, and in published annotations
BRACES = 100  # opening braces of an answer at which json_object_in looks for an object


class AnswerItem(NamedTuple):
    """An entity, a triple or another value of an answer; two items match if they are equal."""

    kind: str
    content: tuple[str, ...]


class Answer(NamedTuple):
    """The items of an answer as a multiset, and whether it is a JSON object of lists."""

    items: Counter[AnswerItem]
    parsed: bool


def parse_answer(answer: str) -> Counter[AnswerItem] | None:
    """Return the items of an answer as a multiset; None if it is not a JSON object of lists."""
    items, parsed = read_answer(answer)
    return items if parsed else None


def read_answer(answer: str) -> Answer:
    """Return the items of an answer; JSON in another form has items too: each value, or each item of a list.

    Lists under equal keys are joined.
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
    for brace in islice(re.finditer(r"\{", answer), BRACES):
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
    """Return why a correct answer cannot be scored, or ""."""
    gold = parse_answer(output)
    if gold is None:
        return f"is not a JSON object of lists ({output[:60]!r})"
    other = next((item for item in gold if item.kind not in TASKS), None)
    if other is None:
        return ""
    label, value = other.content
    return f"has {value[:60]} under {label[:60]!r}, which is neither a name nor an object with subject and object"


def counted_as(item: AnswerItem, gold_kinds: set[str]) -> str:
    """Return the task for which a predicted item counts; gold_kinds: the tasks of the correct answer."""
    if len(gold_kinds) == 1:
        return next(iter(gold_kinds))
    if item.kind in TASKS:
        return item.kind
    return "triple" if item.content[-1].startswith("{") else "entity"


def precision_recall_f1(correct: int, predicted: int, gold: int) -> dict[str, float]:
    """Return precision, recall and F1, with their counts; 0 if the divisor is 0."""
    precision, recall = correct / predicted if predicted else 0.0, correct / gold if gold else 0.0
    f1 = 2 * correct / (predicted + gold) if predicted + gold else 0.0
    counts = {"correct": correct, "predicted": predicted, "gold": gold}
    return {"precision": precision, "recall": recall, "f1": f1, **counts}


def score_answers(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the scores of (prediction, correct answer) pairs.

    Raises ValueError if there are no pairs, or if a correct answer cannot be scored.
    """
    if not pairs:
        raise ValueError("there are no answers to score; give a file with rows")
    totals = {task: Counter[str]() for task in TASKS}
    parsed = exact = 0
    for number, (prediction, output) in enumerate(pairs, 1):
        if error := gold_error(output):
            raise ValueError(f"the correct answer of example {number} {error}; give a file of extraction examples")
        gold, answer = read_answer(output).items, read_answer(prediction)
        parsed += answer.parsed
        exact += answer.parsed and answer.items == gold
        gold_kinds = {item.kind for item in gold}
        for item, count in gold.items():
            totals[item.kind]["gold"] += count
            totals[item.kind]["correct"] += min(count, answer.items[item]) if answer.parsed else 0
        for item, count in answer.items.items():
            totals[counted_as(item, gold_kinds)]["predicted"] += count
    examples = len(pairs)
    by_task = {
        task: precision_recall_f1(totals[task]["correct"], totals[task]["predicted"], totals[task]["gold"])
        for task in TASKS
    }
    return {"examples": examples, "parsed": parsed / examples, "exact": exact / examples, **by_task}


def scores_table(scores: dict[str, Any]) -> str:
    """Return the scores as lines for a terminal."""
    lines = [f"{'':8}{'precision':>10}{'recall':>10}{'F1':>10}{'correct':>10}{'predicted':>10}{'gold':>10}"]
    for task in TASKS:
        score = scores[task]
        lines.append(
            f"{task:8}{score['precision']:10.4f}{score['recall']:10.4f}{score['f1']:10.4f}"
            f"{score['correct']:10d}{score['predicted']:10d}{score['gold']:10d}"
        )
    shares = f"{scores['exact']:.1%} exactly right, {scores['parsed']:.1%} of answers parse"
    return "\n".join([*lines, f"{scores['examples']} example{'s' * (scores['examples'] != 1)}, {shares}"])
