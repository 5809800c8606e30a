"""Download single files from a hub, resume within a file, and compare files with the published sizes and hashes.

The hub client's `http_get` receives the bytes, reconnects and continues after a broken connection. Its callers
`hf_hub_download` and `snapshot_download` (huggingface_hub 2.4) are not used for three reasons: they write to a randomly
named file and delete it after an error, so the next run starts over; they compare sizes but not hashes; and they delete
a damaged file before the new one is complete.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event
from typing import TypeVar

from tqdm import tqdm

WORKERS = 4  # concurrent downloads; daemon threads, which Ctrl-C ends
DAMAGED_ATTEMPTS = 3  # attempts to download a file whose bytes differ from the published ones
ATTEMPTS = 8  # attempts to make a request
FIRST_PAUSE = 1.0  # seconds; doubled after each attempt
LONGEST_PAUSE = 60.0  # seconds
RETRIED_STATUSES = {408, 425, 429, *range(500, 600)}  # HTTP status codes

Result = TypeVar("Result")


@dataclass(frozen=True)
class RemoteFile:
    """A file in the hub's listing. hash: sha256 (64 digits), git object id (40 digits), or "" if not published."""

    name: str  # with "/" between folders
    size: int  # bytes; -1 if the listing does not give it
    hash: str
    url: str


def notice(line: str) -> None:
    """Print a line on stderr without breaking the progress bar."""
    tqdm.write(f"notice: {line}", file=sys.stderr)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def requested_pause(headers: Mapping[str, str]) -> float:
    """Return the pause in seconds that the header Retry-After or the hub's RateLimit requests; 0 without them."""
    from huggingface_hub.utils import parse_ratelimit_headers

    if (value := headers.get("Retry-After", "").strip()).isdecimal():
        return float(value)
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else 0.0


def with_retries(
    request: Callable[[], Result], label: str, retried: type[Exception], stopped: Event | None = None
) -> Result:
    """Return the result of `request`; repeat it after temporary errors of type `retried`, with growing pauses.

    Raises the error if it is not temporary, after ATTEMPTS attempts, or if `stopped` is set.
    """
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except retried as error:
            response = getattr(error, "response", None)
            is_last = attempt + 1 == ATTEMPTS or (stopped and stopped.is_set())
            if is_last or (response is not None and response.status_code not in RETRIED_STATUSES):
                raise
            reason, seconds = first_line(error), min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
            if response is not None:
                reason, seconds = f"HTTP {response.status_code}", max(requested_pause(response.headers), seconds)
        notice(f"{label}: {reason}; retrying in {seconds:.0f} s")
        time.sleep(seconds)
    raise AssertionError("the last attempt returns or raises")


def matches_published(path: Path, file: RemoteFile) -> bool:
    """Return whether path is a regular file (not a link) with the published size and, if published, hash."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
        return False
    git_header = b"blob %d\0" % file.size
    new_digest = (lambda: hashlib.sha1(git_header)) if len(file.hash) == 40 else hashlib.sha256
    with path.open("rb") as content:
        return not file.hash or hashlib.file_digest(content, new_digest).hexdigest() == file.hash


def mismatched_files(folder: Path, files: list[RemoteFile]) -> list[RemoteFile]:
    """Return the files that are missing from the folder or differ from the published ones."""
    with ThreadPool(WORKERS) as pool:
        results = pool.imap(lambda file: matches_published(folder / file.name, file), files)
        bar = tqdm(results, f"comparing {folder.name}", len(files), leave=False, disable=None, unit="file")
        return [file for file, matches in zip(files, bar, strict=True) if not matches]


def download_file(file: RemoteFile, folder: Path, headers: Mapping[str, str], stopped: Event) -> bool:
    """Download one file into the folder, or resume it; return False if it arrives damaged at each attempt.

    headers: request headers, with the token, which is not sent to another host. stopped: if it is set, failed requests
    are not repeated. Raises the hub client's HTTPError if the hub refuses or does not answer, OSError if the disk is
    full.
    """
    from huggingface_hub import errors
    from huggingface_hub.file_download import http_get

    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)

    def receive_rest() -> None:
        with path.open("ab") as handle:
            if (size := handle.tell()) < file.size:
                http_get(file.url, handle, resume_size=size, headers=dict(headers), displayed_filename=file.name)
            handle.flush()
            os.fsync(handle.fileno())

    for attempt in range(DAMAGED_ATTEMPTS):
        with_retries(receive_rest, file.name, errors.HTTPError, stopped)
        if matches_published(path, file):
            return True
        path.unlink()
        remedy = "downloading it again" if attempt + 1 < DAMAGED_ATTEMPTS else "giving up"
        notice(f"{file.name} arrived damaged: its size or hash is not as published; {remedy}")
    return False
