"""What the tests of pretraining share: a small corpus."""

from pathlib import Path

import pytest
from conftest import RunScript, small_texts


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory, run_script: RunScript, tiny_tokenizer: Path) -> Path:
    """Prefix of a corpus of small texts, at most 64 tokens a sample."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "texts.txt").write_text("\n".join(small_texts(60)), encoding="utf-8")
    run_script(
        "pretrain/preprocess.py", "--mode", "write", "--file_path", folder / "texts.txt",
        "--save_prefix", folder / "small", "--tokenizer_path", tiny_tokenizer, "--seq_length", 64,
    )  # fmt: skip
    return folder / "small"
