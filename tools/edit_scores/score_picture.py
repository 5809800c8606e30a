"""Draw the summary of edit scores: correct answers before and after the edits, and unchanged answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edit_scores.edit_questions import EDIT_KINDS, LOCALITY_KINDS

BEFORE = "before the edits, free generation"
COLORS = {BEFORE: "#bbbbbb", "teacher forcing": "#f0a35e", "free generation": "#3b6ea5"}
Bar = tuple[str, dict[str, float] | None]  # (label, figure)


def bars_of(measures: Mapping[str, Any], is_locality: bool) -> list[Bar]:
    """Return the bars of a kind of questions."""
    if is_locality:
        return [
            ("teacher forcing", measures["forced_unchanged"]),
            ("free generation", measures["unchanged"]),
        ]
    return [
        (BEFORE, measures["correct"]["before"]),
        ("teacher forcing", measures["forced"]["after"]),
        ("free generation", measures["correct"]["after"]),
    ]


def draw_summary(summary: Mapping[str, Any], path: Path, title: str) -> None:
    """Write a PNG file with two panels of bars with 95 % intervals: correct answers, and unchanged answers.

    summary: the result of `score_summary.summarize`.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 4), layout="constrained")
    panels = picture.subplots(1, 2, sharey=True)
    contents = (("correct answers (%)", EDIT_KINDS, False), ("unchanged answers (%)", LOCALITY_KINDS, True))
    for panel, (label, kinds, is_locality) in zip(panels, contents, strict=True):
        present = [kind for kind in kinds if kind in summary]
        for at, kind in enumerate(present):
            bars = bars_of(summary[kind], is_locality)
            for number, (name, found) in enumerate(bars):
                if found is None:
                    continue
                value, low, high = (100 * found[key] for key in ("value", "low", "high"))
                place = at + (number - (len(bars) - 1) / 2) * 0.27
                errors = [[max(value - low, 0)], [max(high - value, 0)]]
                panel.bar(
                    place, value, 0.25, yerr=errors, capsize=3, color=COLORS[name], label=name if at == 0 else None
                )
        panel.set(title=label, ylim=(0, 105))
        panel.set_xticks(range(len(present)), [kind.replace("_", " ") for kind in present])
    handles = {label: bar for panel in panels for bar, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    picture.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    picture.suptitle(title)
    picture.savefig(path, dpi=120, format="png")
