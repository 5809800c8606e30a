"""The commands in finetune/README.md run on a tiny model, from CrossNER's annotations to a score."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import fire
import ie_build
import ie_eval
import ie_run
import pytest
from conftest import REPOSITORY
from crossner_files import crossner_columns
from test_readme import MARK, commands

import finetune

SCRIPTS: dict[str, Any] = {"ie_build": ie_build, "ie_run": ie_run, "ie_eval": ie_eval}
SHORTER = {"finetune": ["--max_steps", "2"], "ie_run": ["--limit", "3", "--max_new_tokens", "8"]}


@pytest.mark.integration
def test_readme_commands_run_from_annotations_to_a_score(
    tmp_path: Path, shared_data: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's commands run in this process, with fewer training steps and with fewer and shorter answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = Path("CrossNER/ner_data/ai")
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        entries = json.loads((shared_data / f"crossner/ai/{split}.json").read_text())
        (folder / f"{split}.txt").write_text("\n".join(crossner_columns(entries)), encoding="utf-8")
    Path("quickstart").mkdir()
    shutil.copytree(tiny_checkpoint, "quickstart/recovered")
    config = Path("quickstart/recovered/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1024}))
    ran = []
    for line in commands(REPOSITORY / "finetune/README.md", MARK):
        words = shlex.split(line)
        if words[0] == "mkdir":
            Path(words[-1]).mkdir()
            continue
        if words[0] == "echo":
            Path(words[-1]).write_text(words[1])
            continue
        name = Path(words[1]).stem
        given = words[2:] + SHORTER.get(name, [])
        if name == "finetune":
            finetune.main(given)
        else:
            fire.Fire(SCRIPTS[name].main, given)
        ran.append(name)
    assert ran == ["ie_build", "ie_build", "finetune", "ie_run", "ie_eval"]
    assert json.loads(Path("ie/scores.json").read_text())["examples"] == 3
    adapter_extraction = json.loads(Path("ie/adapter/extraction.json").read_text())
    assert adapter_extraction["tasks"]["ner"]["en"]["instruction"]
