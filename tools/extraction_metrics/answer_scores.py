"""Score extraction answers: precision, recall and F1 of entities and triples, shares of exact and parsed answers.

An answer is a JSON object of lists. Names are entities ({"person": ["Ann Lee"]}). Objects with subject and object are
triples ({"born in": [{"subject": "Ann Lee", "object": "Oslo"}]}). Counts are summed over all examples (micro average).
Items are matched as multisets: a repeated item must also be repeated in the correct answer. An answer that does not
parse has no items.
"""

import json
from collections import Counter
from typing import Any, NamedTuple

TASKS = ("entity", "triple")
PAIRS = (("subject", "object"), ("head", "tail"))  # keys of a triple in our answers, and in published annotations


class AnswerItem(NamedTuple):
    """An entity, a triple or another value of an answer; two items match if they are equal."""

    kind: str
    content: tuple[str, ...]


def parse_answer(answer: str) -> Counter[AnswerItem] | None:
    """Return the items of an answer as a multiset; None if it is not a JSON object of lists."""
    try:
        found = json.loads(answer)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(items, list) for items in found.values()):
        return None
    return Counter(to_item(label, value) for label, items in found.items() for value in items)


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


def precision_recall_f1(correct: int, predicted: int, gold: int) -> dict[str, float]:
    """Return precision, recall and F1, with their counts; 0 if the divisor is 0."""
    precision, recall = correct / predicted if predicted else 0.0, correct / gold if gold else 0.0
    f1 = 2 * correct / (predicted + gold) if predicted + gold else 0.0
    counts = {"correct": correct, "predicted": predicted, "gold": gold}
    return {"precision": precision, "recall": recall, "f1": f1, **counts}


def score_answers(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the scores of (prediction, correct answer) pairs; raises ValueError if a correct answer does not parse.

    In an example with a single task, every predicted item counts for this task, also items of another kind.
    """
    totals = {task: Counter[str]() for task in TASKS}
    parsed = exact = 0
    for number, (prediction, output) in enumerate(pairs, 1):
        gold, answer = parse_answer(output), parse_answer(prediction)
        if gold is None:
            raise ValueError(
                f"the correct answer of example {number} is not a JSON object of lists ({output[:60]!r}); "
                "give a file of extraction examples"
            )
        parsed += answer is not None
        exact += answer == gold
        predicted = answer or Counter[AnswerItem]()
        # The tasks of an example are the kinds in its correct answer or, if that has no items, in the prediction.
        kinds = {item.kind for item in gold or predicted}
        for task in kinds.intersection(TASKS):
            predicted_items = Counter(
                {item: n for item, n in predicted.items() if item.kind == task or len(kinds) == 1}
            )
            gold_items = Counter({item: n for item, n in gold.items() if item.kind == task})
            totals[task]["predicted"] += predicted_items.total()
            totals[task]["gold"] += gold_items.total()
            totals[task]["correct"] += (predicted_items & gold_items).total()
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
