"""The log of a run: JSON lines in a file, one line per entry on the terminal, and a plot at the end."""

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm


class TrainingLog:
    """Writes the entries of Trainer's log history to a file, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path, self._written = path, 0

    def update(self, history: Sequence[dict[str, Any]], max_steps: int) -> None:
        """Append the new entries and print the last one; the first call replaces the file and writes all entries."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a" if self._written else "w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in history[self._written :])
        self._written = len(history)
        if line := describe_entry(history[-1], max_steps):
            tqdm.write(line)


def describe_entry(entry: dict[str, Any], max_steps: int) -> str:
    """Return the line of an entry for the terminal; "" for Trainer's summary at the end of training."""
    parts = [f"step {entry['step']}/{max_steps}"]
    if "eval_loss" in entry:
        metrics = {name.removeprefix("eval_").replace("_", " "): entry[name] for name in entry if "eval_" in name}
        return f"{parts[0]} | held out: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    if "loss" not in entry:
        return ""
    sources = {name.removeprefix("loss_"): entry[name] for name in entry if name.startswith("loss_")}
    by_source = ", ".join(f"{name} {loss:.4f}" for name, loss in sources.items()) if len(sources) > 1 else ""
    parts += [f"loss {entry['loss']:.4f}" + (f" ({by_source})" if by_source else "")]
    parts += [f"grad {entry['grad_norm']:.3f}"] if entry.get("grad_norm") is not None else []
    parts += [f"lr {entry['learning_rate']:.3g}"]
    parts += [f"{entry[name]:,.0f} {name.replace('_per_second', '').replace('_', ' ')}/s"
              for name in entry if name.endswith("tokens_per_second")]  # fmt: skip
    parts += [f"MFU {entry['mfu']:.1%}"] if "mfu" in entry else []
    parts += [f"{entry['skipped_steps']} skipped"] if entry.get("skipped_steps") else []
    parts += [f"data {entry['data_wait']:.1%}"] if "data_wait" in entry else []
    return " | ".join([*parts, f"{timedelta(seconds=entry['eta_seconds'])} left"])


def draw_curves(history: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Plot training and held-out losses, held-out F1 if measured, gradient norm and learning rate to `path`."""
    from matplotlib.figure import Figure

    keys = sorted({key for entry in history for key in entry})
    panels = {
        "loss per token": [key for key in keys if key.startswith(("loss", "eval_loss"))],
        "F1": [key for key in keys if key.startswith("eval_") and key.endswith("f1")],
        "gradient norm": [key for key in keys if key == "grad_norm"],
        "learning rate": [key for key in keys if key == "learning_rate"],
    }
    # A short run may have logged nothing; its picture is an empty panel.
    panels = {label: names for label, names in panels.items() if names} or {"loss per token": []}
    figure = Figure(figsize=(8, 3 * len(panels)))
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for panel, (label, names) in zip(axes, panels.items(), strict=True):
        panel.set(ylabel=label)
        for name in names:
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            panel.plot(*zip(*points, strict=True), ".--" if name.startswith("eval_") else "-", label=name)
            panel.legend()
    axes[0].set_title(title)
    axes[-1].set_xlabel("step")
    figure.savefig(path, dpi=120, bbox_inches="tight")
