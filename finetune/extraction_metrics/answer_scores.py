"""Score extraction answers: precision, recall and F1 of entities and triples, shares of exact and parsed answers.

Counts are summed over all examples (micro average). Items are matched as multisets: a repeated item must also be
repeated in the correct answer.

Every predicted item counts for one kind of items: the kind of the row's task (without a task, of the correct answer) if
there is only one, else the kind that the form of the item indicates. (Arguments of the task ee count twice: alone, and
with their trigger.) If a prediction is JSON but does not have the outer form of an answer, its items count as wrong. A
prediction that is not JSON has no items; it lowers `parsed` and recall.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from extraction_metrics.answer_items import gold_error, read_answer
from extraction_metrics.item_kinds import KINDS, KINDS_OF_TASK, TASKS, AnswerItem

COUNTS = ("correct", "predicted", "gold")


class AnswerCounts(NamedTuple):
    """The counts of one example."""

    parsed: bool
    exact: bool
    items: Counter[tuple[str, str, str]]  # (kind, label, one of COUNTS) -> number of items
    names: Counter[str]  # predicted names

    def of_kind(self, kind: str) -> list[int]:
        """Return the numbers of correct, predicted and gold items of a kind."""
        totals = dict.fromkeys(COUNTS, 0)
        for (own_kind, _, key), number in self.items.items():
            if own_kind == kind:
                totals[key] += number
        return list(totals.values())


def counted_as(item: AnswerItem, kinds: set[str]) -> str:
    """Return the kind for which a predicted item counts; kinds: those of the task or of the correct answer."""
    if len(kinds) == 1:
        return next(iter(kinds))
    if item.kind in KINDS:
        return item.kind
    return "triple" if item.content[-1].startswith("{") else "entity"


def precision_recall_f1(correct: int, predicted: int, gold: int) -> dict[str, float]:
    """Return precision, recall and F1, with their counts; 0 if the divisor is 0."""
    precision, recall = correct / predicted if predicted else 0.0, correct / gold if gold else 0.0
    f1 = 2 * correct / (predicted + gold) if predicted + gold else 0.0
    counts = {"correct": correct, "predicted": predicted, "gold": gold}
    return {"precision": precision, "recall": recall, "f1": f1, **counts}


def count_answer(prediction: str, output: str, task: str = "") -> AnswerCounts:
    """Return the counts of a prediction.

    output: the correct answer, for which `gold_error` is ""; task: a key of KINDS_OF_TASK, or "" if it is not known.
    """
    gold, answer = read_answer(output, task).items, read_answer(prediction, task)
    items, names = count_items(gold, answer.items, set(KINDS_OF_TASK.get(task, ())), answer.parsed), Counter[str]()
    for item, count in answer.items.items():
        for name in item.names:
            names[name] += count
    return AnswerCounts(answer.parsed, answer.parsed and answer.items == gold, items, names)


def count_items(
    gold: Counter[AnswerItem], predicted: Counter[AnswerItem], kinds: set[str], parsed: bool = True
) -> Counter[tuple[str, str, str]]:
    """Return the numbers of correct, predicted and gold items: (kind, label, one of COUNTS) -> number.

    kinds: the kinds of the task; empty: those of the correct items. parsed: whether predicted items can be correct.
    """
    kinds = kinds or {item.kind for item in gold}
    items = Counter[tuple[str, str, str]]()
    for item, count in gold.items():
        items[item.kind, item.label, "gold"] += count
        items[item.kind, item.label, "correct"] += min(count, predicted[item]) if parsed else 0
    for item, count in predicted.items():
        items[counted_as(item, kinds), item.label, "predicted"] += count
    return items


def count_answers(pairs: Sequence[tuple[str, str]], tasks: Sequence[str] = ()) -> list[AnswerCounts]:
    """Return the counts of each (prediction, correct answer) pair; tasks: the task of each pair, or () for "".

    Raises ValueError if there are no pairs, or if a correct answer cannot be scored.
    """
    if not pairs:
        raise ValueError("there are no answers to score; give a file with rows")
    tasks = tasks or [""] * len(pairs)
    for number, ((_, output), task) in enumerate(zip(pairs, tasks, strict=True), 1):
        if error := gold_error(output, task):
            raise ValueError(f"the correct answer of example {number} {error}; give a file of extraction examples")
    return [count_answer(*pair, task) for pair, task in zip(pairs, tasks, strict=True)]


def total_scores(counts: Sequence[AnswerCounts], kinds: Sequence[str] = TASKS) -> dict[str, Any]:
    """Return the number of examples, the shares of parsed and exact answers, and the scores of each kind of items."""
    examples = len(counts)
    parsed, exact = sum(each.parsed for each in counts), sum(each.exact for each in counts)
    total = AnswerCounts(False, False, summed_items(counts), Counter())
    by_kind = {kind: precision_recall_f1(*total.of_kind(kind)) for kind in kinds}
    return {"examples": examples, "parsed": parsed / examples, "exact": exact / examples, **by_kind}


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
