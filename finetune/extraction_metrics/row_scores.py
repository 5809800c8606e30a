"""Score rows of predictions: all answers, confidence intervals of F1, each type, and each order of the types.

The kinds of items that have scores are entity and triple, and those of the tasks of the rows (KINDS_OF_TASK).
"""

from collections import Counter
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from extraction_metrics.answer_items import read_answer
from extraction_metrics.answer_scores import (
    COUNTS,
    AnswerCounts,
    count_answers,
    count_items,
    precision_recall_f1,
    summed_items,
    total_scores,
)
from extraction_metrics.confidence_intervals import f1_interval
from extraction_metrics.item_kinds import KINDS, KINDS_OF_TASK, TASKS, AnswerItem


class ScoredRow(NamedTuple):
    """A prediction, its correct answer, and optional fields of the row."""

    prediction: str
    gold: str
    text: str | None = None  # text from which the items are extracted; None: the row has none
    finish_reason: str = ""  # "stop", "length", …; "": the row has none
    order: str = ""  # version of the test set; versions differ in the order of the types; "": the row has none
    task: str = ""  # a key of KINDS_OF_TASK; "": not known, entities and triples are scored
    gold_spans: Counter[AnswerItem] | None = None  # correct items of kind entity_span; None: places are not annotated
    predicted_spans: Counter[AnswerItem] | None = None
    unparsed_parts: int = 0  # parts of the answer that could not be merged into `prediction` (see ie_run.py)


def score_rows(rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """Return the scores of `score_answers`; each kind also has `f1_interval` and `by_type` (most frequent types first).

    Optional keys: `not_in_text`, if rows have a text; `stopped`, the share of answers that the model ended, among the
    rows with a finish reason; `inverted`, if triples are predicted; `orders`, if the rows are one test set in several
    orders. Raises the errors of `score_answers`.
    """
    counts = count_rows(rows)
    kinds = scored_kinds(rows)
    scores, items = total_scores(counts, kinds), summed_items(counts)
    labels: dict[str, set[str]] = {kind: set() for kind in kinds}
    for kind, label, _ in items:
        labels[kind].add(label)
    for kind in kinds:
        by_label = {label: precision_recall_f1(*(items[kind, label, key] for key in COUNTS)) for label in labels[kind]}
        by_type = dict(sorted(by_label.items(), key=lambda each: (-each[1]["gold"], each[0])))
        scores[kind] |= {"f1_interval": f1_interval(resampled_counts(rows, counts, kind)), "by_type": by_type}
    if scores["triple"]["predicted"]:
        scores["inverted"] = inverted_triples(rows) / scores["triple"]["predicted"]
    if any(row.text is not None for row in rows):
        scores["not_in_text"] = not_in_text_share(rows, counts)
    if reasons := [row.finish_reason for row in rows if row.finish_reason]:
        scores["stopped"] = reasons.count("stop") / len(reasons)
    if orders := order_scores(rows, counts, kinds):
        scores["orders"] = orders
    return scores


def scored_kinds(rows: Sequence[ScoredRow]) -> list[str]:
    """Return the kinds of items that are scored, in the order of KINDS."""
    kinds = {*TASKS, *(kind for row in rows for kind in KINDS_OF_TASK.get(row.task, ()))}
    if any(has_places(row) for row in rows):
        kinds.add("entity_span")
    return [kind for kind in KINDS if kind in kinds]


def has_places(row: ScoredRow) -> bool:
    """Return whether both the correct and the predicted entities of a row have their places in the text."""
    return row.gold_spans is not None and row.predicted_spans is not None


def count_rows(rows: Sequence[ScoredRow]) -> list[AnswerCounts]:
    """Return the counts of each row, with those of entity spans; raises the errors of `count_answers`."""
    counts = count_answers([(row.prediction, row.gold) for row in rows], [row.task for row in rows])
    for number, (row, each) in enumerate(zip(rows, counts, strict=True)):
        if row.gold_spans is not None and row.predicted_spans is not None:
            each.items.update(count_items(row.gold_spans, row.predicted_spans, {"entity_span"}))
        if row.unparsed_parts:
            counts[number] = each._replace(parsed=False, exact=False)
    return counts


def inverted_triples(rows: Sequence[ScoredRow]) -> int:
    """Return the number of predicted triples that are wrong, but correct with subject and object swapped."""
    inverted = 0
    for row in rows:
        gold = read_answer(row.gold, row.task).items
        for item, count in read_answer(row.prediction, row.task).items.items():
            if item.kind == "triple" and item.well_formed and item not in gold:
                inverted += count if item._replace(content=item.content[::-1]) in gold else 0
    return inverted


def resampled_counts(rows: Sequence[ScoredRow], counts: Sequence[AnswerCounts], kind: str) -> list[list[int]]:
    """Return the correct, predicted and gold items of a kind in each unit of resampling, (units, 3).

    A unit is an example. If rows have an order, all rows of a text are one unit, since they depend on each other.
    """
    units: dict[int | str, list[int]] = {}
    for number, (row, each) in enumerate(zip(rows, counts, strict=True)):
        unit = number if row.text is None or not row.order else row.text
        units[unit] = [a + b for a, b in zip(units.get(unit, (0, 0, 0)), each.of_kind(kind), strict=True)]
    return list(units.values())


def not_in_text_share(rows: Sequence[ScoredRow], counts: Sequence[AnswerCounts]) -> float:
    """Return the share of predicted names that do not occur in the text of their row; 0 if there are no names.

    Names are entities, subjects, objects, triggers and arguments. White space may differ, and a name may be a part of
    a word.
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


def order_scores(rows: Sequence[ScoredRow], counts: Sequence[AnswerCounts], kinds: Sequence[str]) -> dict[str, Any]:
    """Return the number of orders and, per kind of items, mean and sample standard deviation of their F1.

    {} unless there are several orders, all of the same texts.
    """
    orders: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        orders.setdefault(row.order, []).append(number)
    texts = [Counter(rows[number].text for number in numbers) for numbers in orders.values()]
    if len(orders) < 2 or "" in orders or any(each != texts[0] for each in texts):
        return {}
    by_order = [total_scores([counts[number] for number in numbers], kinds) for numbers in orders.values()]
    f1 = {kind: [scores[kind]["f1"] for scores in by_order] for kind in kinds}
    return {"number": len(orders)} | {kind: {"f1_mean": mean(f1[kind]), "f1_std": stdev(f1[kind])} for kind in kinds}
