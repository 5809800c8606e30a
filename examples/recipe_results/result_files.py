"""Read the results that the steps of a recipe leave in its folder, and write its summary."""

import json
from pathlib import Path
from typing import Any

from partial_folders.atomic_outputs import new_file


def read_result(folder: Path, name: str) -> Any:
    """Return the content of a JSON result of a recipe; raises FileNotFoundError if its step has not run."""
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"{folder / name} is missing; run the recipe that makes it: bash examples/quickstart.sh or real_model.sh"
        )
    return json.loads((folder / name).read_text(encoding="utf-8"))


def log_entries(train_log: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's train_log.jsonl."""
    return [json.loads(line) for line in train_log.read_text(encoding="utf-8").splitlines()]


def seconds_of_steps(folder: Path) -> dict[str, int]:
    """Return result -> seconds of the step that made it, from steps.tsv."""
    lines = (folder / "steps.tsv").read_text(encoding="utf-8").splitlines()
    return {step.removeprefix(f"{folder}/"): int(seconds) for step, seconds in (line.split("\t") for line in lines)}


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json into the folder."""
    with new_file(folder / "summary.json", replace=True) as file:
        file.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
