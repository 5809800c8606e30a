"""Pair the predicted with the correct items of a row: correct, wrong type, missed or spurious.

Items are paired if they name the same parts of the text: entities and triggers of equal text, triples of equal subject
and object, arguments of equal text. First the items of equal type are paired, then the others, in alphabetical order of
their types.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from extraction_metrics.answer_items import read_answer
from extraction_metrics.answer_scores import counted_as
from extraction_metrics.item_kinds import KINDS, KINDS_OF_TASK, AnswerItem
from extraction_metrics.row_scores import ScoredRow

CORRECT, WRONG_TYPE, MISSED, SPURIOUS = STATUSES = ("correct", "wrong type", "missed", "spurious")
PAIRED_KINDS = tuple(kind for kind in KINDS if kind not in ("entity_span", "argument_with_trigger"))


class Outcome(NamedTuple):
    """An item of a row with its status."""

    status: str  # one of STATUSES
    kind: str  # one of PAIRED_KINDS
    names: tuple[str, ...]  # the parts of the text that the item names
    gold: str = ""  # type of the correct item; "": there is none
    predicted: str = ""  # type of the predicted item
    inverted: bool = False  # a spurious triple that is correct with subject and object swapped


def row_outcomes(row: ScoredRow) -> list[Outcome]:
    """Return the outcomes of all items of a row, by kind; an item that occurs n times has n outcomes."""
    gold, answer = read_answer(row.gold, row.task).items, read_answer(row.prediction, row.task)
    kinds = set(KINDS_OF_TASK.get(row.task, ())) or {item.kind for item in gold}
    found: list[Outcome] = []
    by_kind = defaultdict[str, Counter[AnswerItem]](Counter)
    for item, number in answer.items.items():
        kind = counted_as(item, kinds)
        if kind in PAIRED_KINDS:
            by_kind[kind][item] += number
    for kind in PAIRED_KINDS:
        right = Counter({item: number for item, number in gold.items() if item.kind == kind})
        predicted = by_kind[kind]
        found += paired_items(kind, right, predicted) if answer.parsed else unpaired_items(kind, right, predicted)
    return found


def shown_names(item: AnswerItem) -> tuple[str, ...]:
    """Return the names of an item; for a value that is not an item, its JSON."""
    return item.names or item.content[-1:]


def unpaired_items(kind: str, gold: Counter[AnswerItem], predicted: Counter[AnswerItem]) -> list[Outcome]:
    """Return the outcomes of an answer that does not have the outer form of an answer: nothing is correct."""
    missed = [Outcome(MISSED, kind, item.names, item.label) for item in gold.elements()]
    return missed + [Outcome(SPURIOUS, kind, shown_names(item), "", item.label) for item in predicted.elements()]


def paired_items(kind: str, gold: Counter[AnswerItem], predicted: Counter[AnswerItem]) -> list[Outcome]:
    """Return the outcomes of the items of a kind."""
    found = [
        Outcome(CORRECT, kind, item.names, item.label, item.label) for item in (gold & predicted).elements()
    ]  # fmt: skip
    places: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}
    malformed = []
    for side, items in enumerate((gold - predicted, predicted - gold)):
        for item in items.elements():
            if item.names and item.kind == kind:
                places.setdefault(item.names, ([], []))[side].append(item.label)
            else:
                malformed.append(Outcome(SPURIOUS, kind, shown_names(item), "", item.label))
    for names, (right, wrong) in places.items():
        for one, other in zip_longest(sorted(right), sorted(wrong)):
            if other is None:
                found.append(Outcome(MISSED, kind, names, one))
            elif one is None:
                swapped = AnswerItem("triple", (names[-1], other, names[0]))
                found.append(Outcome(SPURIOUS, kind, names, "", other, kind == "triple" and swapped in gold))
            else:
                found.append(Outcome(WRONG_TYPE, kind, names, one, other))
    return found + malformed


def confusions(rows: Sequence[ScoredRow]) -> dict[str, dict[str, dict[str, int]]]:
    """Return kind -> {correct type: {predicted type: number}} of all rows.

    The types of missed items have the entry "missed", and "spurious" has the types of predicted items without a correct
    one. (A type with such a name gets the suffix "(type)".) Types are sorted by frequency.
    """
    counts = defaultdict[str, Counter[tuple[str, str]]](Counter)
    for row in rows:
        for outcome in row_outcomes(row):
            gold = SPURIOUS if outcome.status == SPURIOUS else type_name(outcome.gold)
            predicted = MISSED if outcome.status == MISSED else type_name(outcome.predicted)
            counts[outcome.kind][gold, predicted] += 1
    found: dict[str, dict[str, dict[str, int]]] = {}
    for kind in (kind for kind in PAIRED_KINDS if kind in counts):
        totals = Counter[str]()
        for (gold, _), number in counts[kind].items():
            totals[gold] += number
        table: dict[str, dict[str, int]] = {
            gold: {} for gold in sorted(totals, key=lambda gold: (gold == SPURIOUS, -totals[gold], gold))
        }
        for (gold, predicted), number in sorted(counts[kind].items(), key=lambda each: (-each[1], each[0])):
            table[gold][predicted] = number
        found[kind] = table
    return found


def type_name(label: str) -> str:
    """Return a type as it appears in confusions."""
    return f"{label} (type)" if label in (MISSED, SPURIOUS) else label
