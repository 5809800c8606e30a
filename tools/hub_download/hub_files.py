"""Transfer single files of a hub: streamed to the disk, resumable within a file, hashed while received.

The hub client's own transfer (huggingface_hub 1.31 to 2.4, file_download.py) is not used for three reasons: it writes
to a randomly named file and deletes it after an error, so an interrupted file starts over; it compares sizes but not
hashes; and it deletes a damaged file before the new one is complete. Sessions, proxies, certificates, redirects and
exceptions come from the client. Memory: one received block per worker thread.
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

from hub_download.hub_retry import RetryPolicy, StoppedError, notice

NOTES = ".download"  # subfolder for incomplete files and the note about their origin
WORKERS = 4  # concurrent downloads
BLOCK = 1 << 22  # bytes read from the disk at once
DAMAGED_TRIES = 3  # attempts to download a file whose bytes differ from the published ones

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RemoteFile:
    """A file in the hub's listing. hash: sha256 (64 digits), git object id (40 digits), or "" if not published."""

    name: str  # with "/" between folders
    size: int  # bytes
    hash: str
    url: str


class DamagedError(Exception):
    """A file's bytes differ from the published ones."""


def format_bytes(size: float) -> str:
    """Return a readable size such as 26.03 GB or 1.05 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def format_count(number: int) -> str:
    return f"{number} file" + "s" * (number != 1)


def progress_bar(total: int, what: str) -> Any:
    """Return a progress bar over bytes; silent if stderr is not a terminal."""
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None, leave=False)


def advance(bar: Any, count: int) -> None:
    with bar.get_lock():  # tqdm updates its count without a lock
        bar.update(count)


def run_in_threads(work: Callable[[Item], Result], items: Iterable[Item], stop: threading.Event) -> list[Result]:
    """Return [work(item)], WORKERS items at a time; the first error or Ctrl-C sets `stop` and is raised."""
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
    """Return a hash object for the file's kind of hash; git prepends a header with the size."""
    return hashlib.sha1(b"blob %d\0" % file.size) if len(file.hash) == 40 else hashlib.sha256()


def is_whole(path: Path, file: RemoteFile, stop: threading.Event, bar: Any) -> bool:
    """Return whether path is a regular file (not a link) with the published size and, if published, hash."""
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


def mismatched_files(folder: Path, files: list[RemoteFile], stop: threading.Event) -> list[RemoteFile]:
    """Return the files that are missing from the folder or differ from the published ones."""
    with progress_bar(sum(file.size for file in files), f"comparing {folder.name}") as bar:
        whole = run_in_threads(lambda file: is_whole(folder / file.name, file, stop, bar), files, stop)
    return [file for file, good in zip(files, whole, strict=True) if not good]


# --- transfer ---------------------------------------------------------------------------------------------------------


class ReceivedPart:
    """The partially received file on the disk, and the hash of its bytes."""

    def __init__(self, handle: IO[bytes], file: RemoteFile, bar: Any) -> None:
        self.handle, self.file, self.bar = handle, file, bar
        self.size, self.digest = 0, new_digest(file)
        handle.seek(0)
        while block := handle.read(BLOCK):  # bytes received in an earlier run
            self.count(block)
        if self.size > file.size:
            self.clear()

    def count(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.size += len(data)
        advance(self.bar, len(data))

    def append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # an unbuffered write may be partial
            written = self.handle.write(rest)
            self.count(rest[:written])
            rest = rest[written:]

    def clear(self) -> None:
        self.handle.truncate(0)
        advance(self.bar, -self.size)
        self.size, self.digest = 0, new_digest(self.file)


def part_path(folder: Path, file: RemoteFile) -> Path:
    """Return the path of a partially received file; equal in every run that downloads the same bytes."""
    key = f"{file.name}\n{file.hash or file.url}"  # the address contains the commit
    return folder / NOTES / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.part"


@dataclass(frozen=True)
class Transfer:
    """Downloads files into a folder; shared by the threads of a run."""

    folder: Path
    headers: Mapping[str, str]  # includes the token, which is dropped on redirects to another host
    stop: threading.Event
    bar: Any

    def fetch(self, file: RemoteFile) -> str:
        """Download one file into the folder; return its hash, or "" if every attempt was damaged.

        Raises the hub client's HTTPError if the hub refuses or does not answer, OSError if the disk is full, ValueError
        if the hub requests too long a pause.
        """
        path = part_path(self.folder, file)
        for left in reversed(range(DAMAGED_TRIES)):
            try:
                digest = self.receive(file, path)
            except DamagedError as error:
                path.unlink()
                notice(f"{file.name} arrived damaged: {error}; " + ("downloading it again" if left else "giving up"))
                continue
            place = self.folder / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
            return digest
        return ""

    def receive(self, file: RemoteFile, path: Path) -> str:
        """Complete the partial file at `path`; return its hash. Raises DamagedError, or as `fetch`."""
        from huggingface_hub import errors

        with path.open("a+b", buffering=0) as handle:
            part = ReceivedPart(handle, file, self.bar)
            retries = RetryPolicy(file.name, self.stop)
            try:
                while (before := part.size) < file.size:
                    try:
                        self.receive_rest(part)
                    except errors.HTTPError as error:
                        retries.wait(error, part.size > before)
                digest = str(part.digest.hexdigest())
                if file.hash and digest != file.hash:
                    raise DamagedError(f"its hash is {digest[:10]}…, published is {file.hash[:10]}…")
            except DamagedError:
                part.clear()
                raise
            os.fsync(handle.fileno())
        return digest

    def receive_rest(self, part: ReceivedPart) -> None:
        """Request the missing bytes once; HTTPError if the connection breaks, DamagedError if the response is wrong."""
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session, hf_raise_for_status

        headers = {**self.headers, "Accept-Encoding": "identity"}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        url, size = part.file.url, part.file.size
        with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            if response.status_code != 416:  # "range not satisfiable" means that the file is shorter
                hf_raise_for_status(response)
            check_range(part, response)
            for data in response.iter_bytes():
                if self.stop.is_set():
                    raise StoppedError
                if part.size == size:
                    break
                part.append(data[: size - part.size])
        if part.size < size:
            raise DamagedError(f"the hub sent {part.size:,} bytes, published are {size:,}")


def check_range(part: ReceivedPart, response: Any) -> None:
    """Compare the range of a response with the request; clear the part if the response starts at byte 0.

    Raises DamagedError if the response has other bytes than requested.
    """
    headers, size = response.headers, part.file.size
    if response.status_code == 206 and "Content-Encoding" not in headers:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        if found and int(found[1]) == part.size and found[2] in ("*", str(size)):
            return
    if response.status_code != 200:
        raise DamagedError(f"byte {part.size:,} was requested and not sent (HTTP {response.status_code})")
    length = headers.get("Content-Length", "")
    if length.isdecimal() and int(length) != size and headers.get("Content-Encoding", "identity") == "identity":
        raise DamagedError(f"the hub sends {int(length):,} bytes, published are {size:,}")
    if part.size:
        part.clear()
