"""benchmarks/bench_pretrain.py with its smallest options: the last line is JSON with the documented keys."""

import json

import pytest
from conftest import RunScript


@pytest.mark.slow
def test_every_setting_has_figures_or_a_reason(run_script: RunScript) -> None:
    """Packing is compared with padding and with a plain loop; a setting that fails does not end the benchmark."""
    done = run_script(
        "benchmarks/bench_pretrain.py", "--rounds", 1, "--steps", 2, "--warm_up", 1, "--hidden_size", 64, "--layers", 1,
        "--median", 60, "--block_size", 256, "--settings", "packed-2,padded-2,plain-2,flash-2",
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() == {
        "settings", "packed_over_padded", "packed_over_plain", "rounds", "block_size", "median"
    }  # fmt: skip
    skipped = result["settings"].pop("flash-2")
    assert skipped.keys() == {"skipped"}
    assert "flash_attention_2" in skipped["skipped"]
    assert result["settings"].keys() == {"packed-2", "padded-2", "plain-2"}
    for figures in result["settings"].values():
        assert figures.keys() == {"tokens_per_second", "mfu", "gb"}
        assert figures["tokens_per_second"] > 0
    assert result["packed_over_padded"] > 1
    assert result["packed_over_plain"] > 0


def test_invalid_options_and_missing_gpu_are_refused_with_one_line(run_script: RunScript) -> None:
    for options, message in (
        (["--hidden_size", 100], "error: --hidden_size must be a multiple of 64, not 100"),
        (["--stepz", 1], "error: unknown option --stepz"),
        (["--gpu"], "error: nvidia-smi is not installed"),
        (["--settings", "sdpa-x"], "error: sdpa-x is not a setting such as flash-liger-16; the parts are packed,"),
    ):
        done = run_script("benchmarks/bench_pretrain.py", *options, status=2, env={"PATH": "/nowhere"})
        assert done.stderr.startswith(message)
        assert done.stderr.count("\n") == 1
