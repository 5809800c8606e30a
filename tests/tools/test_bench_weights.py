"""benchmarks/bench_weights.py: one small round ends with the JSON line that its docstring explains."""

import json
from pathlib import Path

import bench_weights
import pytest


@pytest.mark.slow
def test_benchmark_round_prints_ratios_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_weights.main(size="tiny", rounds=1, contenders=["plain_add"], folder=str(tmp_path))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["seconds"].keys() == bench_weights.COMMANDS.keys() - {"published_recover", "peft_merge"}
    assert line["ratios"].keys() == {"recover_over_plain_add"}
    assert 0.15 < line["diff_share"] < 0.19
    assert line["merged_diff_share"] < line["diff_share"]
    assert all(0 < mib < 64 for name, mib in line["anonymous_mib"].items() if name != "plain_add")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned", "additive", "adapter"}
