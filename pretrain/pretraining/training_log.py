"""The log of a run: one JSON object a line while it runs, and curves at its end.

`pretrain/train.py` is the command line.
"""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any


class TrainingLog:
    """`train_log.jsonl`: what Trainer's history holds, on the disk as soon as it is there."""

    def __init__(self, path: Path) -> None:
        self.path, self._written = path, 0

    def update(self, history: Sequence[dict[str, Any]]) -> None:
        """Add the new entries; the first time write all, since a resumed run's earlier ones are among them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a" if self._written else "w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in history[self._written :])
        self._written = len(history)


def described(entry: dict[str, Any], max_steps: int) -> str:
    """An entry as a line for people."""
    if "eval_loss" in entry:
        return f"step {entry['step']}/{max_steps} | held out: loss {entry['eval_loss']:.4f}" + "".join(
            f", {name} {entry[f'eval_loss_{name}']:.4f} (perplexity {entry[f'eval_perplexity_{name}']:.2f})"
            for name in _sources(entry, "eval_loss_")
        )
    if "loss" not in entry:
        return f"{entry['step']} of {max_steps} steps, {entry.get('train_runtime', 0):.0f} s"
    by_source = ", ".join(f"{name} {entry[f'loss_{name}']:.4f}" for name in _sources(entry, "loss_"))
    words = [
        f"step {entry['step']}/{max_steps}",
        f"loss {entry['loss']:.4f}" + (f" ({by_source})" if by_source else ""),
        f"grad {entry.get('grad_norm', float('nan')):.3f}",
        f"lr {entry['learning_rate']:.3g}",
        f"{entry['tokens_per_second']:,} tokens/s",
    ]
    words += [f"MFU {entry['mfu']:.1%}"] if "mfu" in entry else []
    words += [f"{entry['skipped_steps']} skipped"] if entry.get("skipped_steps") else []
    words += [f"data {entry['data_wait']:.1%}", f"{timedelta(seconds=entry['eta_seconds'])} left"]
    return " | ".join(words)


def _sources(entry: dict[str, Any], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in entry if name.startswith(prefix)]


def draw_curves(history: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Loss, all and by source, trained on and held out, and below it gradient norm and learning rate, over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted({name for entry in history for name in entry if name.startswith(("loss", "eval_loss"))})
    sources = sorted({name.removeprefix("eval_") for name in names})
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=(3, 1))
    for name in names:
        steps, values = _series(history, name)
        label = name.replace("eval_loss", "held out").replace("loss", "training").replace("_", " ", 1).replace("_", " ")
        held = name.startswith("eval")
        color = f"C{sources.index(name.removeprefix('eval_'))}"
        above.plot(
            steps, values, "--" if held else "-", color=color, marker="." if held else "", label=label, linewidth=1
        )
    above.set(ylabel="loss per token", title=title)
    if names:
        above.legend(fontsize=8)
    below.plot(*_series(history, "grad_norm"), color="tab:gray", linewidth=1)
    below.set(xlabel="step", ylabel="gradient norm")
    rate = below.twinx()
    rate.plot(*_series(history, "learning_rate"), color="tab:green", linewidth=1)
    rate.set_ylabel("learning rate", color="tab:green")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _series(history: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one quantity."""
    points = [(entry["step"], entry[name]) for entry in history if name in entry]
    return [step for step, _ in points], [value for _, value in points]
