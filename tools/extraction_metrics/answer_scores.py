"""Score extraction answers: precision, recall and F1 of entities and triples, shares of exact and parsed answers.

Counts are summed over all examples (micro average). Items are matched as multisets: a repeated item must also be
repeated in the correct answer.

Every predicted item is counted for one task: if all items of the correct answer are of one task, for this task, else
for the task that the item's own form indicates. If a prediction is JSON but not an object of lists, its items count as
wrong. A prediction that is not JSON has no items; it lowers `parsed` and recall.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from extraction_metrics.answer_items import TASKS, AnswerItem, gold_error, read_answer

COUNTS = ("correct", "predicted", "gold")


class AnswerCounts(NamedTuple):
    """The counts of one example."""

    parsed: bool
    exact: bool
    items: Counter[tuple[str, str, str]]  # (task, type or relation, one of COUNTS) -> number of items
    names: Counter[str]  # predicted names

    def of_task(self, task: str) -> list[int]:
        """Return the numbers of correct, predicted and gold items of a task."""
        return [
            sum(n for (own_task, _, kind), n in self.items.items() if (own_task, kind) == (task, key)) for key in COUNTS
        ]


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


def count_answer(prediction: str, output: str) -> AnswerCounts:
    """Return the counts of a prediction; output: the correct answer, for which `gold_error` is ""."""
    gold, answer = read_answer(output).items, read_answer(prediction)
    gold_kinds = {item.kind for item in gold}
    items, names = Counter[tuple[str, str, str]](), Counter[str]()
    for item, count in gold.items():
        items[item.kind, item.label, "gold"] += count
        items[item.kind, item.label, "correct"] += min(count, answer.items[item]) if answer.parsed else 0
    for item, count in answer.items.items():
        items[counted_as(item, gold_kinds), item.label, "predicted"] += count
        for name in item.names:
            names[name] += count
    return AnswerCounts(answer.parsed, answer.parsed and answer.items == gold, items, names)


def count_answers(pairs: Sequence[tuple[str, str]]) -> list[AnswerCounts]:
    """Return the counts of each (prediction, correct answer) pair.

    Raises ValueError if there are no pairs, or if a correct answer cannot be scored.
    """
    if not pairs:
        raise ValueError("there are no answers to score; give a file with rows")
    for number, (_, output) in enumerate(pairs, 1):
        if error := gold_error(output):
            raise ValueError(f"the correct answer of example {number} {error}; give a file of extraction examples")
    return [count_answer(prediction, output) for prediction, output in pairs]


def total_scores(counts: Sequence[AnswerCounts]) -> dict[str, Any]:
    """Return the number of examples, the shares of parsed and exact answers, and the scores of each task."""
    examples = len(counts)
    parsed, exact = sum(each.parsed for each in counts), sum(each.exact for each in counts)
    total = AnswerCounts(False, False, summed_items(counts), Counter())
    by_task = {task: precision_recall_f1(*total.of_task(task)) for task in TASKS}
    return {"examples": examples, "parsed": parsed / examples, "exact": exact / examples, **by_task}


def summed_items(counts: Sequence[AnswerCounts]) -> Counter[tuple[str, str, str]]:
    """Return the sum of `items` over all examples."""
    total = Counter[tuple[str, str, str]]()
    for each in counts:
        total.update(each.items)
    return total


def score_answers(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the scores of (prediction, correct answer) pairs.

    Raises ValueError if there are no pairs, or if a correct answer cannot be scored.
    """
    return total_scores(count_answers(pairs))
