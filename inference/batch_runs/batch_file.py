"""The output file of a batch run, written in order, line by line, and resumable after a kill at any moment.

Answers arrive in any order; an early one waits in memory for the lines before it. `OUTPUT.partial` always is a
prefix of the output, `OUTPUT.partial.json` identifies the run; both are removed once OUTPUT exists. A killed run loses
the answers that were running, and those that waited for them.
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

from batch_runs.batch_rows import SUCCESS_ENDING

MAX_WAITING_LINES = 32768  # and as many more as are running
LOCK_SECONDS = 2
BLOCK_BYTES = 1 << 20
SHOWN_CHARACTERS = 200  # of a setting in an error


class AnswerFile:
    """The output of a run, new or resumed. A context manager that leaves no file if no line was written."""

    def __init__(self, output: Path, run: Mapping[str, Any], overwrite: bool) -> None:
        """run: the settings that the answers depend on, as JSON values; overwrite: replace files of another run.

        Raises FileExistsError and ValueError if that is needed and not given, and if another process is writing.
        """
        self.output = output
        self.partial, self.identity = Path(f"{output}.partial"), Path(f"{output}.partial.json")
        self.failures = output.with_suffix(".failed.jsonl")
        if not output.parent.is_dir():
            raise FileNotFoundError(f"{output.parent} does not exist; make it before --output {output} is written")
        if output.exists() and not overwrite:
            raise FileExistsError(f"{output} exists; choose another --output, or replace it with --overwrite")
        self.waiting: dict[int, bytes] = {}  # number of a line: the line
        self.lines = 0  # in the file
        self.file = self.partial.open("a+b")
        try:
            self.open_run(run, overwrite)
        except BaseException:
            self.file.close()
            raise

    def open_run(self, run: Mapping[str, Any], overwrite: bool) -> None:
        """Lock the file; keep the complete lines of the same run, or empty it."""
        self.lock()
        previous = self.previous_run()
        size = self.file.seek(0, os.SEEK_END)
        if previous == run:
            self.lines, whole = count_lines(self.file)
            self.file.truncate(whole)
            return
        if size and not overwrite:
            raise ValueError(
                f"{self.partial} belongs to another run ({difference(previous, run)}); give the same settings to "
                "resume it, another --output, or --overwrite to start again"
            )
        self.file.truncate(0)
        fresh = Path(f"{self.identity}.new")
        fresh.write_text(json.dumps(run, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        fresh.replace(self.identity)

    def lock(self) -> None:
        """Lock the file against other processes; one that was just killed gets LOCK_SECONDS to exit."""
        began = time.monotonic()
        while True:
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() - began > LOCK_SECONDS:
                    message = f"another process is writing {self.partial}; wait for it, or end it"
                    raise ValueError(message) from None
            time.sleep(0.05)

    def previous_run(self) -> dict[str, Any]:
        """Return the settings of the run that left the file, {} if they are not known."""
        try:
            content = json.loads(self.identity.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, number: int, line: bytes) -> None:
        """Add line `number` of the output, counted from 1, in any order; write the lines that have all lines before.

        Raises ValueError if they cannot be written.
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
                reason = f"{self.partial} cannot be written ({error.strerror})"
                raise ValueError(f"{reason}; free space, and run the same command again to resume") from None

    def is_full(self) -> bool:
        """Whether so many lines wait that no further row should be started."""
        return len(self.waiting) >= MAX_WAITING_LINES

    def finish(self) -> tuple[int, int]:
        """Rename the file to OUTPUT and list the failures beside it; return the counts of rows and of failures."""
        assert not self.waiting
        rows = failed = 0
        os.fsync(self.file.fileno())
        fresh = Path(f"{self.failures}.new")
        self.file.seek(0)
        with fresh.open("wb") as failures:
            for number, line in enumerate(self.file, 1):
                rows += line != b"\n"
                if not line.endswith(SUCCESS_ENDING) and line != b"\n":
                    failed += 1
                    entry = {"line": number, "error": json.loads(line)["error"]}
                    failures.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
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
        with suppress(OSError):  # of a full disk, which `write` has reported
            self.file.close()


def count_lines(file: Any) -> tuple[int, int]:
    """Return how many complete lines a file has, and their bytes."""
    file.seek(0)
    lines = whole = at = 0
    while block := file.read(BLOCK_BYTES):
        lines += block.count(b"\n")
        if (last := block.rfind(b"\n")) >= 0:
            whole = at + last + 1
        at += len(block)
    return lines, whole


def difference(previous: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Return the settings in which two runs differ, for an error."""
    if not previous:
        return "its settings are not known"
    names = [name for name in {**previous, **run} if previous.get(name) != run.get(name)]
    return "; ".join(f"{name}: {shorten(previous.get(name))} there, {shorten(run.get(name))} here" for name in names)


def shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
