"""The shortest run of the recipe for a real model: every step, with the same commands and the real components."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY, free_port


def recipe(**environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "examples/real_model.sh"], cwd=REPOSITORY, capture_output=True, text=True, timeout=2000,
        env=os.environ | {"SHORT": "1", "PORT": str(free_port())} | environment,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_step_leaves_its_result_and_a_second_run_redoes_nothing(
    tmp_path: Path, real_gguf: Path, shared_data: Path
) -> None:
    settings = {"OUT": str(tmp_path / "out"), "BASE": str(real_gguf), "DATA_DIR": str(shared_data)}
    first = recipe(**settings)
    assert first.returncode == 0, first.stdout + first.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["perplexity"].keys() == {"en", "zh"}
    assert all(models["interpolated"] < models["base"] for models in summary["perplexity"].values())
    assert summary["recovery"].startswith("equal:")
    assert summary["scores"].keys() == {"base", "merged", "merged-q8_0", "merged-q4_0", "extracted"}
    assert summary["scores"]["extracted"]["parsed"] == 1
    assert "generated_text" in summary["answer"]
    for checkpoint in ("base", "trained", "pretrained", "recovered", "adapter", "merged"):
        assert {"tokenizer.json", "run.json", "checkpoint.json"} <= {
            file.name for file in (tmp_path / "out" / checkpoint).iterdir()
        }, checkpoint
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.safetensors")}
    again = recipe(**settings)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "$ python tools" not in again.stdout
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ({"MINUTES": "soon"}, "MINUTES=soon is not a positive whole number"),
        ({"DATA_DIR": "absent"}, "absent/corpus/en.jsonl is missing"),
    ],
)
def test_wrong_settings_are_refused_before_the_set_up(tmp_path: Path, setting: dict[str, str], fault: str) -> None:
    refused = recipe(OUT=str(tmp_path / "out"), **setting)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"real_model: {fault}")
    assert not (tmp_path / "out").exists()


def test_step_of_a_function_ends_at_its_first_error_and_leaves_no_result(tmp_path: Path) -> None:
    steps = (
        'first() { false; touch "$OUT/first"; }',
        'step "$OUT/equal.txt" print_and_save "$OUT/equal.txt" echo equal',
        'step "$OUT/different.txt" print_and_save "$OUT/different.txt" bash -c "echo different; exit 1"',
    )
    for last in ('step "$OUT/first" first', steps[2]):
        script = "\n".join([f"source {REPOSITORY}/examples/recipe_steps.sh", *steps[:2], last, "echo continued"])
        ended = subprocess.run(
            ["bash", "-c", script], env=os.environ | {"OUT": str(tmp_path)}, capture_output=True, text=True, timeout=60
        )
        assert (ended.returncode, "continued" in ended.stdout) == (2, False)
        assert "was not made, for the reason above" in ended.stderr
    assert (tmp_path / "equal.txt").read_text() == "equal\n"
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "different.txt").exists()
