"""published.json: known repositories get the template that they were tuned on; other folders get none."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from changed_weights import additive
from checkpoint_io.published_models import published_repository
from conftest import REPOSITORY
from download import PUBLISHED
from hub_download import model_registry
from hub_download.model_registry import registry, template_of
from in_process import RunTool
from safetensors.torch import load_file

ALPACA = (REPOSITORY / "finetune/templates/alpaca.jinja").read_text(encoding="utf-8")


def test_registry_is_complete() -> None:
    known = registry()
    assert set(PUBLISHED.values()) <= known["repositories"].keys()
    assert known["templates"]["alpaca"] == ALPACA  # the file that tuning uses
    named = {facts["template"] for facts in known["repositories"].values() if "template" in facts}
    assert named == known["templates"].keys() | {""}
    for name, facts in known["repositories"].items():
        assert facts["what"], name
        assert facts["source"], name
        for hashes in (facts.get("md5", {}), facts.get("recovered_md5", {})):
            assert all(len(bytes.fromhex(value)) == 16 for value in hashes.values()), name
    assert template_of("zjunlp/zhixi-13b-lora") == template_of("ZJUNLP/Zhixi-13b-lora") == ALPACA
    assert template_of("zjunlp/zhixi-13b-diff") == template_of("someone/else") == ""


def test_list_prints_licence_size_template_and_sources(run_tool: RunTool) -> None:
    lines = run_tool("tools/download.py", "list").stdout.splitlines()
    at = lines.index("  zjunlp/zhixi-13b-lora")
    assert lines[at + 1 : at + 4] == [
        "      LoRA adapter of the recovered ZhiXi-13B",
        "      licence apache-2.0; size 251 MB; template alpaca",
        "      from README.md of github.com/zjunlp/KnowLM, July 2023; huggingface.co/zjunlp/zhixi-13b-lora",
    ]
    for name, template in {
        "zhixi-13b-diff": "none: not instruction-tuned",
        "OneKE": "iepile_llama2_zh",
        "OceanGPT-7b": "not stated in huggingface.co/zjunlp/OceanGPT-7b-v0.1",
    }.items():
        assert lines[lines.index(f"  zjunlp/{name}") + 2].endswith(f"; template {template}")
    at = lines.index("  zjunlp/KnowEdit")
    assert lines[at + 2] == "      licence mit; size not stated in huggingface.co/datasets/zjunlp/KnowEdit"
    known = registry()
    names = [line.strip() for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert names == [*known["repositories"], *known["datasets"]]
    assert all(entry["what"] and entry["source"] for entry in known["datasets"].values())


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


RECORDS = {
    "hub cache": ("models--zjunlp--zhixi-13b-lora/snapshots/0123456789/config.json", "{}"),
    "clone": (
        "lora/.git/config",
        '[remote "origin"]\n\turl = https://hub.example/zjunlp/zhixi-13b-lora.git\n\tfetch = x\n',
    ),
    "recovered": (
        "lora/run.json",
        '{"script": "tools/weight_diff.py recover", "arguments": {"published": "zjunlp/zhixi-13b-lora"}}',
    ),
    "origin": ("lora/config.json", '{"_name_or_path": "zjunlp/zhixi-13b-lora"}'),
}


@pytest.mark.parametrize("record", RECORDS)
def test_folder_is_recognised_by_a_record_of_its_origin(tmp_path: Path, record: str) -> None:
    """The model named in config.json may have been tuned since, so the name only identifies the template."""
    name, content = RECORDS[record]
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    folder = file.parent.parent if file.parent.name == ".git" else file.parent
    assert published_repository(folder, "template") == "zjunlp/zhixi-13b-lora"
    assert published_repository(folder, "sum") == ("" if record == "origin" else "zjunlp/zhixi-13b-lora")
    if record != "hub cache":
        file.write_text(content.replace("zhixi-13b-lora", "other"))
        assert published_repository(folder, "template") == ""


@pytest.mark.parametrize("own", [False, True])
def test_merging_a_published_adapter_adds_its_template(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, run_tool: RunTool, own: bool
) -> None:
    """The adapter's own template, here in tokenizer_config.json, takes precedence and is written as a file. The base's
    template is not used.
    """
    base = shutil.copytree(tiny_checkpoint, tmp_path / "base")
    (base / "chat_template.jinja").write_text("base")
    folder, out = shutil.copytree(adapter, tmp_path / "lora"), tmp_path / "merged"
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / ".download").mkdir()
    (folder / ".download/note.json").write_text('{"repository": "zjunlp/zhixi-13b-lora"}')
    if own:
        config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": "own"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    done = run_tool("tools/weight_diff.py", "merge", "--path_zhixi", base, "--path_lora", folder, "--path_sfted", out)
    assert ("; chat_template.jinja added, which zjunlp/zhixi-13b-lora was tuned on\n" in done.stdout) is not own
    assert (out / "chat_template.jinja").read_text() == ("own" if own else ALPACA)
    assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())


SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 800}  # of tiny_checkpoint


def set_registry(path: Path, repositories: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(json.dumps({"repositories": repositories, "templates": {"alpaca": ALPACA}}))
    monkeypatch.setattr(model_registry, "REGISTRY", path)


def test_recovered_model_is_recognised_by_its_sum_and_gets_its_template(
    tiny_checkpoint: Path, tuned: Path, tmp_path: Path, run_tool: RunTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the sum is not a published one, the base is not verified, and no template is added."""
    diff, out = additive(tmp_path / "diff", tiny_checkpoint, tuned), tmp_path / "out"
    (diff / "chat_template.jinja").unlink()
    total = float(sum(value.double().sum() for value in load_file(tuned / "model.safetensors").values()))
    facts = {"config": SHAPE, "sum": {"float16": total + 7}, "template": "alpaca"}
    set_registry(tmp_path / "table.json", {"some/diff": facts}, monkeypatch)
    pair = ("--path_raw", tiny_checkpoint, "--path_diff", diff, "--path_tuned", out)
    done = run_tool("tools/weight_diff.py", "recover", *pair)
    assert f"base verified by the published sum of some/diff, {total:.4f}; chat_template.jinja added" in done.stdout
    assert (out / "chat_template.jinja").read_text() == ALPACA
    shutil.rmtree(out)
    set_registry(tmp_path / "table.json", {"some/diff": facts | {"sum": {"float16": total + 9}}}, monkeypatch)
    done = run_tool("tools/weight_diff.py", "recover", *pair)
    assert "BASE NOT VERIFIED: " in done.stdout
    assert not (out / "chat_template.jinja").exists()


def test_configuration_and_tokenizer_of_llama_never_add_a_template(
    tiny_checkpoint: Path, adapter: Path, tmp_path: Path, run_tool: RunTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaMA and models tuned from it have the same ones, so a notice names similar models and the remedy."""
    lora = shutil.copytree(adapter, tmp_path / "lora", ignore=shutil.ignore_patterns("chat_template.jinja"))
    facts, pretrained = {"config": SHAPE, "template": "alpaca"}, {"config": SHAPE, "template": ""}
    set_registry(tmp_path / "table.json", {"some/tuned": facts, "some/base": pretrained, "some/chat": {}}, monkeypatch)
    command = ("tools/weight_diff.py", "merge", "--path_zhixi", tiny_checkpoint, "--path_lora", lora, "--path_sfted")
    done = run_tool(*command, tmp_path / "out")
    assert not (tmp_path / "out/chat_template.jinja").exists()
    assert done.stdout.splitlines()[1] == (
        f"notice: {tmp_path}/out has no chat_template.jinja (its config.json fits some/tuned, but also other models). "
        f"A model that was tuned on a template needs it: python tools/set_template.py --model_path {tmp_path}/out "
        "--template_path finetune/templates/alpaca.jinja --output_dir NEW"
    )
    run_tool(*done.stdout.splitlines()[1].split(": python ")[1].replace("NEW", str(tmp_path / "new")).split())
    assert (tmp_path / "new/chat_template.jinja").read_text() == ALPACA
    (lora / ".download").mkdir()
    for name, needs_template in {"some/base": False, "some/chat": True}.items():  # the latter states no template
        (lora / ".download/note.json").write_text(json.dumps({"repository": name}))
        assert ("notice: " in run_tool(*command, tmp_path / name[5:]).stdout) is needs_template
