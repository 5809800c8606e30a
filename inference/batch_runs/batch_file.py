"""The file of answers while it grows: whole lines, in order, as one unbroken beginning, whenever the run is killed.

batch.py writes through it. Answers come in any order; what is early waits in memory for the lines before
it. `OUTPUT.partial` is the beginning, `OUTPUT.partial.json` says of which run; both are gone once OUTPUT is there. A
killed run has lost the answers that were still open, and those that waited for them: what was done since the oldest
open answer was begun.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from batch_runs.batch_rows import SUCCESS

WAITING_LINES = 32768  # at most, and as many more as are open
LOCK_SECONDS = 2
BLOCK = 1 << 20  # bytes
SHOWN = 200  # characters of a setting in an error


class AnswerFile:
    """The file of a run, begun or gone on with. As a context, it leaves nothing where nothing was written."""

    def __init__(self, output: Path, run: Mapping[str, Any], overwrite: bool) -> None:
        """run: what decides about the answers, as JSON has it; overwrite: replace what is there of another run.

        Raises FileExistsError and ValueError where that would be needed, and where another process is writing.
        """
        self.output = output
        self.partial, self.identity = Path(f"{output}.partial"), Path(f"{output}.partial.json")
        self.failures = output.with_suffix(".failed.jsonl")
        if not output.parent.is_dir():
            raise FileNotFoundError(f"{output.parent} does not exist; make it before --output {output} is written")
        if output.exists() and not overwrite:
            raise FileExistsError(f"{output} exists; name another --output, or replace it with --overwrite")
        self.waiting: dict[int, bytes] = {}  # number of a line: the line
        self.lines = 0  # in the file
        self.file = self.partial.open("a+b")
        try:
            self.take(run, overwrite)
        except BaseException:
            self.file.close()
            raise

    def take(self, run: Mapping[str, Any], overwrite: bool) -> None:
        """Lock the file; keep the whole lines that the same run left in it, or empty it."""
        self.lock()
        left = self.left()
        size = self.file.seek(0, os.SEEK_END)
        if left == run:
            self.lines, whole = count_lines(self.file)
            self.file.truncate(whole)
            return
        if size and not overwrite:
            raise ValueError(
                f"{self.partial} is of another run ({difference(left, run)}); give what it had to go on with it, "
                "another --output, or --overwrite to start anew"
            )
        self.file.truncate(0)
        fresh = Path(f"{self.identity}.new")
        fresh.write_text(json.dumps(run, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        fresh.replace(self.identity)

    def lock(self) -> None:
        """Keep other processes from writing; one that was just killed has a moment to be gone."""
        began = time.monotonic()
        while True:
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() - began > LOCK_SECONDS:
                    said = f"another process is writing {self.partial}; wait for it, or end it"
                    raise ValueError(said) from None
            time.sleep(0.05)

    def left(self) -> dict[str, Any]:
        """What decided about the answers that are there; {} where nothing says."""
        try:
            content = json.loads(self.identity.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def put(self, number: int, line: bytes) -> None:
        """Take a line of the output, from 1, in any order; what has all lines before it is handed to the system.

        Raises ValueError where the system does not take it.
        """
        self.waiting[number] = line
        ready = []
        while (following := self.waiting.pop(self.lines + 1, None)) is not None:
            ready.append(following)
            self.lines += 1
        if ready:
            try:
                self.file.write(b"".join(ready))
                self.file.flush()
            except OSError as error:
                said = f"{self.partial} cannot be written ({error.strerror}); make room, and the same command goes on"
                raise ValueError(said) from None

    def full(self) -> bool:
        """Whether so many lines wait that no further row should be begun."""
        return len(self.waiting) >= WAITING_LINES

    def finish(self) -> tuple[int, int]:
        """Give the file its name, and its failures the file beside it; how many rows there are, and how many failed."""
        assert not self.waiting
        rows = failed = 0
        os.fsync(self.file.fileno())
        fresh = Path(f"{self.failures}.new")
        self.file.seek(0)
        with fresh.open("wb") as failures:
            for number, line in enumerate(self.file, 1):
                rows += line != b"\n"
                if not line.endswith(SUCCESS) and line != b"\n":
                    failed += 1
                    said = {"line": number, "error": json.loads(line)["error"]}
                    failures.write(json.dumps(said, ensure_ascii=False).encode() + b"\n")
        if failed:
            fresh.replace(self.failures)
        else:
            fresh.unlink()
            self.failures.unlink(missing_ok=True)
        self.partial.replace(self.output)
        self.identity.unlink(missing_ok=True)
        return rows, failed

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self.lines:
            self.partial.unlink(missing_ok=True)
            self.identity.unlink(missing_ok=True)
        with suppress(OSError):  # of a full disk, of which `put` has told
            self.file.close()


def count_lines(file: Any) -> tuple[int, int]:
    """How many whole lines a file has, and how many bytes they are."""
    file.seek(0)
    lines = whole = at = 0
    while block := file.read(BLOCK):
        lines += block.count(b"\n")
        if (last := block.rfind(b"\n")) >= 0:
            whole = at + last + 1
        at += len(block)
    return lines, whole


def difference(left: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The settings in which two runs differ, for an error."""
    if not left:
        return "nothing says of which"
    names = [name for name in {**left, **run} if left.get(name) != run.get(name)]
    return "; ".join(f"{name}: {shown(left.get(name))} there, {shown(run.get(name))} here" for name in names)


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
