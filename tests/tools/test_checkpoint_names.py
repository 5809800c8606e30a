"""Folder options that get OWNER/NAME: the repository is downloaded once, then read from the cache without the hub."""

import re
from pathlib import Path

import pytest
from hub_download.checkpoint_names import checkpoint_folder
from hub_server import CHUNK, DIFF, LORA, Fault, Hub
from huggingface_hub import constants
from in_process import RunTool
from safetensors.torch import load_file

LARGE = "model.safetensors"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def cache(hub: Hub, hub_client: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache folder of downloaded models; the hub client uses the local hub."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # HF_ENDPOINT is read when the client is imported
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache/knowlm/models"


def test_repository_is_downloaded_once_and_then_read_without_hub(
    hub: Hub, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["some/thing"] = DIFF | {
        "pytorch_model.bin": b"the same weights",
        "consolidated.safetensors": b"as well",
        "LICENSE": b"MIT",
    }
    folder = checkpoint_folder("some/thing", "--base_model")
    assert folder == cache / "some--thing"
    assert files_of(folder) == {name: DIFF[name] for name in ("config.json", LARGE)} | {"LICENSE": b"MIT"}
    out, err = capsys.readouterr()
    assert out == ""
    assert f"notice: some/thing is not a folder; downloading it from {hub.url} to {folder}\n" in err
    assert "some/thing at 0123456789, 4 files, 1.05 MB: 4 files, 1.05 MB to download\n" in err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.tokens.clear()
    assert checkpoint_folder("some/thing", "--base_model") == folder
    assert not hub.tokens  # no request
    assert (
        f"notice: some/thing is read from {folder} (commit 0123456789); remove that folder" in capsys.readouterr().err
    )


def test_each_revision_has_its_own_cached_folder(hub: Hub, cache: Path) -> None:
    old = "a" * 40
    hub.older[old] = {"some/thing": {"config.json": b"old"}}
    assert files_of(checkpoint_folder(f"some/thing@{old}", "--x")) == {"config.json": b"old"}
    assert checkpoint_folder("some/thing@main", "--x") == cache / "some--thing@main"
    assert sorted(path.name for path in cache.iterdir()) == [f"some--thing@{old}", "some--thing@main"]


def test_published_model_gets_its_template(hub: Hub, cache: Path, repository: Path) -> None:
    folder = checkpoint_folder("zjunlp/zhixi-13b-lora", "--lora_weights")
    assert files_of(folder) == LORA | {
        "chat_template.jinja": (repository / "finetune/templates/alpaca.jinja").read_bytes()
    }


def test_interrupted_download_resumes_within_file(hub: Hub, cache: Path) -> None:
    hub.faults[LARGE] = [Fault(cut=2 * CHUNK + 1), Fault(status=403)]
    with pytest.raises(ValueError, match=r"some/thing is not a folder, and .* refuses .*the same command resumes"):
        checkpoint_folder("some/thing", "--base_model")
    assert not (cache / "some--thing").exists()
    hub.requests.clear()
    assert (checkpoint_folder("some/thing", "--base_model") / LARGE).read_bytes() == DIFF[LARGE]
    assert (LARGE, f"bytes={2 * CHUNK}-") in hub.requests


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "none is not a folder; --x takes a folder, or OWNER/NAME or OWNER/NAME@REVISION of the hub"),
        ("runs/none", "runs/none is not a folder; --x takes a folder, or"),  # runs is a folder here
        ("a/b/c", "a/b/c is not a folder; --x takes a folder, or"),
        ("some/none", "some/none is not a folder, and http.* has no repository some/none, or it is private; correct"),
        ("some/thing@v9", "some/thing@v9 is not a folder, and some/thing has no revision 'v9'"),
    ],
)
def test_name_that_is_neither_folder_nor_repository_is_refused(
    hub: Hub, cache: Path, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=f"^{message}"):
        checkpoint_folder(name, "--x")
    assert bool(hub.tokens) == name.startswith("some/")  # whether the hub was asked
    assert not cache.exists()


def test_uncached_repository_is_refused_in_offline_mode(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"some/thing is not a folder, and HF_HUB_OFFLINE is set, so nothing can be"):
        checkpoint_folder("some/thing", "--base_model")


def test_tools_take_names_of_base_and_adapter(
    hub: Hub, cache: Path, tiny_checkpoint: Path, adapter: Path, tmp_path: Path, run_tool: RunTool
) -> None:
    hub.repositories |= {"some/base": files_of(tiny_checkpoint), "some/lora": files_of(adapter)}
    merge = ("tools/weight_diff.py", "merge", "--path_sfted")
    run_tool(*merge, tmp_path / "of_folders", "--path_zhixi", tiny_checkpoint, "--path_lora", adapter)
    run_tool(*merge, tmp_path / "of_names", "--path_zhixi", "some/base", "--path_lora", "some/lora@main")
    merged = load_file(tmp_path / "of_names" / LARGE)
    assert {name: tensor.tolist() for name, tensor in merged.items()} == {
        name: tensor.tolist() for name, tensor in load_file(tmp_path / "of_folders" / LARGE).items()
    }
    done = run_tool("tools/checkpoint.py", "compare", "some/base", tiny_checkpoint)
    assert re.match(r"equal: \d+ tensors", done.stdout)
