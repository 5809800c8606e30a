"""finetune/instruct_generate.py and instruct_select.py with our own server and a real model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import RunScript


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_rows_are_generated_and_judged_by_our_server(
    start_server: Callable[..., Any], real_model: Path, run_script: RunScript, tmp_path: Path
) -> None:
    """SmolLM2-135M evolves instructions on both routes of the API, and judges rows.

    The model is small, so perhaps no evolved instruction is accepted (exit status 2); every request must be answered.
    """
    server = start_server(real_model, "--max-model-len", 2048, "--served-model-name", "smol")
    endpoint = ("--url", server.url, "--model", "smol")
    seeds = tmp_path / "seeds.jsonl"
    questions = ["Name three rivers in Europe.", "Explain why the sky is blue.", "Describe a good breakfast."]
    rows = [{"instruction": question, "input": "", "output": "x"} for question in questions]
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for api in ("chat", "completions"):
        output = tmp_path / f"{api}.jsonl"
        options = ("--method", "evolve", "--seeds", seeds, "--generations", 1, "--max_tokens", 100, "--api", api)
        command = ("finetune/instruct_generate.py", *options, *endpoint, "--output", output)
        done = run_script(*command, status=None, timeout=900)
        assert done.returncode == 0 or "no row was generated" in done.stderr
        journal = Path(f"{output}.journal")
        answers = journal.read_bytes()
        for answer in map(json.loads, answers.splitlines()):
            assert not answer["error"] and answer["prompt_tokens"] > 0
        first = output.read_bytes() if output.exists() else b""
        again = run_script(*command, status=done.returncode)
        assert journal.read_bytes() == answers
        assert (output.read_bytes() if output.exists() else b"") == first
        assert f"({len(answers.splitlines())} from the journal)" in again.stdout + again.stderr
    kept = tmp_path / "kept.jsonl"
    run_script("finetune/instruct_select.py", "--data_path", seeds, "--output", kept, *endpoint, "--min_judge", 1,
               timeout=900)  # fmt: skip
    told = json.loads(Path(f"{kept}.run.json").read_text())
    assert told["judge"]["requests"] == told["rows"] == 3 and not told["judge"]["failed"]
