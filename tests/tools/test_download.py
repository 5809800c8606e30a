"""tools/download.py against a small hub on this machine: whole folders, damage, interruption, and what is refused."""

import hashlib
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import download
import pytest
from conftest import RunScript

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DIFF = {
    "config.json": b'{"model_type": "llama"}\n',
    "model.safetensors": bytes(range(256)) * 4096,
    "sub/notes.txt": "说明\n".encode(),
}
LORA = {"adapter_config.json": b"{}\n", "adapter_model.safetensors": b"\x01\x02" * 5000}


@dataclass
class Hub:
    """The part of the hub's API that a snapshot download calls; what it answers can be spoilt."""

    repositories: dict[str, dict[str, bytes]]
    damaged: set[str] = field(default_factory=set)  # files served with another last byte
    cut_once: set[str] = field(default_factory=set)  # files whose first transfer ends half-way
    sent: list[tuple[str, str]] = field(default_factory=list)  # (file, Range header) of every transfer
    url: str = ""


def described(name: str, content: bytes) -> dict[str, Any]:
    """Size, git id and, for weights, the LFS entry of a file, as the hub's JSON has them."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    large = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return {"size": len(content), "id": git, "lfs": large if name.endswith(".safetensors") else None}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+|/tree/[^/]+)?", path):
            repository, rest = found[1], found[2] or ""
            if repository not in self.hub.repositories:
                return self.refuse("RepoNotFound")
            if rest.startswith("/revision/") and rest.split("/")[2] not in ("main", COMMIT):
                return self.refuse("RevisionNotFound")
            return self.answer(json.dumps(self.listing(repository, rest.startswith("/tree/"))).encode())
        found = re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path)
        assert found, path
        return self.transfer(found[2], self.hub.repositories[found[1]][found[2]])

    def listing(self, repository: str, is_tree: bool) -> Any:
        files = {name: described(name, content) for name, content in self.hub.repositories[repository].items()}
        if not is_tree:
            siblings = [
                {"rfilename": name, "size": d["size"], "blobId": d["id"], **({"lfs": d["lfs"]} if d["lfs"] else {})}
                for name, d in files.items()
            ]
            return {"id": repository, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        rows = []
        for name, d in files.items():
            large = {"lfs": {"oid": d["lfs"]["sha256"], "size": d["size"], "pointerSize": 130}} if d["lfs"] else {}
            rows.append({"type": "file", "path": name, "size": d["size"], "oid": d["id"], **large})
        return rows

    def transfer(self, name: str, content: bytes) -> None:
        described_as = described(name, content)
        tag = (described_as["lfs"] or {"sha256": described_as["id"]})["sha256"]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            return self.answer(content, headers=headers)
        wanted = self.headers.get("Range", "")
        self.hub.sent.append((name, wanted))
        if name in self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if name in self.hub.cut_once:
            self.hub.cut_once.discard(name)
            self.answer(body, 206 if start else 200, headers, send=len(body) // 2)
            self.close_connection = True
            return None
        return self.answer(body, 206 if start else 200, headers)

    def answer(
        self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, send: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:send])

    def refuse(self, code: str) -> None:
        self.answer(b"{}", 404, {"X-Error-Code": code, "X-Error-Message": code})

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub({"zjunlp/zhixi-13b-diff-fp16": DIFF, "zjunlp/zhixi-13b-lora": LORA, "some/thing": DIFF})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": made}))
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


Download = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_download(hub: Hub, run_script: RunScript, tmp_path: Path) -> Download:
    """run_download("--only_lora", …): the script with the hub above for the public one."""
    environment = {
        "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HOME": tmp_path / "home",
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip

    def run(*arguments: object, status: int = 0, **environment_too: str) -> "subprocess.CompletedProcess[str]":
        return run_script("tools/download.py", *arguments, status=status, env=environment | environment_too)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_specified_repository_arrives_whole_and_a_second_run_only_compares(
    hub: Hub, run_download: Download, tmp_path: Path
) -> None:
    target = tmp_path / "got/thing"
    done = run_download("--download_path", target, "--specify", "--repo_name", "some/thing", "--revision", "main")
    assert contents(target) == DIFF  # the client's own notes are gone, too
    assert "3 files" in done.stdout
    assert not target.with_name("thing.partial").exists()
    hub.sent.clear()
    again = run_download("--download_path", target, "--specify", "--repo_name", "some/thing")
    assert "complete already" in again.stdout
    assert hub.sent == []
    (target / "config.json").write_bytes(DIFF["config.json"].upper())
    other = run_download("--download_path", target, "--specify", "--repo_name", "some/thing", status=2)
    assert "config.json differs" in other.stderr
    assert (target / "config.json").read_bytes() == DIFF["config.json"].upper()


def test_the_published_choices(run_download: Download, tmp_path: Path) -> None:
    run_download("--download_path", tmp_path / "both", "--both", "--fp16")
    assert contents(tmp_path / "both/zhixi-13b-diff-fp16") == DIFF
    assert contents(tmp_path / "both/zhixi-13b-lora") == LORA
    run_download("--download_path", tmp_path / "base", "--only_base", "--fp16")
    assert contents(tmp_path / "base") == DIFF
    run_download("--download_path", tmp_path / "lora", "--only_lora")
    assert contents(tmp_path / "lora") == LORA


def test_a_transfer_that_breaks_off_is_taken_up_where_it_broke(
    hub: Hub, run_download: Download, tmp_path: Path
) -> None:
    """The client writes 10 MiB at a time, so what lies beyond the last whole 10 MiB comes again."""
    large = {"model.safetensors": bytes(range(256)) * (24 << 12)}
    hub.repositories["some/large"] = large
    hub.cut_once.add("model.safetensors")
    run_download("--download_path", tmp_path / "large", "--specify", "--repo_name", "some/large")
    assert contents(tmp_path / "large") == large
    assert hub.sent == [("model.safetensors", ""), ("model.safetensors", f"bytes={10 << 20}-")]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])  # checked by sha256, and by git's id
def test_a_damaged_file_is_noticed_and_alone_is_fetched_again(
    hub: Hub, run_download: Download, tmp_path: Path, name: str
) -> None:
    arguments = ("--download_path", tmp_path / "thing", "--specify", "--repo_name", "some/thing")
    hub.damaged = {name}
    done = run_download(*arguments, status=2)
    assert f"1 files of some/thing are missing or arrived damaged ({name})" in done.stderr
    assert not (tmp_path / "thing").exists()
    hub.damaged = set()
    hub.sent.clear()
    (tmp_path / "thing.partial/left_over.txt").write_text("of another download")
    run_download(*arguments)
    assert hub.sent == [(name, "")]
    assert contents(tmp_path / "thing") == DIFF


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "exactly one of --only_base, --only_lora, --both and --specify"),
        (("--only_base", "--both"), "exactly one of"),
        (("--only_lora", "--fp16"), "--fp16 is a choice of base weights"),
        (("--specify",), "--specify and --repo_name OWNER/NAME go together"),
        (("--only_base", "--repo_name", "a/b"), "go together"),
        (("--only_base", "--fp32"), "unknown option --fp32"),
        (("--only_base",), "has no repository zjunlp/zhixi-13b-diff, or it is private"),
        (("--specify", "--repo_name", "some/thing", "--revision", "v9"), "has no revision 'v9'"),
        (("--specify", "--repo_name", "a/b/c"), "'a/b/c' is no repository name"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    run_download: Download, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = run_download("--download_path", tmp_path / "out", *arguments, status=2)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert not list(tmp_path.glob("out*"))


def test_an_unreachable_hub_and_offline_mode_are_one_line(run_download: Download, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"  # bound, and nobody listens
        done = run_download("--download_path", tmp_path / "out", "--only_lora", status=2, HF_ENDPOINT=nobody)
    assert f"{nobody} does not answer" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = run_download("--download_path", tmp_path / "out", "--only_lora", status=2, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert not list(tmp_path.glob("out*"))


def test_a_disk_that_is_too_small_is_refused_before_the_transfer(tmp_path: Path) -> None:
    @dataclass
    class File:
        rfilename: str
        size: int

    with pytest.raises(ValueError, match=r"GB free, 1000000\.0 GB are to come"):
        download.check_space(tmp_path / "a/b.partial", [File("big", 10**15)])
    assert not (tmp_path / "a").exists()
    download.check_space(tmp_path / "a/b.partial", [File("small", 10)])
    assert (tmp_path / "a/b.partial").is_dir()
