"""Compare two systems on the same texts, with a paired bootstrap of the difference of F1.

Koehn (2004), "Statistical Significance Tests for Machine Translation Evaluation"; Berg-Kirkpatrick et al. (2012), "An
Empirical Investigation of Statistical Significance in NLP". Both systems are scored on the same resampled texts.
"""

from collections.abc import Sequence
from typing import Any

from extraction_metrics.answer_scores import AnswerCounts
from extraction_metrics.confidence_intervals import f1_of_totals, percentile_bounds, resampled_totals
from extraction_metrics.row_scores import ScoredRow, count_rows, scored_kinds
from extraction_metrics.score_tables import has_items

Units = dict[int | str, list[int]]  # unit of resampling -> correct, predicted and gold items
SHARES = (("parsed", "answers that parse"), ("stopped", "complete answers"), ("exact", "exactly right answers"),
          ("not_in_text", "names not in the text"), ("inverted", "inverted triples"))  # fmt: skip


def compare_rows(rows: Sequence[ScoredRow], others: Sequence[ScoredRow]) -> dict[str, dict[str, Any]]:
    """Return kind of items -> F1 of `others` minus F1 of `rows`, its 95 % interval and its p value.

    Rows of equal text are one unit of resampling if all rows have a text, so the two systems may have been asked with
    different numbers of rows; otherwise row n of both is one unit. `p` is the two-sided p value: twice the share of
    samples in which the difference is zero or has the other sign. Raises ValueError if the texts or correct items
    differ.
    """
    by_text = all(row.text is not None for row in (*rows, *others))
    if not by_text and len(rows) != len(others):
        raise ValueError(
            f"the compared files have {len(rows)} and {len(others)} rows, and not every row has a text; give files of "
            "the same rows"
        )
    counts, other_counts = count_rows(rows), count_rows(others)
    kinds = [kind for kind in scored_kinds(rows) if kind in scored_kinds(others)]
    found = {}
    for kind in kinds:
        first = units_of(rows, counts, kind, by_text)
        second = units_of(others, other_counts, kind, by_text)
        check_units(first, second, kind)
        pairs = [[*first[unit], *second[unit]] for unit in first]
        found[kind] = f1_difference(pairs)
    return found


def units_of(rows: Sequence[ScoredRow], counts: Sequence[AnswerCounts], kind: str, by_text: bool) -> Units:
    """Return the counts of a kind of items in each unit of resampling."""
    units: Units = {}
    for number, (row, each) in enumerate(zip(rows, counts, strict=True)):
        unit = row.text if by_text and row.text is not None else number
        units[unit] = [a + b for a, b in zip(units.get(unit, (0, 0, 0)), each.of_kind(kind), strict=True)]
    return units


def check_units(first: Units, second: Units, kind: str) -> None:
    """Raise ValueError unless two systems have the same units with the same numbers of correct items."""
    for unit in (*first, *second):
        if unit not in first or unit not in second:
            raise ValueError(
                f"only one of the compared files has the text {str(unit)[:60]!r}; give files of the same texts"
            )
        if first[unit][2] != second[unit][2]:
            fact = f"have {first[unit][2]} and {second[unit][2]} correct items of kind {kind}"
            raise ValueError(f"the compared files {fact} for {str(unit)[:60]!r}; give files with the same answers")


def f1_difference(pairs: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the difference of F1 of two systems, its interval and its p value.

    pairs: correct, predicted and gold items of the first and of the second system in each unit, (units, 6).
    """
    import numpy as np

    totals = resampled_totals(pairs)
    differences = f1_of_totals(totals[:, 3:]) - f1_of_totals(totals[:, :3])
    sums = np.asarray(pairs).sum(axis=0, keepdims=True)
    not_above, not_below = float((differences <= 0).mean()), float((differences >= 0).mean())
    return {
        "difference": float((f1_of_totals(sums[:, 3:]) - f1_of_totals(sums[:, :3]))[0]),
        "interval": percentile_bounds(differences),
        "p": min(1.0, 2 * min(not_above, not_below)),
    }


def comparison_table(
    names: tuple[str, str], scores: dict[str, Any], other: dict[str, Any], differences: dict[str, dict[str, Any]]
) -> str:
    """Return the scores of two systems side by side; names: of their files, numbered above the table."""
    lines = [f"1: {names[0]}", f"2: {names[1]}"]
    lines.append(f"{'':32}{'1':>10}{'2':>10}{'2 - 1':>10}{'95% interval':>20}{'p':>8}")
    for kind in (kind for kind in differences if has_items(scores[kind]) or has_items(other[kind])):
        first, second, each = scores[kind], other[kind], differences[kind]
        low, high = each["interval"]
        lines.append(
            f"{kind + ' F1':32}{first['f1']:10.4f}{second['f1']:10.4f}{each['difference']:+10.4f}"
            f"{f'{low:+.4f} to {high:+.4f}':>20}{each['p']:8.3f}"
        )
        for key in ("precision", "recall"):
            change = second[key] - first[key]
            lines.append(f"{f'{kind} {key}':32}{first[key]:10.4f}{second[key]:10.4f}{change:+10.4f}")
        change = second["predicted"] - first["predicted"]
        lines.append(f"{kind + ' items predicted':32}{first['predicted']:10d}{second['predicted']:10d}{change:+10d}")
    for key, title in SHARES:
        if key in scores and key in other:
            lines.append(f"{title:32}{scores[key]:10.1%}{other[key]:10.1%}{other[key] - scores[key]:+10.1%}")
    return "\n".join(lines)
