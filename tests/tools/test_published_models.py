"""published.json: known repositories get the template that they were tuned on; others are left alone."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from checkpoint_io.published_models import published_repository
from conftest import REPOSITORY
from download import PUBLISHED
from hub_download import model_registry
from hub_download.model_registry import registry, template_of
from in_process import RunTool

ALPACA = (REPOSITORY / "finetune/templates/alpaca.jinja").read_text(encoding="utf-8")


def test_registry_is_complete() -> None:
    known = registry()
    assert set(PUBLISHED.values()) <= known["repositories"].keys()
    assert known["templates"] == {"alpaca": ALPACA}  # the file that tuning uses
    for name, facts in known["repositories"].items():
        assert facts["what"], name
        assert facts["source"], name
        assert facts.get("template", "alpaca") in known["templates"], name
        for hashes in (facts.get("md5", {}), facts.get("recovered_md5", {})):
            assert all(len(bytes.fromhex(value)) == 16 for value in hashes.values()), name
    assert template_of("zjunlp/zhixi-13b-lora") == template_of("ZJUNLP/Zhixi-13b-lora") == ALPACA
    assert template_of("zjunlp/zhixi-13b-diff") == template_of("someone/else") == ""


def test_folder_is_recognised_by_note_or_by_published_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert published_repository(tmp_path, "md5") == ""
    facts = {name: {"md5": {"a.bin": hashlib.md5(name.encode()).hexdigest()}} for name in ("x/one", "x/two")}
    (tmp_path / "table.json").write_text(json.dumps({"repositories": facts, "templates": {}}))
    monkeypatch.setattr(model_registry, "REGISTRY", tmp_path / "table.json")
    (tmp_path / "a.bin").write_bytes(b"x/two")
    assert published_repository(tmp_path, "md5") == "x/two"
    (tmp_path / "a.bin").write_bytes(b"x/three")
    assert published_repository(tmp_path, "md5") == ""
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download/note.json").write_text('{"repository": "x/note"}')
    assert published_repository(tmp_path, "md5") == "x/note"


@pytest.mark.parametrize("own", [False, True])
def test_merging_a_published_adapter_adds_its_template(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, run_tool: RunTool, own: bool
) -> None:
    """Its own template takes precedence, here inside tokenizer_config.json, and is written as a file."""
    folder, out = shutil.copytree(adapter, tmp_path / "lora"), tmp_path / "merged"
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / ".download").mkdir()
    (folder / ".download/note.json").write_text('{"repository": "zjunlp/zhixi-13b-lora"}')
    if own:
        config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": "own"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    run_tool(
        "tools/weight_diff.py", "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", folder, "--path_sfted", out
    )
    assert (out / "chat_template.jinja").read_text() == ("own" if own else ALPACA)
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
