"""Files of a hub on their way to the disk: streamed, resumed inside a file, hashed as they arrive, compared later.

The hub client's own transfer (huggingface_hub 1.31 to 2.4, file_download.py) falls short of this in three ways: it
writes to a file of a random name and deletes that when it fails, so that a killed run begins its file anew; it compares
sizes but no hashes; and it deletes a damaged file before the new one is there. So reading on and comparing is done
here. Sessions, proxies, certificates, redirects and the kinds of errors are the client's.

In memory are the pieces that just arrived, one for each of the WORKERS. Not a script: tools/download.py imports it.
"""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from tqdm import tqdm

from hub_download.hub_retry import Patience, StoppedError, say

NOTES = ".download"  # the folder of what has not arrived whole and of the note about where all came from
WORKERS = 4  # files at a time
BLOCK = 1 << 22  # bytes read from the disk at once
DAMAGED_TRIES = 3  # of a file that arrives with other bytes than published

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub publishes it: 64 digits of hash are its sha256, 40 git's object id, none: not published."""

    name: str  # with "/" between folders
    size: int  # bytes
    hash: str
    url: str


class DamagedError(Exception):
    """A file arrived, or would arrive, with other bytes than published."""


def amount(size: float) -> str:
    """Bytes for people: 26.03 GB, 1.05 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def counted(number: int) -> str:
    return f"{number} file" + "s" * (number != 1)


def meter(total: int, what: str) -> Any:
    """A progress bar over bytes, with what is left and for how long; none where stderr is no terminal."""
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, leave=False)


def advance(bar: Any, count: int) -> None:
    with bar.get_lock():  # tqdm counts without one
        bar.update(count)


def each(work: Callable[[Item], Result], items: Iterable[Item], stop: threading.Event) -> list[Result]:
    """work(item) for every item, WORKERS at a time; the first error, or Ctrl-C, stops the others and is raised."""
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


# --- comparing --------------------------------------------------------------------------------------------------------


def new_digest(file: RemoteFile) -> Any:
    """A hash object of the kind that the file's hash is; git's sha1 has a header with the size in front."""
    return hashlib.sha1(b"blob %d\0" % file.size) if len(file.hash) == 40 else hashlib.sha256()


def is_whole(path: Path, file: RemoteFile, stop: threading.Event, bar: Any) -> bool:
    """Whether a regular file (a link is none) is there with the published size and, where there is one, hash."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
        return False
    if not file.hash:
        return True
    digest = new_digest(file)
    with path.open("rb") as content:
        while block := content.read(BLOCK):
            if stop.is_set():
                raise StoppedError
            digest.update(block)
            advance(bar, len(block))
    return digest.hexdigest() == file.hash


def differing(folder: Path, files: list[RemoteFile], stop: threading.Event) -> list[RemoteFile]:
    """Those of the files that the folder lacks or has otherwise."""
    with meter(sum(file.size for file in files), f"comparing {folder.name}") as bar:
        whole = each(lambda file: is_whole(folder / file.name, file, stop, bar), files, stop)
    return [file for file, good in zip(files, whole, strict=True) if not good]


# --- transfer ---------------------------------------------------------------------------------------------------------


class Part:
    """What has arrived of a file, on the disk byte by byte, and the hash over it."""

    def __init__(self, handle: IO[bytes], file: RemoteFile, bar: Any) -> None:
        self.handle, self.file, self.bar = handle, file, bar
        self.size, self.digest = 0, new_digest(file)
        handle.seek(0)
        while block := handle.read(BLOCK):  # of an earlier run
            self.count(block)
        if self.size > file.size:
            self.clear()

    def count(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.size += len(data)
        advance(self.bar, len(data))

    def append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # an unbuffered write may take only the beginning
            written = self.handle.write(rest)
            self.count(rest[:written])
            rest = rest[written:]

    def clear(self) -> None:
        self.handle.truncate(0)
        advance(self.bar, -self.size)
        self.size, self.digest = 0, new_digest(self.file)


def part_path(folder: Path, file: RemoteFile) -> Path:
    """Where the beginning of a file lies: the same place in every run that wants the same bytes."""
    key = f"{file.name}\n{file.hash or file.url}"  # the address holds the commit
    return folder / NOTES / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.part"


@dataclass(frozen=True)
class Transfer:
    """Brings files into a folder; shared by the threads of a run."""

    folder: Path
    headers: Mapping[str, str]  # with the token, which redirects to another host do not carry on
    stop: threading.Event
    bar: Any

    def fetch(self, file: RemoteFile) -> str:
        """Bring one file under its name into the folder; its hash, or "" where it arrived damaged every time.

        Raises the hub client's HTTPError where the hub refuses or does not answer, OSError where the disk is full,
        ValueError where the hub asks for too long a pause.
        """
        path = part_path(self.folder, file)
        for left in reversed(range(DAMAGED_TRIES)):
            try:
                digest = self.receive(file, path)
            except DamagedError as error:
                path.unlink()
                say(f"{file.name} arrived damaged: {error}; " + ("fetching it again" if left else "giving it up"))
                continue
            place = self.folder / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
            return digest
        return ""

    def receive(self, file: RemoteFile, path: Path) -> str:
        """Add to the part at `path` until it is the file, safe on the disk; its hash. DamagedError, or as in fetch."""
        from huggingface_hub import errors

        with path.open("a+b", buffering=0) as handle:
            part = Part(handle, file, self.bar)
            patience = Patience(file.name, self.stop)
            try:
                while (before := part.size) < file.size:
                    try:
                        self.read_on(part)
                    except errors.HTTPError as error:
                        patience.wait(error, part.size > before)
                digest = str(part.digest.hexdigest())
                if file.hash and digest != file.hash:
                    raise DamagedError(f"its hash is {digest[:10]}…, published is {file.hash[:10]}…")
            except DamagedError:
                part.clear()
                raise
            os.fsync(handle.fileno())
        return digest

    def read_on(self, part: Part) -> None:
        """One request for what a part lacks; HTTPError where the answer breaks off, DamagedError where it is wrong."""
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session, hf_raise_for_status

        headers = {**self.headers, "Accept-Encoding": "identity"}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        url, size = part.file.url, part.file.size
        with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            if response.status_code != 416:  # "no such range" says that the file is shorter
                hf_raise_for_status(response)
            begin(part, response)
            for data in response.iter_bytes():
                if self.stop.is_set():
                    raise StoppedError
                if part.size == size:
                    break
                part.append(data[: size - part.size])
        if part.size < size:
            raise DamagedError(f"the hub sent {part.size:,} bytes, published are {size:,}")


def begin(part: Part, response: Any) -> None:
    """Compare where an answer begins and ends with what was asked; the part is emptied where it begins at byte 0."""
    headers, size = response.headers, part.file.size
    if response.status_code == 206 and "Content-Encoding" not in headers:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        if found and int(found[1]) == part.size and found[2] in ("*", str(size)):
            return
    if response.status_code != 200:
        raise DamagedError(f"byte {part.size:,} was asked for and not sent (HTTP {response.status_code})")
    length = headers.get("Content-Length", "")
    if length.isdecimal() and int(length) != size and headers.get("Content-Encoding", "identity") == "identity":
        raise DamagedError(f"the hub sends {int(length):,} bytes, published are {size:,}")
    if part.size:
        part.clear()
