"""Score rows of predictions: all answers, confidence intervals of F1, each type, and each order of the types."""

from collections import Counter
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from extraction_metrics.answer_items import TASKS
from extraction_metrics.answer_scores import (
    COUNTS,
    AnswerCounts,
    count_answers,
    precision_recall_f1,
    summed_items,
    total_scores,
)
from extraction_metrics.confidence_intervals import f1_interval


class ScoredRow(NamedTuple):
    """A prediction, its correct answer, and optional fields of the row."""

    prediction: str
    gold: str
    text: str | None = None  # text from which the items are extracted; None: the row has none
    finish_reason: str = ""  # "stop", "length", …; "": the row has none
    order: str = ""  # version of the test set; versions differ in the order of the types; "": the row has none


def score_rows(rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """Return the scores of `score_answers`; each task also has `f1_interval` and `by_type` (most frequent types first).

    Optional keys: `not_in_text`, if rows have a text; `stopped`, the share of answers that the model ended, among the
    rows with a finish reason; `orders`, if the rows are one test set in several orders. Raises the errors of
    `score_answers`.
    """
    counts = count_answers([(row.prediction, row.gold) for row in rows])
    scores, items = total_scores(counts), summed_items(counts)
    for task in TASKS:
        labels = {label for own_task, label, _ in items if own_task == task}
        by_label = {label: precision_recall_f1(*(items[task, label, key] for key in COUNTS)) for label in labels}
        by_type = dict(sorted(by_label.items(), key=lambda each: (-each[1]["gold"], each[0])))
        scores[task] |= {"f1_interval": f1_interval(resampled_counts(rows, counts, task)), "by_type": by_type}
    if any(row.text is not None for row in rows):
        scores["not_in_text"] = not_in_text_share(rows, counts)
    if reasons := [row.finish_reason for row in rows if row.finish_reason]:
        scores["stopped"] = reasons.count("stop") / len(reasons)
    if orders := order_scores(rows, counts):
        scores["orders"] = orders
    return scores


def resampled_counts(rows: Sequence[ScoredRow], counts: Sequence[AnswerCounts], task: str) -> list[list[int]]:
    """Return a task's correct, predicted and gold items in each unit of resampling, (units, 3).

    A unit is an example. If rows have an order, all rows of a text are one unit, since they depend on each other.
    """
    units: dict[int | str, list[int]] = {}
    for number, (row, each) in enumerate(zip(rows, counts, strict=True)):
        unit = number if row.text is None or not row.order else row.text
        units[unit] = [a + b for a, b in zip(units.get(unit, (0, 0, 0)), each.of_task(task), strict=True)]
    return list(units.values())


def not_in_text_share(rows: Sequence[ScoredRow], counts: Sequence[AnswerCounts]) -> float:
    """Return the share of predicted names that do not occur in the text of their row; 0 if there are no names.

    Names are entities, subjects and objects. White space may differ, and a name may be a part of a word.
    """
    names = absent = 0
    for row, each in zip(rows, counts, strict=True):
        if row.text is not None:
            text = " ".join(row.text.split())
            for name, number in each.names.items():
                words = name.split()
                names += number
                absent += 0 if words and " ".join(words) in text else number
    return absent / names if names else 0.0


def order_scores(rows: Sequence[ScoredRow], counts: Sequence[AnswerCounts]) -> dict[str, Any]:
    """Return the number of orders and, per task, mean and sample standard deviation of their F1.

    {} unless there are several orders, all of the same texts.
    """
    orders: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        orders.setdefault(row.order, []).append(number)
    texts = [Counter(rows[number].text for number in numbers) for numbers in orders.values()]
    if len(orders) < 2 or "" in orders or any(each != texts[0] for each in texts):
        return {}
    by_order = [total_scores([counts[number] for number in numbers]) for numbers in orders.values()]
    f1 = {task: [scores[task]["f1"] for scores in by_order] for task in TASKS}
    return {"number": len(orders)} | {task: {"f1_mean": mean(f1[task]), "f1_std": stdev(f1[task])} for task in TASKS}
