"""Summarise a run of real_model.sh: perplexity, known facts and extraction scores of each model."""

import json
from pathlib import Path
from typing import Any

from recipe_results.fact_questions import count_correct_answers
from recipe_results.result_files import log_entries, read_result, seconds_of_steps, write_summary

MODELS = ("base", "trained", "interpolated", "merged")  # in the order of the recipe
ROW_LABELS = {  # result -> label of its row in the table
    "base": "base", "merged": "tuned", "merged-q8_0": "tuned, 8 bits (q8_0)", "merged-q4_0": "tuned, 4 bits (q4_0)",
    "extracted": "tuned, /extract",
}  # fmt: skip


def steps_within(train_log: str, seconds: int) -> None:
    """Print the number of training steps that fit into a time (at least 2), estimated from a short run.

    The first step of the short run is ignored, since its time includes preparations.

    Args:
        train_log: train_log.jsonl of a finished run of three steps or more with --logging_steps 1.
        seconds: the available time.
    """
    logged = log_entries(Path(train_log))
    entries = [entry for entry in logged if isinstance(entry, dict) and isinstance(entry.get("step"), int)]
    last = entries[-1]["step"] if entries else 0
    timed = [entry for entry in entries if "eta_seconds" in entry and 1 < entry["step"] < last]
    # The time to the end is the number of steps to the end times the seconds of one step.
    if not (eta := sum(entry["eta_seconds"] for entry in timed)):
        raise ValueError(f"{train_log} does not show the time of a step; run 3 or more steps with --logging_steps 1")
    print(max(2, seconds * sum(last - entry["step"] for entry in timed) // eta))


def perplexities(folder: Path) -> dict[str, dict[str, float]]:
    """Return source -> model -> perplexity of held-out text, for the base, the trained and the interpolated model."""
    prefix, entries = "eval_perplexity_", []
    for run in ("trained", "evaluated"):  # evaluated: a run with --eval_only on the interpolated model
        logged = log_entries(folder / run / "train_log.jsonl")
        entries += [entry for entry in logged if any(name.startswith(prefix) for name in entry)]
    measured = {"base": entries[0], "trained": entries[-2], "interpolated": entries[-1]}
    sources = [name for name in entries[0] if name.startswith(prefix)]
    return {name.removeprefix(prefix): {model: entry[name] for model, entry in measured.items()} for name in sources}


def collect_results(folder: Path) -> dict[str, Any]:
    """Return the results of all steps: the content of summary.json."""
    sizes = {
        name: sum(file.stat().st_size for file in folder.glob(name)) for name in ("merged/*.safetensors", "*.gguf")
    }
    return {
        "perplexity": perplexities(folder),
        "facts": {name: count_correct_answers(str(folder / f"facts-{name}.jsonl")) for name in MODELS},
        "scores": {name: read_result(folder, f"scores-{name}.json") for name in ROW_LABELS},
        "recovery": (folder / "recovery.txt").read_text(encoding="utf-8").splitlines()[0],
        "steps": {name: log_entries(folder / name / "train_log.jsonl")[-1]["step"] for name in ("trained", "adapter")},
        "bytes": sizes,
        "answer": read_result(folder, "answer.json"),
        "seconds": seconds_of_steps(folder),
    }


def summary_table(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    lines = []
    lines.append(f"  {'':24} {' '.join(f'{model:>16}' for model in MODELS)}")
    for source, models in summary["perplexity"].items():
        cells = [f"{value:.2f} ({value / models['base'] - 1:+.0%})" for value in models.values()]
        lines.append(f"  {f'perplexity {source}':24} {' '.join(f'{cell:>16}' for cell in cells)}")
    known = [f"{correct}/{number}" for correct, number in summary["facts"].values()]
    lines.append(f"  {'facts known':24} {' '.join(f'{cell:>16}' for cell in known)}")
    lines += [f"  {'recovery from the diff':24} {summary['recovery']}", ""]
    titles = f"{'entity F1':>10} {'relation F1':>12} {'parsed':>8} {'not in text':>12} {'examples':>9}"
    lines.append(f"  {'CoNLL04':24} {titles}")
    for name, label in ROW_LABELS.items():
        scores = summary["scores"][name]
        not_in_text = f"{scores['not_in_text']:.1%}" if "not_in_text" in scores else ""
        lines.append(
            f"  {label:24} {scores['entity']['f1']:10.3f} {scores['triple']['f1']:12.3f}"
            f" {scores['parsed']:8.1%} {not_in_text:>12} {scores['examples']:9d}"
        )
    lines += ["", f"  {'/generate':24} {json.dumps(summary['answer'], ensure_ascii=False)}"]
    return "\n".join([*lines, f"  {'time':24} {sum(summary['seconds'].values()) / 60:.1f} minutes"])


def summarize_real_model(folder: str = "real_model") -> None:
    """Print the table; write summary.json into the folder."""
    summary = collect_results(Path(folder))
    write_summary(Path(folder), summary)
    print(summary_table(summary))
