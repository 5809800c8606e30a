"""Summarise a run of real_model.sh: perplexity, known facts and extraction scores of each model."""

import json
from pathlib import Path
from typing import Any

from demo_world.quickstart_summary import read_result
from partial_folders.atomic_outputs import new_file

from real_data.fact_questions import known_facts

SCORED = ("base", "merged", "merged-q8_0", "merged-q4_0", "extracted")
SHOWN = {
    "base": "untouched", "merged": "tuned", "merged-q8_0": "8 bits (GGUF q8_0)", "merged-q4_0": "4 bits (GGUF q4_0)",
    "extracted": "/extract (grammar)",
}  # fmt: skip


def log_entries(train_log: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's train_log.jsonl."""
    return [json.loads(line) for line in train_log.read_text(encoding="utf-8").splitlines()]


def steps_within(train_log: str, seconds: int) -> None:
    """Print the number of training steps for which the time suffices, at least 2, after a run of a few steps.

    Args:
        train_log: train_log.jsonl of a finished run of a few steps.
        seconds: the time.
    """
    last = (log_entries(Path(train_log)) or [{}])[-1]
    if not last.get("train_runtime"):
        raise ValueError(f"{train_log} has no time at its end; finish its run first")
    print(max(2, int(seconds * last["step"] / last["train_runtime"])))


def perplexities(folder: Path) -> dict[str, list[float]]:
    """Return source -> perplexity of held-out text before and after a pretraining run with --eval_on_start."""
    prefix = "eval_perplexity_"
    held_out = [
        entry for entry in log_entries(folder / "train_log.jsonl") if any(name.startswith(prefix) for name in entry)
    ]
    sources = [name for name in held_out[0] if name.startswith(prefix)]
    return {name.removeprefix(prefix): [held_out[0][name], held_out[-1][name]] for name in sources}


def collect_figures(folder: Path) -> dict[str, Any]:
    """Return the results of all steps: the content of summary.json."""
    seconds = [line.split("\t") for line in (folder / "steps.tsv").read_text(encoding="utf-8").splitlines()]
    sizes = {
        name: sum(file.stat().st_size for file in folder.glob(name)) for name in ("merged/*.safetensors", "*.gguf")
    }
    return {
        "perplexity": perplexities(folder / "pretrained"),
        "facts": {name: known_facts(str(folder / f"facts-{name}.jsonl")) for name in ("base", "pretrained", "merged")},
        "scores": {name: read_result(folder, f"scores-{name}.json") for name in SCORED},
        "recovery": (folder / "recovery.txt").read_text(encoding="utf-8").splitlines()[0],
        "steps": {
            name: log_entries(folder / name / "train_log.jsonl")[-1]["step"] for name in ("pretrained", "adapter")
        },
        "bytes": sizes,
        "answer": read_result(folder, "answer.json"),
        "seconds": {step.removeprefix(f"{folder}/"): int(spent) for step, spent in seconds},
    }


def summary_table(summary: dict[str, Any]) -> str:
    """Return the summary as text."""
    lines = []
    for source, (before, after) in summary["perplexity"].items():
        change = f"{after / before - 1:+.0%}"
        lines.append(f"  {f'perplexity {source}':24} {before:8.2f} before pretraining, {after:8.2f} after ({change})")
    shown = ", ".join(f"{right}/{number} {name}" for name, (right, number) in summary["facts"].items())
    lines += [f"  {'facts known':24} {shown}", f"  {'recovery from the diff':24} {summary['recovery']}", ""]
    lines.append(f"  {'CoNLL04':24} {'entity F1':>10} {'relation F1':>12} {'parsed':>8} {'leaked':>8} {'examples':>9}")
    for name in SCORED:
        scores = summary["scores"][name]
        leaked = f"{scores['leaked']:.1%}" if "leaked" in scores else ""
        lines.append(
            f"  {SHOWN[name]:24} {scores['entity']['f1']:10.3f} {scores['triple']['f1']:12.3f}"
            f" {scores['parsed']:8.1%} {leaked:>8} {scores['examples']:9d}"
        )
    lines += ["", f"  {'/generate':24} {json.dumps(summary['answer'], ensure_ascii=False)}"]
    return "\n".join([*lines, f"  {'time':24} {sum(summary['seconds'].values()) / 60:.1f} minutes"])


def summarize_real_model(folder: str = "real_model") -> None:
    """Print the table; write summary.json into the folder."""
    summary = collect_figures(Path(folder))
    with new_file(Path(folder, "summary.json"), replace=True) as file:
        file.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(summary_table(summary))
