"""The journal of an endpoint's answers: one line per request, found by the hash of the request.

A run that is started again reads its answers here and sends only the requests without an answer. The file is appended
to and locked while a run uses it. It is kept after the run: a later run with more rows reuses the answers.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from partial_folders.output_paths import file_path


class Completion(NamedTuple):
    """The answer to a request, or the reason why there is none."""

    text: str  # "" after an error, or if the server answered with an empty text
    finish_reason: str  # "stop", "length" (token limit), or another value of the server; "" after an error
    prompt_tokens: int | None  # None if the server does not count tokens
    completion_tokens: int | None
    error: str = ""


def request_key(route: str, body: Mapping[str, Any]) -> str:
    """Return the hash of a request: hexadecimal SHA-256 of its route and body, independent of the order of keys."""
    text = json.dumps([route, body], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def completion_from(fields: Any) -> Completion:
    """Return the completion of a journal's line; raises TypeError or KeyError if it is not one."""
    text, finish_reason, error = (fields[name] for name in ("text", "finish_reason", "error"))
    counts = [fields[name] for name in ("prompt_tokens", "completion_tokens")]
    if not all(isinstance(value, str) for value in (text, finish_reason, error, fields["key"])):
        raise TypeError
    if not all(value is None or type(value) is int for value in counts):
        raise TypeError
    return Completion(text, finish_reason, counts[0], counts[1], error)


class RequestJournal:
    """Answers by request hash, in memory and in a file. A context manager that locks and closes the file."""

    def __init__(self, path: str | Path, retry_failed: bool = False) -> None:
        """Open or create, lock and read a journal.

        retry_failed: ignore failed requests in the file. An incomplete last line, which a killed process leaves, is
        removed; an invalid line is ignored with a notice. Raises ValueError if another process uses the file, or if it
        cannot be written.
        """
        self.path = file_path(path, replace=True)
        self.completions: dict[str, Completion] = {}
        self.file = self.path.open("a+b")
        try:
            self._lock()
            self._read(retry_failed)
        except BaseException:
            self.file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{self.path} is used by another process; wait for it, or give another --output"
            raise ValueError(message) from None
        except OSError:  # a file system without locks
            pass

    def _read(self, retry_failed: bool) -> None:
        self.file.seek(0)
        size = invalid = 0
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            size += len(line)
            try:
                fields = json.loads(line)
                completion = completion_from(fields)
            except (ValueError, KeyError, TypeError):
                invalid += 1
                continue
            if completion.error and retry_failed:
                self.completions.pop(fields["key"], None)
            else:
                self.completions[fields["key"]] = completion
        self.file.truncate(size)
        self.file.seek(0, os.SEEK_END)
        if invalid:
            print(f"notice: {self.path} has {invalid} invalid lines, which are ignored", file=sys.stderr)

    def record(self, key: str, completion: Completion) -> None:
        """Add an answer. It is handed to the operating system at once, so a killed process does not lose it.

        Raises ValueError if the file cannot be written.
        """
        line = json.dumps({"key": key, **completion._asdict()})
        try:
            self.file.write(line.encode() + b"\n")
            self.file.flush()
        except OSError as error:
            reason = f"{self.path} cannot be written ({error.strerror})"
            raise ValueError(f"{reason}; make room, and run the same command again to resume") from None
        self.completions[key] = completion

    def __enter__(self) -> "RequestJournal":
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, and remove it if it has no answers."""
        if not self.file.seek(0, os.SEEK_END):
            self.path.unlink(missing_ok=True)
        self.file.close()
