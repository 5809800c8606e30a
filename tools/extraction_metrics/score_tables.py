"""Format tables of scores for a terminal."""

from command_line.command_errors import printable

from typing import Any

from extraction_metrics.answer_items import TASKS

LABEL_CHARACTERS = 60  # maximum characters of a type or relation in the table


def scores_table(scores: dict[str, Any], by_type: bool = False) -> str:
    """Return the scores of `score_rows` as text; by_type: with the scores of each type and relation."""
    columns = f"{'correct':>10}{'predicted':>10}{'gold':>10}"
    lines = [f"{'':8}{'precision':>10}{'recall':>10}{'F1':>10}{'95% interval':>17}{columns}"]
    for task in TASKS:
        score = scores[task]
        low, high = score["f1_interval"]
        interval = f"{low:.4f}-{high:.4f}"
        lines.append(
            f"{task:8}{score['precision']:10.4f}{score['recall']:10.4f}{score['f1']:10.4f}{interval:>17}"
            f"{score['correct']:10d}{score['predicted']:10d}{score['gold']:10d}"
        )
    shares = [f"{scores['exact']:.1%} exactly right", f"{scores['parsed']:.1%} of answers parse"]
    shares += [f"{scores['stopped']:.1%} complete"] if "stopped" in scores else []
    shares += [f"{scores['not_in_text']:.1%} of predicted names are not in the text"] if "not_in_text" in scores else []
    lines.append(f"{scores['examples']} example{'s' * (scores['examples'] != 1)}, {', '.join(shares)}")
    if orders := scores.get("orders"):
        means = [f"{task} F1 {orders[task]['f1_mean']:.4f} ± {orders[task]['f1_std']:.4f}" for task in TASKS]
        lines.append(f"{orders['number']} orders of the types: {', '.join(means)}")
    return "\n".join([*lines, *(type_lines(scores) if by_type else [])])


def type_lines(scores: dict[str, Any]) -> list[str]:
    """Return the lines of a table of types or relations for each task that has items."""
    lines = []
    for task in TASKS:
        by_type = scores[task]["by_type"]
        title = "type" if task == "entity" else "relation"
        lines += [f"{'precision':>9}{'recall':>10}{'F1':>10}{'predicted':>10}{'gold':>10}  {title}"] if by_type else []
        for label, score in by_type.items():
            lines.append(
                f"{score['precision']:9.4f}{score['recall']:10.4f}{score['f1']:10.4f}{score['predicted']:10d}"
                f"{score['gold']:10d}  {printable(label[:LABEL_CHARACTERS])}"
            )
    return lines
