"""Format tables of scores for a terminal."""

from command_line.command_errors import printable

from typing import Any

from extraction_metrics.item_kinds import KINDS, TASKS

LABEL_CHARACTERS = 60  # maximum characters of a type or relation in the table
LABEL_TITLES = {"triple": "relation", "argument": "event type: role", "argument_with_trigger": "event type: role"}


def shown_kinds(scores: dict[str, Any]) -> list[str]:
    """Return the kinds of items in `scores` that a table shows.

    Entities and triples without items are shown only if no other kind was scored.
    """
    kinds = [kind for kind in KINDS if kind in scores]
    others = [kind for kind in kinds if kind not in (*TASKS, "entity_span")]
    return [kind for kind in kinds if kind not in TASKS or not others or has_items(scores[kind])]


def has_items(score: dict[str, Any]) -> bool:
    """Return whether items of a kind were predicted or annotated."""
    return bool(score["predicted"] or score["gold"])


def scores_table(scores: dict[str, Any], by_type: bool = False) -> str:
    """Return the scores of `score_rows` as text; by_type: with the scores of each type and relation."""
    kinds = shown_kinds(scores)
    width = max(8, *(len(kind) + 2 for kind in kinds))
    columns = f"{'correct':>10}{'predicted':>10}{'gold':>10}"
    lines = [f"{'':{width}}{'precision':>10}{'recall':>10}{'F1':>10}{'95% interval':>17}{columns}"]
    for kind in kinds:
        score = scores[kind]
        low, high = score["f1_interval"]
        interval = f"{low:.4f}-{high:.4f}"
        lines.append(
            f"{kind:{width}}{score['precision']:10.4f}{score['recall']:10.4f}{score['f1']:10.4f}{interval:>17}"
            f"{score['correct']:10d}{score['predicted']:10d}{score['gold']:10d}"
        )
    shares = [f"{scores['exact']:.1%} exactly right", f"{scores['parsed']:.1%} of answers parse"]
    shares += [f"{scores['stopped']:.1%} complete"] if "stopped" in scores else []
    shares += [f"{scores['not_in_text']:.1%} of predicted names are not in the text"] if "not_in_text" in scores else []
    shares += [f"{scores['inverted']:.1%} of predicted triples are inverted"] if "inverted" in scores else []
    lines.append(f"{scores['examples']} example{'s' * (scores['examples'] != 1)}, {', '.join(shares)}")
    if orders := scores.get("orders"):
        means = [f"{kind} F1 {orders[kind]['f1_mean']:.4f} ± {orders[kind]['f1_std']:.4f}" for kind in kinds]
        lines.append(f"{orders['number']} orders of the types: {', '.join(means)}")
    return "\n".join([*lines, *(type_lines(scores) if by_type else [])])


def type_lines(scores: dict[str, Any]) -> list[str]:
    """Return the lines of a table of types, relations or roles for each kind of items that was found."""
    lines = []
    for kind in shown_kinds(scores):
        by_type, title = scores[kind]["by_type"], LABEL_TITLES.get(kind, "type")
        title += {"entity_span": " (with its span)", "argument_with_trigger": " (with trigger)"}.get(kind, "")
        lines += [f"{'precision':>9}{'recall':>10}{'F1':>10}{'predicted':>10}{'gold':>10}  {title}"] if by_type else []
        for label, score in by_type.items():
            lines.append(
                f"{score['precision']:9.4f}{score['recall']:10.4f}{score['f1']:10.4f}{score['predicted']:10d}"
                f"{score['gold']:10d}  {printable(label[:LABEL_CHARACTERS])}"
            )
    return lines
