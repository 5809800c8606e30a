"""finetune/instruct_generate.py and instruct_select.py with our own server and a real model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RunScript


@pytest.mark.slow
def test_rows_are_generated_and_judged_by_our_server(
    start_server: Callable[..., Any], real_model: Path, run_script: RunScript, tmp_path: Path
) -> None:
    """Evolved instructions of SmolLM2-135M: both API routes, the same rows from the journal, scores of a judge."""
    server = start_server(real_model, "--max-model-len", 2048, "--served-model-name", "smol")
    endpoint = ("--url", server.url, "--model", "smol")
    seeds = tmp_path / "seeds.jsonl"
    questions = ["Name three rivers in Europe.", "Explain why the sky is blue.", "Describe a good breakfast."]
    rows = [{"instruction": question, "input": "", "output": "x"} for question in questions]
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for api in ("chat", "completions"):
        output = tmp_path / f"{api}.jsonl"
        options = ("--method", "evolve", "--seeds", seeds, "--generations", 2, "--max_tokens", 400, "--api", api)
        run_script("finetune/instruct_generate.py", *options, *endpoint, "--output", output)
        told = json.loads(Path(f"{output}.run.json").read_text())
        assert told["rows"] + sum(told["rejected"].values()) == 6 and not told["failed"]
        assert told["prompt_tokens"] > 100 and told["without_token_count"] == 0
        first = output.read_bytes()
        again = run_script("finetune/instruct_generate.py", *options, *endpoint, "--output", output)
        assert output.read_bytes() == first and f"({told['requests']} from the journal)" in again.stdout
    kept = tmp_path / "kept.jsonl"
    run_script("finetune/instruct_select.py", "--data_path", seeds, "--output", kept, *endpoint, "--min_judge", 1)
    told = json.loads(Path(f"{kept}.run.json").read_text())
    assert told["judge"]["requests"] == told["rows"] == 3 and not told["judge"]["failed"]
