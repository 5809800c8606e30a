"""The output file of a batch run. It is written in row order, line by line; a run killed at any moment can be resumed.

Answers arrive in any order; a line waits in memory until all lines before it are written. `OUTPUT.partial` is always a
prefix of the output, and `OUTPUT.partial.json` identifies the run; neither remains once OUTPUT exists. A killed run
loses the unfinished answers and the lines that waited in memory.
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

MAX_WAITING_LINES = 32768  # in memory; exceeded by at most the number of rows in progress
LOCK_SECONDS = 2
BLOCK_BYTES = 1 << 20
SHOWN_CHARACTERS = 200  # of a setting's value in an error message


class AnswerFile:
    """The output of a new or resumed run. A context manager; an error before the first line removes its files."""

    def __init__(self, output: Path, run: Mapping[str, Any], overwrite: bool) -> None:
        """Open the partial output, and lock it.

        run: the settings that determine the answers, as JSON values; overwrite: replace the files of another run.
        Raises FileNotFoundError if the output's folder does not exist. Without `overwrite`, raises FileExistsError if
        the output exists, and ValueError if the partial output belongs to another run. Raises ValueError if another
        process is writing it.
        """
        self.output = output
        self.partial, self.identity = Path(f"{output}.partial"), Path(f"{output}.partial.json")
        self.failures = output.with_suffix(".failed.jsonl")
        if not output.parent.is_dir():
            raise FileNotFoundError(f"{output.parent} does not exist; make it before --output {output} is written")
        if output.exists() and not overwrite:
            raise FileExistsError(f"{output} exists; choose another --output, or replace it with --overwrite")
        self.waiting: dict[int, bytes] = {}  # line number -> line
        self.lines = 0  # complete lines in the file
        self.file = self.partial.open("a+b")
        try:
            self.open_run(run, overwrite)
        except BaseException:
            self.file.close()
            raise

    def open_run(self, run: Mapping[str, Any], overwrite: bool) -> None:
        """Lock the file; keep its complete lines if they are from the same run, else truncate it.

        Raises ValueError if the lines are from another run and `overwrite` is false.
        """
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
        """Lock the file against other processes; raises ValueError if one still holds the lock after LOCK_SECONDS.

        The wait lets a process that was just killed exit.
        """
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
        """Return the settings of the run that wrote the file, {} if they are not known."""
        try:
            content = json.loads(self.identity.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, number: int, line: bytes) -> None:
        """Add a line of the output, in any order, and write all lines whose predecessors are written.

        number: the line's position, from 1. Raises ValueError if the file cannot be written.
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
        """Return whether MAX_WAITING_LINES are waiting, so that no further row should be started."""
        return len(self.waiting) >= MAX_WAITING_LINES

    def finish(self) -> tuple[int, int]:
        """Rename the file to OUTPUT and list the failed rows beside it; return (number of rows, number of failures)."""
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
        with suppress(OSError):  # a full disk, which `write` has reported
            self.file.close()


def count_lines(file: Any) -> tuple[int, int]:
    """Return the number of complete lines of a file, and their size in bytes."""
    file.seek(0)
    lines = whole = at = 0
    while block := file.read(BLOCK_BYTES):
        lines += block.count(b"\n")
        if (last := block.rfind(b"\n")) >= 0:
            whole = at + last + 1
        at += len(block)
    return lines, whole


def difference(previous: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Return a description of the settings in which two runs differ, for an error message."""
    if not previous:
        return "its settings are not known"
    names = [name for name in {**previous, **run} if previous.get(name) != run.get(name)]
    return "; ".join(f"{name}: {shorten(previous.get(name))} there, {shorten(run.get(name))} here" for name in names)


def shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
