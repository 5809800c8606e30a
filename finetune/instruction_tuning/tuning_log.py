"""What the user sees: rows and lengths before training, a line and an entry for every log, curves at the end.

finetune.py and instruction_trainer.py show through it.
"""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from instruction_data.tokenized_examples import EncodedRows, Report
from tqdm import tqdm

GREY, BRIGHT, PLAIN = "\033[90m", "\033[1m", "\033[0m"
SHOWN = 400  # characters of each part of a decoded row


def describe(parts: Sequence[EncodedRows], held_out: int = 0, apart: Sequence[EncodedRows] = ()) -> str:
    """What became of the rows, by source where there are several, and how much of them is supervised.

    held_out: how many are kept from training; apart: they are a file of their own.
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
    """A row as text: what is supervised stands out (bright, or between marks), the rest is grey."""
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
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    axes.hist([part.lengths for part in parts], bins=50, stacked=True, label=[part.name for part in parts])
    axes.set(xlabel="tokens of a row", ylabel="rows")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


class TuningLog:
    """`train_log.jsonl`, an object a line, on the disk as soon as Trainer has it, and the same as a line for people."""

    def __init__(self, path: Path) -> None:
        self.path, self._written = path, 0

    def update(self, history: Sequence[dict[str, Any]], max_steps: int) -> None:
        """Append what is new; the first time the file is begun, with what a resumed run had before in it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(entry) + "\n" for entry in history[self._written :])
        with self.path.open("a" if self._written else "w", encoding="utf-8") as file:
            file.write(text)
        self._written = len(history)
        line = as_line(history[-1], max_steps)
        if line:
            tqdm.write(line)


def as_line(entry: dict[str, Any], max_steps: int) -> str:
    """An entry of the log for people; "" for Trainer's summary, which finetune.py says in its own words."""
    place = f"step {entry['step']}/{max_steps}"
    if "eval_loss" in entry:
        known = ("eval_loss", "eval_f1", "eval_entity_f1", "eval_triple_f1", "eval_parsed")
        rest = [key for key in entry if key.startswith("eval_") and key not in known]
        said = [f"{key.removeprefix('eval_')} {entry[key]:.4f}" for key in [*known, *rest] if key in entry]
        return f"{place} | held out: {', '.join(said)}"
    if "loss" not in entry:
        return ""
    sources = ", ".join(f"{key[5:]} {value:.4f}" for key, value in entry.items() if key.startswith("loss_"))
    said = [f"loss {entry['loss']:.4f}" + (f" ({sources})" if sources else "")]
    said += [f"grad {entry['grad_norm']:.3f}"] if entry.get("grad_norm") is not None else []
    said += [f"lr {entry['learning_rate']:.3g}", f"{entry['supervised_tokens_per_second']:,.0f} supervised tokens/s"]
    return " | ".join([place, *said, f"{timedelta(seconds=entry['eta_seconds'])} left"])


def draw_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss over steps, trained on and held out, all and by source, and below it the scores of answers, if any."""
    pyplot = _pyplot()
    losses = sorted({key for entry in history for key in entry if key.startswith(("loss", "eval_loss"))})
    scores = sorted({key for entry in history for key in entry if key.startswith("eval_") and key.endswith("f1")})
    figure, panels = pyplot.subplots(1 + bool(scores), 1, figsize=(7, 4 + 3 * bool(scores)), sharex=True, squeeze=False)
    for axes, names, label in zip(panels[:, 0], (losses, scores), ("loss per supervised token", "F1"), strict=False):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            held_out = name.startswith("eval_")
            axes.plot(*zip(*points, strict=True), "o--" if held_out else "-", markersize=3, label=name)
        axes.set(ylabel=label, ylim=(0, None))
        axes.legend(fontsize=8)
    panels[-1, 0].set_xlabel("step")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
