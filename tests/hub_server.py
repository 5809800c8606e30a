"""A small local hub: model information, HEAD and GET of files with ranges, storage on another port, injected faults.

It implements the part of the public hub's API, or of ModelScope's, that a download uses.
"""

import hashlib
import json
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK = 1 << 16  # bytes that a download in the test process writes at once
API = "api"  # the name under which faults of the API are queued
DIFF = {
    "config.json": b'{"model_type": "llama"}\n',
    "model.safetensors": bytes(range(256)) * 4096,
    "sub/notes.txt": "说明\n".encode(),
}
LORA = {"adapter_config.json": b"{}\n", "adapter_model.safetensors": b"\x01\x02" * 5000}
Files = dict[str, bytes]


@dataclass
class Fault:
    """One faulty response: an error status, or a body that is truncated, hangs, or has a wrong byte."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # bytes of the body that are sent
    hang: bool = False  # keep the connection open after the cut
    wrong: bool = False
    body: bytes | None = None  # sent with status 200 instead of the file


@dataclass
class Hub:
    """Repositories (`datasets/OWNER/NAME` for data sets), the hub's features, and a record of its requests."""

    repositories: dict[str, Files]
    commit: str = COMMIT
    older: dict[str, dict[str, Files]] = field(default_factory=dict)  # commit -> repositories
    hashes: bool = True  # the listing has hashes
    sizes: bool = True  # the listing has sizes
    tags: bool = True  # files have an ETag
    ranges: bool = True  # Range requests are supported
    heads: bool = True  # HEAD requests are supported
    linked_sizes: bool = True  # redirects to the storage have X-Linked-Size
    modelscope: int = 0  # if not 0: only ModelScope's API; other paths get a web page with this HTTP status
    storage: str = ""  # address of the storage server to which files are redirected
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    requests: list[tuple[str, str]] = field(default_factory=list)  # (file, Range header) of every GET of a file
    sent: Counter[str] = field(default_factory=Counter)  # file -> bytes sent
    tokens: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # "hub" or "storage" -> Authorization
    unexpected_paths: list[str] = field(default_factory=list)
    end_hanging: threading.Event = field(default_factory=threading.Event)  # ends hanging responses
    url: str = ""


def downloaded(folder: Path) -> Files:
    """Return {path: content} of a finished download, without .download/note.json, which must exist."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del found[".download/note.json"]
    return found


def hash_of(name: str, content: bytes) -> str:
    """Return the sha256 of weights (large-file storage), or the git object id of other files."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def listing(hub: Hub, repository: str, commit: str) -> dict[str, Any]:
    rows = []
    for name, content in (hub.older.get(commit) or hub.repositories)[repository].items():
        row: dict[str, Any] = {"rfilename": name}
        if hub.sizes:
            row["size"] = len(content)
        if hub.hashes and name.endswith(".safetensors"):
            row["lfs"] = {"sha256": hash_of(name, content), "size": len(content), "pointerSize": 130}
        if hub.hashes:
            row["blobId"] = "f" * 40 if "lfs" in row else hash_of(name, content)
        rows.append(row)
    return {"id": repository, "sha": commit, "siblings": rows, "private": False, "tags": [], "downloads": 0}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    role: str  # "hub" or "storage"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.tokens[self.role].add(self.headers.get("Authorization", ""))
        path = unquote(urlsplit(self.path).path)
        if self.hub.modelscope:
            return self.answer_as_modelscope(path, dict(parse_qsl(urlsplit(self.path).query)))
        if found := re.fullmatch(r"/api/(?:models/|(datasets/))([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self.describe((found[1] or "") + found[2], found[3] or "main")
        found = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path)
        if not found:
            self.hub.unexpected_paths.append(path)
            return self.answer(b"", 404)
        name, files = found[3], self.hub.older.get(found[2], self.hub.repositories)
        if (self.command == "GET" and self.role == "storage") or not self.hub.storage:
            return self.transfer(name, files[found[1]][name])
        if self.role == "storage":
            return self.answer(b"", 403)  # a storage address that is signed for GET refuses HEAD
        tags = {"X-Linked-Etag": f'"{hash_of(name, files[found[1]][name])}"'} if self.hub.tags else {}
        size = {"X-Linked-Size": str(len(files[found[1]][name]))} if self.hub.linked_sizes else {}
        return self.answer(b"", 302, {"Location": self.hub.storage + quote(path), **tags, **size})

    def describe(self, repository: str, revision: str) -> None:
        if self.hub.faults[API]:
            return self.fail(self.hub.faults[API].pop(0))
        if repository not in self.hub.repositories:
            return self.refuse("RepoNotFound")
        if revision not in ("main", self.hub.commit, *self.hub.older):
            return self.refuse("RevisionNotFound")
        commit = self.hub.commit if revision == "main" else revision
        return self.answer(json.dumps(listing(self.hub, repository, commit)).encode())

    def answer_as_modelscope(self, path: str, query: dict[str, str]) -> None:
        """Answer listings (in pages for data sets) and file requests; ModelScope lists the sha256 of every file."""
        found = re.fullmatch(r"/api/v1/(?:models|(datasets))/([^/]+/[^/]+)/repo(/files|/tree)?", path)
        if not found:
            return self.answer(b"<!DOCTYPE html>", self.hub.modelscope)
        files = self.hub.repositories.get(f"{found[1]}/{found[2]}" if found[1] else found[2])
        if files is None or query["Revision"] not in ("master", "v1"):
            return self.answer(json.dumps({"Code": 10010205001, "Message": "not found", "Data": None}).encode(), 404)
        if not found[3]:
            return self.transfer(query["FilePath"], files[query["FilePath"]])
        facts: dict[str, Any] = {"Revision": self.hub.commit, "CommittedDate": 1_700_000_000}
        rows = [
            facts | {"Path": name, "Type": "blob", "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        ]
        rows.append({"Path": "sub", "Type": "tree", "Size": 0, "Sha256": "", "Revision": "e" * 40, "CommittedDate": 9})
        if found[1]:
            first = (int(query["PageNumber"]) - 1) * int(query["PageSize"])
            rows = rows[first : first + int(query["PageSize"])]
        return self.answer(json.dumps({"Code": 200, "Success": True, "Data": {"Files": rows}}).encode())

    def transfer(self, name: str, content: bytes) -> None:
        headers = {"X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        if self.hub.tags:
            headers["ETag"] = f'"{hash_of(name, content)}"'
        if self.command == "HEAD":
            return self.answer(content, 200 if self.hub.heads else 405, headers)
        range_header = self.headers.get("Range", "")
        self.hub.requests.append((name, range_header))
        fault = self.hub.faults[name].pop(0) if self.hub.faults[name] else Fault()
        if fault.status:
            return self.fail(fault)
        content = content if fault.body is None else fault.body
        if fault.wrong:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(range_header.removeprefix("bytes=").removesuffix("-")) if range_header and self.hub.ranges else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(content[start:], 206 if start else 200, headers | fault.headers, fault.cut)
        self.hub.sent[name] += len(content[start:][: fault.cut])
        if fault.hang:
            self.hub.end_hanging.wait()
        self.close_connection = self.close_connection or fault.cut is not None
        return None

    def answer(
        self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])

    def fail(self, fault: Fault) -> None:
        self.answer(b"{}", fault.status, fault.headers)

    def refuse(self, code: str) -> None:
        self.answer(b"{}", 404, {"X-Error-Code": code, "X-Error-Message": code})

    def log_message(self, *_: object) -> None:
        """Suppress the request log."""


@contextmanager
def serving(hub: Hub, role: str) -> Iterator[str]:
    """Run a server in this role while the block runs; yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub, "role": role}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        hub.end_hanging.set()
        server.shutdown()
        thread.join()
        server.server_close()
