"""What is shown before training: counts and lengths of the rows, and rows as the model sees them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from instruction_data.tokenized_examples import EncodedRows, Report

GREY, BRIGHT, PLAIN = "\033[90m", "\033[1m", "\033[0m"
SHOWN = 400  # characters of each part of a decoded row


def describe(parts: Sequence[EncodedRows], held_out: int = 0, apart: Sequence[EncodedRows] = ()) -> str:
    """Lines that count kept, truncated and dropped rows and supervised tokens, by source where there are several.

    held_out: the number of held-out rows. apart: the rows of --eval_data_path.
    """
    several = parts if len(parts) > 1 else []
    lines = [_described(part.report, f"{part.name}: ") for part in [*several, *apart]]
    total = _described(sum((part.report for part in parts), Report()))
    return "\n".join([*lines, total + (f"; {held_out} rows held out" if held_out else "")])


def _described(report: Report, name: str = "") -> str:
    reasons = "; ".join(f"{count}: {reason}" for reason, count in report.dropped.most_common())
    return (
        f"{name}rows: {report.kept} kept, {report.truncated} of them truncated, {report.dropped.total()} dropped"
        + (f" ({reasons})" if reasons else "")
        + f"\n{name}tokens: {report.tokens}, {report.supervised / max(report.tokens, 1):.1%} of them supervised; "
        f"longest row {report.longest}"
    )


def decoded(tokenizer: Any, ids: np.ndarray, spans: np.ndarray, colour: bool) -> str:
    """A row as text: supervised parts are bright (or between ⟦ and ⟧ without colour), the others grey."""
    marks = (GREY, PLAIN, BRIGHT, PLAIN) if colour else ("", "", "⟦", "⟧")
    pieces, at = [], 0
    for start, end in spans.tolist():
        pieces += [(ids[at:start], marks[:2]), (ids[start:end], marks[2:])]
        at = end
    pieces.append((ids[at:], marks[:2]))
    shown = []
    for part, (before, after) in pieces:
        if len(part):
            text = tokenizer.decode(part.tolist())
            middle = f" … {len(text) - SHOWN} characters … "
            text = text if len(text) <= SHOWN + len(middle) else text[: SHOWN // 2] + middle + text[-SHOWN // 2 :]
            shown.append(before + text.replace("\n", f"{after}\n{before}") + after)
    return "".join(shown)


def draw_lengths(parts: Sequence[EncodedRows], path: Path) -> None:
    """A histogram of the rows' tokens, by source."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    axes.hist([part.lengths for part in parts], bins=50, stacked=True, label=[part.name for part in parts])
    axes.set(xlabel="tokens of a row", ylabel="rows")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
