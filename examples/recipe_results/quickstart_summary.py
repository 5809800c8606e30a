"""Summarise a run of the quick start: a table, summary.json, and a plot of the loss curves."""

import json
from pathlib import Path
from typing import Any

from partial_folders.atomic_outputs import new_file

from recipe_results.result_files import log_entries, read_result, seconds_of_steps, write_summary


def read_losses(folder: Path, stage: str) -> list[tuple[int, float]]:
    """Return (step, loss) pairs of a training run from its train_log.jsonl."""
    entries = log_entries(folder / stage / "train_log.jsonl")
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]


def collect_results(folder: Path) -> dict[str, Any]:
    """Return the results of all steps: the content of summary.json."""
    corpus = read_result(folder, "corpus/all.json")
    pretraining, tuning = read_losses(folder, "pretrained"), read_losses(folder, "adapter")
    weights = folder / "recovered" / "model.safetensors"
    diff = sum(file.stat().st_size for file in (folder / "diff").glob("*.safetensors"))
    return {
        "corpus": {"sources": [s["name"] for s in corpus["sources"]], **{k: corpus[k] for k in ("samples", "tokens")}},
        "pretraining": {"steps": pretraining[-1][0], "first_loss": pretraining[0][1], "last_loss": pretraining[-1][1]},
        "recovery": (folder / "recovery.txt").read_text(encoding="utf-8").strip(),
        "diff_share": round(diff / weights.stat().st_size, 3),
        "tuning": {"steps": tuning[-1][0], "first_loss": tuning[0][1], "last_loss": tuning[-1][1]},
        "before": read_result(folder, "scores-recovered.json"),
        "after": read_result(folder, "scores-merged.json"),
        "question": read_result(folder, "question.json"),
        "answer": read_result(folder, "answer.json"),
        "seconds": seconds_of_steps(folder),
    }


def summary_table(summary: dict[str, Any]) -> str:
    """Return the summary as text, one line for each step."""
    corpus, before, after = summary["corpus"], summary["before"], summary["after"]
    lines = {
        "corpus": f"{corpus['samples']:,} samples, {corpus['tokens']:,} tokens from {', '.join(corpus['sources'])}"
    }
    for name in ("pretraining", "tuning"):
        run = summary[name]
        lines[name] = f"{run['steps']} steps, loss {run['first_loss']:.2f} to {run['last_loss']:.3f}"
    lines["weight diff"] = f"{summary['diff_share']:.0%} of the model"
    lines["recovery"] = summary["recovery"].splitlines()[0]
    for kind in ("triple", "entity"):
        lines[f"held-out {kind} F1"] = f"{before[kind]['f1']:.3f} before tuning, {after[kind]['f1']:.3f} after"
    lines["held-out exact rows"] = f"{before['exact']:.3f} before tuning, {after['exact']:.3f} after"
    lines["/generate"] = json.dumps(summary["answer"], ensure_ascii=False)
    lines["time"] = f"{sum(summary['seconds'].values()) / 60:.1f} minutes"
    return "\n".join(f"  {name:20} {value}" for name, value in lines.items())


def draw_loss_curves(folder: Path, target: Path) -> None:
    """Plot the losses of pretraining and tuning side by side into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for axis, stage, title in zip(axes, ("pretrained", "adapter"), ("continued pretraining", "LoRA"), strict=True):
        axis.plot(*zip(*read_losses(folder, stage), strict=True))
        axis.set(xlabel="step", ylabel="loss per token", title=title, ylim=(0, None))
    figure.savefig(target, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def summarize(folder: str = "quickstart") -> None:
    """Print the table; write summary.json and loss_curves.png into the folder."""
    directory = Path(folder)
    summary = collect_results(directory)
    with new_file(directory / "loss_curves.png", replace=True) as picture:
        draw_loss_curves(directory, picture)
    write_summary(directory, summary)
    print(summary_table(summary))
    print(f"\n  {directory}/summary.json, {directory}/loss_curves.png")
