"""The READMEs: links have targets, named scripts exist, and marked commands run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("*/*.md"), *REPOSITORY.glob("examples/cases/*.md")])
MARK = "<!-- tested -->"


def commands(page: Path, mark: str = "") -> list[str]:
    """Return the command lines of a page's bash blocks, or only of blocks that follow `mark`; joins continued lines."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(rf"{re.escape(mark)}\s*```bash\n(.*?)```" if mark else r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def named(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_and_pictures_have_targets(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_scripts_in_commands_exist(page: Path) -> None:
    scripts = {
        word
        for line in commands(page)
        for word in shlex.split(line, comments=True)
        if re.fullmatch(r"(pretrain|finetune|tools|examples|inference|tests|benchmarks)/[\w./]+\.(py|sh|json)", word)
    }
    assert not [script for script in scripts if not (REPOSITORY / script).is_file()]


def test_readmes_begin_with_the_commands_for_quick_start_and_tests() -> None:
    for page in ("README.md", "README_ZH.md"):
        first, second = commands(REPOSITORY / page)[:2]
        assert first.startswith("bash examples/quickstart.sh")
        assert second.startswith("bash tests/run.sh")


@pytest.mark.timeout(900)
def test_marked_commands_run_on_the_output_of_the_quick_start(short_quickstart: Path) -> None:
    marked = commands(REPOSITORY / "README.md", MARK)
    assert len(marked) >= 5
    assert marked == commands(REPOSITORY / "README_ZH.md", MARK)
    for line in marked:
        words = [word.replace("quickstart/", f"{short_quickstart}/") for word in shlex.split(line, comments=True)]
        assert words[0] == "python"
        done = subprocess.run([sys.executable, *words[1:]], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), line
