"""The quick start with SHORT=1 and real components: results of all steps, a second run, and the data."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY, RunScript, free_port


def quickstart(folder: Path, timeout: float = 1200, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "examples/quickstart.sh"], cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout,
        env=os.environ | {"SHORT": "1", "OUT": str(folder), "PORT": str(free_port())} | environment,
    )  # fmt: skip


@pytest.mark.timeout(1500)
def test_every_step_leaves_its_result(short_quickstart: Path) -> None:
    summary = json.loads((short_quickstart / "summary.json").read_text())
    assert summary["corpus"]["sources"] == ["en", "zh", "real"]
    assert summary["pretraining"]["steps"] == 6
    assert summary["pretraining"]["last_loss"] < summary["pretraining"]["first_loss"]
    assert summary["recovery"].startswith("equal:")
    assert {"triple", "entity", "exact", "parsed"} <= set(summary["before"]) & set(summary["after"])
    assert summary["answer"].keys() == {"generated_text", "num_output_tokens_cf", "error"}
    assert (short_quickstart / "loss_curves.png").read_bytes().startswith(b"\x89PNG")
    for checkpoint in ("base", "pretrained", "recovered", "adapter", "merged"):
        held = {file.name for file in (short_quickstart / checkpoint).iterdir()}
        assert {"tokenizer.json", "tokenizer.model", "run.json", "checkpoint.json"} <= held, checkpoint
        assert ("chat_template.jinja" in held) == ("extraction.json" in held) == (checkpoint in ("adapter", "merged"))


@pytest.mark.integration
def test_held_out_names_occur_nowhere_in_training(tmp_path: Path, run_script: RunScript) -> None:
    world = tmp_path / "world"
    run_script("examples/make_demo.py", "world", "--output_dir", world)
    training = "\n".join((world / f"{name}.jsonl").read_text() for name in ("en", "zh", "train"))
    training = training.replace('\\"', '"')
    held_out = {row["output"] for row in map(json.loads, (world / "heldout.jsonl").open())}
    names = set()
    for answer in map(json.loads, held_out):
        for items in answer.values():
            names |= {name for item in items for name in (item.values() if isinstance(item, dict) else [item])}
    assert len(names) > 150
    assert not [name for name in names if name in training]


def test_the_same_seed_makes_the_same_world(tmp_path: Path, run_script: RunScript) -> None:
    few = ("--people", 40, "--documents_per_language", 20, "--rows", 20, "--heldout_rows", 10, "--real_megabytes", 0.01)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_script("examples/make_demo.py", "world", "--output_dir", tmp_path / name, *few, "--seed", seed)
    one, same, other = ((tmp_path / name / "en.jsonl").read_bytes() for name in "abc")
    assert one == same != other


def test_a_second_run_redoes_nothing_and_other_settings_are_refused(short_quickstart: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in short_quickstart.rglob("*.safetensors")}
    again = quickstart(short_quickstart)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("exists already") >= 20
    assert {file: file.stat().st_mtime_ns for file in short_quickstart.rglob("*.safetensors")} == before
    refused = quickstart(short_quickstart, SEED="1")
    assert refused.returncode == 2
    assert "other settings" in refused.stderr
