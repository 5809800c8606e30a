"""tools/download.py: complete folders, repair, selection of files and revisions, and refusals."""

import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY, RunScript
from hub_download.hub_listing import check_names
from hub_server import DIFF, LORA, Fault, Hub, downloaded

Get = Callable[..., tuple[str, str]]
Download = Callable[..., "subprocess.CompletedProcess[str]"]
NOTE = ".download/note.json"


@pytest.fixture
def run_download(hub: Hub, run_script: RunScript, tmp_path: Path) -> Download:
    """Return run_download("--only_lora", …), which runs the script with the local hub instead of the public one."""
    environment = {
        "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": tmp_path / "home", "HF_TOKEN": "",
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip

    def run(*arguments: object, status: int = 0, **environment_too: str) -> "subprocess.CompletedProcess[str]":
        return run_script("tools/download.py", *arguments, status=status, env=environment | environment_too)

    return run


def test_published_options_choose_their_repositories(run_download: Download, get: Get, tmp_path: Path) -> None:
    run_download("--download_path", tmp_path / "both", "--both", "--fp16")
    assert downloaded(tmp_path / "both/zhixi-13b-diff-fp16") == DIFF
    template = (REPOSITORY / "finetune/templates/alpaca.jinja").read_bytes()  # the adapter was tuned on this template
    assert downloaded(tmp_path / "both/zhixi-13b-lora") == LORA | {"chat_template.jinja": template}
    get(tmp_path / "base", specify=False, repo_name="", only_base=True, fp16=True)
    assert downloaded(tmp_path / "base") == DIFF
    get(tmp_path / "lora", specify=False, repo_name="", only_lora=True)
    assert downloaded(tmp_path / "lora") == LORA | {"chat_template.jinja": template}


def test_download_is_complete_and_second_run_only_compares(hub: Hub, get: Get, tmp_path: Path) -> None:
    target = tmp_path / "got/thing"
    out, _ = get(target, revision="main")
    before, after = out.splitlines()
    assert before == "some/thing at 0123456789, 3 files, 1.05 MB: 3 files, 1.05 MB to download"
    assert after.endswith("some/thing at 0123456789, 3 files, 1.05 MB, every hash as published")
    assert downloaded(target) == DIFF
    assert [path.name for path in target.parent.iterdir()] == ["thing"]
    hub.requests.clear()
    out, _ = get(target)
    assert out.startswith(f"{target}: complete already (some/thing at 0123456789, 3 files, 1.05 MB, every hash")
    assert not hub.requests


def test_dataset_is_downloaded(hub: Hub, get: Get, tmp_path: Path) -> None:
    hub.repositories["datasets/some/rows"] = {"rows.jsonl": b"{}\n"}
    get(tmp_path / "rows", repo_name="some/rows", repo_type="dataset")
    assert downloaded(tmp_path / "rows") == {"rows.jsonl": b"{}\n"}
    with pytest.raises(ValueError, match=r"--repo_type sets is unknown; use one of model, dataset, space"):
        get(tmp_path / "x", repo_type="sets")


@pytest.mark.parametrize("name", ["model.safetensors", "sub/notes.txt"])  # verified by sha256, and by git id
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "link"])
def test_second_run_downloads_only_damaged_file(hub: Hub, get: Get, tmp_path: Path, name: str, damage: str) -> None:
    target = tmp_path / "thing"
    get(target)
    good = {path: path.stat().st_ino for path in target.rglob("*.*") if path.is_file() and path != target / name}
    del good[target / NOTE]
    (target / "checkpoint.json").write_text("{}")  # a seal, written afterwards
    bits = bytearray(DIFF[name])
    bits[len(bits) // 2] ^= 4
    outside = tmp_path / "outside"
    outside.write_bytes(DIFF[name])  # the right bytes, but outside the folder, where they may change
    (target / name).unlink()
    if damage == "flipped":
        (target / name).write_bytes(bits)
    elif damage == "truncated":
        (target / name).write_bytes(DIFF[name][:-3])
    elif damage == "link":
        (target / name).symlink_to(outside)
    hub.requests.clear()
    out, _ = get(target)
    assert hub.requests == [(name, "")]
    assert f"{target}: downloaded {name}; complete now" in out
    assert downloaded(target) == DIFF | {"checkpoint.json": b"{}"}
    assert {path: path.stat().st_ino for path in good} == good
    assert outside.read_bytes() == DIFF[name]
    assert not target.with_name("thing.partial").exists()


def test_damaged_file_stays_until_replacement_is_verified(hub: Hub, get: Get, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    get(target)
    (target / "model.safetensors").write_bytes(b"damaged")
    (target / "config.json").unlink()
    hub.faults["model.safetensors"] = [Fault(wrong=True)] * 3
    with pytest.raises(ValueError, match=r"1 file of some/thing arrived damaged \(model.safetensors\); 1 of 2 files"):
        get(target)
    assert (target / "model.safetensors").read_bytes() == b"damaged"
    hub.requests.clear()
    get(target)
    assert hub.requests == [("model.safetensors", "")]  # config.json is in the partial folder and verified
    assert downloaded(target) == DIFF


def test_download_leaves_folder_of_other_repository_unchanged(hub: Hub, get: Get, tmp_path: Path) -> None:
    target = tmp_path / "thing"
    target.mkdir()
    (target / "config.json").write_bytes(b"mine")
    with pytest.raises(
        ValueError, match=r"is not a download of some/thing at .* \(config.json is missing or differs\); name a new"
    ):
        get(target)
    assert [path.read_bytes() for path in target.rglob("*")] == [b"mine"]
    get(tmp_path / "other", repo_name="zjunlp/zhixi-13b-lora")
    with pytest.raises(ValueError, match=r"holds zjunlp/zhixi-13b-lora, not some/thing; name a new folder"):
        get(tmp_path / "other")
    (tmp_path / "other" / NOTE).write_text("{")  # an unreadable note counts as missing
    with pytest.raises(ValueError, match=r"is not a download of some/thing"):
        get(tmp_path / "other")


def test_complete_folder_without_note_is_accepted(get: Get, tmp_path: Path) -> None:
    for name, content in DIFF.items():
        (tmp_path / "thing" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "thing" / name).write_bytes(content)
    assert "complete already" in get(tmp_path / "thing")[0]


def test_repair_keeps_commit_of_folder(hub: Hub, get: Get, tmp_path: Path) -> None:
    target, new = tmp_path / "thing", "f" * 40
    get(target)
    hub.older[hub.commit] = {"some/thing": DIFF}
    hub.commit, hub.repositories["some/thing"] = new, DIFF | {"config.json": b"newer"}
    (target / "sub/notes.txt").unlink()
    out, err = get(target)
    assert f"some/thing is now at ffffffffff; {target} stays at 0123456789" in err
    assert "complete now (some/thing at 0123456789" in out
    assert downloaded(target) == DIFF
    with pytest.raises(ValueError, match="holds some/thing at 0123456789, not at ffffffffff; name a new folder"):
        get(target, revision=new)
    get(tmp_path / "new", revision=new)
    assert downloaded(tmp_path / "new") == hub.repositories["some/thing"]


def test_download_does_not_write_through_links(hub: Hub, get: Get, tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "thing"
    outside.mkdir()
    (tmp_path / "thing.partial").symlink_to(outside)
    with pytest.raises(
        ValueError, match=r"thing\.partial is a link through which config.json would be written; remove it"
    ):
        get(target)
    (tmp_path / "thing.partial").unlink()
    (tmp_path / "thing.partial").mkdir()
    (tmp_path / "thing.partial/sub").symlink_to(outside)
    with pytest.raises(ValueError, match=r"partial/sub is a link through which sub/notes.txt would be written"):
        get(target)
    (tmp_path / "thing.partial/sub").unlink()
    get(target)
    assert downloaded(target) == DIFF
    (target / "sub/notes.txt").unlink()
    (target / "sub").rmdir()
    (target / "sub").symlink_to(outside)
    with pytest.raises(ValueError, match=r"thing/sub is a link through which sub/notes.txt would be written"):
        get(target)
    assert not list(outside.iterdir())


def test_download_repairs_folder_behind_link(get: Get, tmp_path: Path) -> None:
    get(tmp_path / "disk/thing")
    (tmp_path / "link").symlink_to(tmp_path / "disk/thing")
    (tmp_path / "link/config.json").unlink()
    get(tmp_path / "link")
    assert downloaded(tmp_path / "disk/thing") == DIFF
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("pattern", "exclude", "names"),
    [
        ("*.json", "", {"config.json"}),
        ("*.json,*.safetensors", "", {"config.json", "model.safetensors"}),
        (("*.json", "*.txt"), "", {"config.json", "sub/notes.txt"}),  # fire passes `a,b` as a tuple
        ("", "*.safetensors,*.bin", {"config.json", "sub/notes.txt"}),
        ("sub/", "", {"sub/notes.txt"}),
        ("*", "*.txt, *.json", {"model.safetensors"}),
    ],
)
def test_patterns_select_files(get: Get, tmp_path: Path, pattern: object, exclude: str, names: set[str]) -> None:
    get(tmp_path / "thing", pattern=pattern, exclude=exclude)
    assert downloaded(tmp_path / "thing").keys() == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "*.json,*.gguf"}, r"--pattern '\*.gguf' matches none of the 3 files .*: 'config.json', 'model"),
        ({"exclude": "*"}, r"--exclude '\*' leaves none of the files of some/thing: 'config.json'"),
    ],
)
def test_pattern_without_match_lists_some_files(
    get: Get, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        get(tmp_path / "thing", **options)
    assert not list(tmp_path.iterdir())


def test_wider_pattern_adds_files_to_finished_folder(hub: Hub, get: Get, tmp_path: Path) -> None:
    get(tmp_path / "thing", pattern="*.json")
    hub.requests.clear()
    get(tmp_path / "thing")
    assert sorted(hub.requests) == [("model.safetensors", ""), ("sub/notes.txt", "")]
    assert downloaded(tmp_path / "thing") == DIFF


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/x", "a\\..\\x", "C:x", "c:/x", "a//x", "./x", ".", "", "a/", "a\nb", "a\0b",
     ".download/note.json", ".Download/x"],
)  # fmt: skip
def test_names_that_lead_out_of_the_folder_are_refused(hub: Hub, get: Get, tmp_path: Path, name: str) -> None:
    hub.repositories["some/thing"][name] = b"evil"
    with pytest.raises(ValueError, match="which is an unsafe file name; nothing was downloaded"):
        get(tmp_path / "in/thing")
    assert not list(tmp_path.iterdir())
    assert not hub.requests


def test_check_names_accepts_plain_and_refuses_unsafe_names() -> None:
    check_names(["..a/b..c", "数据/第 1 行.json", "12:30.json", ".gitattributes", "a/b", "a/c"], "some/thing")
    with pytest.raises(ValueError, match=r"some/thing has a file '\.\./x'"):
        check_names(["a", "../x"], "some/thing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"specify": False, "repo_name": ""}, "exactly one of --only_base, --only_lora, --both and --specify"),
        ({"only_base": True}, "exactly one of"),
        ({"specify": False, "repo_name": "", "only_lora": True, "fp16": True}, "--fp16 selects the float16 diff"),
        (
            {"specify": False, "repo_name": "", "only_base": True, "repo_type": "dataset"},
            "--repo_type dataset needs --specify",
        ),
        ({"repo_name": ""}, "--specify and --repo_name OWNER/NAME must be used together"),
        ({"specify": False, "only_base": True}, "must be used together"),
        ({"specify": False, "repo_name": "", "only_base": True}, "no repository zjunlp/zhixi-13b-diff, or it is priv"),
        ({"revision": "v9"}, "has no revision 'v9'"),
        ({"repo_name": "a/b/c"}, "'a/b/c' is not a repository name"),
        ({"endpoint": "ftp://x"}, "'ftp://x' is not the address of a hub"),
        ({"endpoint": "https://me:secret@x"}, "put a token into HF_TOKEN"),
    ],
)
def test_impossible_download_is_refused_in_one_line_and_leaves_nothing(
    get: Get, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        get(tmp_path / "out", **options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_download_refuses_a_file(get: Get, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file; --download_path takes a new folder"):
        get(tmp_path / "file")


def test_unreachable_hub_and_offline_mode_are_reported_in_one_line(run_download: Download, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"  # the port is bound, but nobody listens
        done = run_download("--download_path", tmp_path / "out", "--only_lora", status=2, HF_ENDPOINT=nobody)
    assert f"error: {nobody} does not answer" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = run_download("--download_path", tmp_path / "out", "--only_lora", status=2, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert not list(tmp_path.glob("out*"))


def test_download_refuses_small_disk_before_transfer(
    hub: Hub, get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(
        ValueError, match=r"needs 0\.00 GB more and its disk has 0\.00 GB free; make room or write elsewhere"
    ):
        get(tmp_path / "thing")
    assert not hub.requests and not list(tmp_path.iterdir())
    get(tmp_path / "thing", pattern="*.json")
