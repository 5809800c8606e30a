"""benchmarks/bench_pretrain*.py in their smallest forms: the last line is JSON with the documented keys."""

import json
from typing import Any

import pytest
from conftest import RunScript


def last_line(printed: str) -> dict[str, Any]:
    return json.loads(printed.splitlines()[-1])


@pytest.mark.slow
def test_packing_is_measured_against_padding_and_a_plain_loop(run_script: RunScript) -> None:
    done = run_script(
        "benchmarks/bench_pretrain.py", "--rounds", 1, "--steps", 2, "--hidden_size", 64, "--layers", 1,
        "--median", 60, "--block_size", 256, "--micro_batch", 2,
    )  # fmt: skip
    found = last_line(done.stdout)
    assert found.keys() == {
        "packed_tokens_per_cpu_s", "padded_tokens_per_cpu_s", "ratio", "packed_slot_efficiency",
        "padded_slot_efficiency", "overhead", "median", "block_size", "micro_batch", "rounds",
    }  # fmt: skip
    assert 0 < found["padded_slot_efficiency"] < found["packed_slot_efficiency"] <= 1
    assert found["packed_tokens_per_cpu_s"] > 0 < found["padded_tokens_per_cpu_s"]


@pytest.mark.slow
def test_every_setting_has_a_result_or_a_reason(run_script: RunScript) -> None:
    done = run_script(
        "benchmarks/bench_pretrain_gpu.py", "--tiny", "--settings", "sdpa-4,flash-8", "--global_batch", 4, "--steps", 2,
        "--warm_up", 1, "--peak_tflops", 1,
    )  # fmt: skip
    found = last_line(done.stdout)
    assert found.keys() == {"tokens_per_second", "mfu", "best", "gpu", "peak_tflops", "settings"}
    ran, skipped = found["settings"]["sdpa-4"], found["settings"]["flash-8"]
    assert ran.keys() == {"tokens_per_second", "mfu", "mfu_whole_attention", "mfu_without_embeddings", "gb"}
    assert found["best"] == "sdpa-4"
    assert found["tokens_per_second"] == ran["tokens_per_second"] > 0
    assert skipped == {"skipped": "FlashAttention needs a GPU"}


def test_wrong_options_and_no_gpu_are_one_line(run_script: RunScript) -> None:
    nowhere = {"PATH": "/nowhere"}
    for script, options, message in (
        ("bench_pretrain", ["--hidden_size", 100], "error: counts are at least 1"),
        ("bench_pretrain", ["--stepz", 1], "error: unknown option --stepz"),
        ("bench_pretrain_gpu", [], "error: nvidia-smi shows no GPU"),
        ("bench_pretrain_gpu", ["--tiny", "--settings", "sdpa-5"], "error: there is no setting sdpa-5"),
    ):
        done = run_script(f"benchmarks/{script}.py", *options, status=2, env=nowhere)
        assert done.stderr.startswith(message)
        assert done.stderr.count("\n") == 1
