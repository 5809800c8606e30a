"""Fixture of the pretraining tests: a small corpus."""

from pathlib import Path

import pytest
from conftest import RunScript, small_texts


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory, run_script: RunScript, tiny_tokenizer: Path) -> Path:
    """Return the prefix of a corpus of small texts; a sample has at most 64 tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts.txt").write_text("\n".join(small_texts(60)), encoding="utf-8")
    run_script(
        "pretrain/preprocess.py", "--mode", "write", "--file_path", folder / "texts.txt",
        "--save_prefix", folder / "small", "--tokenizer_path", tiny_tokenizer, "--seq_length", 64,
    )  # fmt: skip
    return folder / "small"
