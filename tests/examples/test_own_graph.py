"""The commands in examples/own_graph.md run and print what the page shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

PAGES = [REPOSITORY / "examples" / name for name in ("own_graph.md", "own_graph_zh.md")]
PAGE = PAGES[0].read_text(encoding="utf-8")


def blocks(page: str, mark: str) -> list[str]:
    """Return the bash blocks that follow a mark in a page."""
    return re.findall(rf"<!-- {mark} -->\s*```bash\n(.*?)```", page, re.DOTALL)


def run(folder: Path, *marks: str) -> str:
    """Run the blocks with these marks in a folder that has the stages, and return what they print."""
    for stage in ("finetune", "tools"):
        (folder / stage).symlink_to(REPOSITORY / stage)
    commands = "\n".join(block for mark in marks for block in blocks(PAGE, mark))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_both_languages_have_the_same_commands() -> None:
    for mark in ("data", "model"):
        english, chinese = (blocks(page.read_text(encoding="utf-8"), mark) for page in PAGES)
        assert english == chinese
        assert english


@pytest.mark.integration
def test_data_commands_print_what_the_page_shows(tmp_path: Path) -> None:
    printed = run(tmp_path, "data").splitlines()
    sections = PAGE[: PAGE.index("## 4. ")]
    shown = "".join(re.findall(r"```text\n(.*?)```", sections, re.DOTALL)).splitlines()
    assert [line for line in shown if line != "…" and line not in printed] == []
    assert len(shown) > 8


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("real_gguf")  # skips if the package index does not have the model
def test_model_learns_the_form_of_the_answers_from_ten_texts(tmp_path: Path) -> None:
    printed = run(tmp_path, "data", "model")
    assert "60 steps" in printed
    assert "6 examples" in printed
    assert "100.0% of answers parse" in printed
    assert (tmp_path / "graph/model/extraction.json").is_file()
