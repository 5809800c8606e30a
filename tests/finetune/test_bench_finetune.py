"""benchmarks/bench_finetune.py in its smallest form: the measurements of a contender, and their summary."""

import json
import sys
from pathlib import Path
from typing import Any

import bench_finetune
import finetune_contenders
import pytest
import torch
from conftest import RunScript

SETTINGS = {"batch": 8, "micro": 4, "steps": 1, "warm_up": 1, "cutoff": 512, "pack_length": 512,
            "learning_rate": 3e-4, "bf16": False, "save": False}  # fmt: skip
MEASURED = {"examples", "supervised_tokens", "tokens", "positions", "cpu_s", "losses"}
TRL_PYTHON = bench_finetune.REPOSITORY / "benchmarks/.trl_venv/bin/python"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    rows = bench_finetune.training_rows(folder, SETTINGS)
    bench_finetune.make_base(folder, rows, 1200, **shape)
    bench_finetune.prepare(folder, SETTINGS, rows)
    return folder


def check_measurements(measured: dict[str, Any]) -> None:
    assert measured.keys() == MEASURED
    counts = [measured[name] for name in ("positions", "tokens", "supervised_tokens", "examples")]
    assert counts == sorted(counts, reverse=True)
    assert measured["tokens"] > measured["supervised_tokens"] > measured["examples"] > 0
    assert measured["cpu_s"] > 0
    assert len(measured["losses"]) == 2


@pytest.mark.integration
def test_contenders_are_measured_and_compared(scratch: Path) -> None:
    settings = json.loads((scratch / "settings.json").read_text())
    results = {name: finetune_contenders.TRAINERS[name](scratch, settings) for name in ("published", "ours")}
    for measured in results.values():
        check_measurements(measured)
        assert measured["examples"] == 8
    assert results["published"]["positions"] % (4 * 8) == 0
    assert results["ours"]["positions"] == results["ours"]["tokens"]
    results["tokenising"] = finetune_contenders.run_tokenising(scratch, settings, min_rows=1)
    result = bench_finetune.summary([results], ["published", "ours"])
    assert result.keys() == {"examples_per_cpu_s", "supervised_tokens_per_cpu_s", "padding", "ours_over", "tokenising"}
    ratio = (
        results["ours"]["examples"]
        / results["ours"]["cpu_s"]
        * results["published"]["cpu_s"]
        / results["published"]["examples"]
    )
    assert result["ours_over"]["published"]["examples"] == [pytest.approx(ratio, abs=1e-3)] * 3
    assert result["tokenising"].keys() == {"published", "ours", "ratio"}


@pytest.mark.integration
def test_adapter_of_equal_minutes_is_scored(scratch: Path) -> None:
    speed, test = {"cpu_s": 1.0}, scratch / "rows.jsonl"
    figures = bench_finetune.f1_in_equal_minutes("published", scratch, speed, 2 / 60, test, sys.executable)
    assert figures["steps"] == 2 and figures["examples"] == 8  # of the steps after the warm-up
    assert figures["entity"].keys() == figures["triple"].keys() == {"f1", "f1_interval"}
    assert json.loads((scratch / "settings.json").read_text())["save"] is False


def test_batch_counts_counts_packed_examples() -> None:
    labels = torch.tensor([[-100, -100, 5, -100, 6, 7, -100]])
    packed = {"input_ids": torch.arange(7)[None], "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 0]])}
    on_tokens = finetune_contenders.batch_counts(packed | {"labels": labels})
    kept = {
        "keep": torch.tensor([1, 3, 4]),
        "targets": torch.tensor([[5, 6, 7]]),
    }  # the positions that predict these three
    assert on_tokens == finetune_contenders.batch_counts(packed | kept)
    assert on_tokens == {
        "examples": 2,
        "supervised_tokens": 3,
        "tokens": 7,
        "positions": 7,
    }  # the third example has no label


@pytest.mark.skipif(not TRL_PYTHON.is_file(), reason="TRL's environment is missing")
def test_trl_is_measured_in_its_own_environment(scratch: Path) -> None:
    check_measurements(bench_finetune.run_contender("trl", scratch, str(TRL_PYTHON)))


def test_invalid_option_is_an_error_of_one_line(run_script: RunScript) -> None:
    for option, message in (
        ("--stepz", "unknown option --stepz"),
        ("--micro", "--rounds, --steps, --warm_up, --micro and --layers must be at least 1, --batch a mult"),
    ):
        done = run_script("benchmarks/bench_finetune.py", option, 3, status=2)
        assert done.stderr.startswith(f"error: {message}")
