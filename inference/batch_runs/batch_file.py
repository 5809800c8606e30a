"""The output file of a batch run, and the run's progress. A run killed at any moment can be resumed.

The file is written in row order, line by line. Answers arrive in any order; a line waits in memory until all lines
before it are written. `OUTPUT.partial` is always a prefix of the output, and `OUTPUT.partial.json` has the settings of
the run; both are removed when the run is complete. A killed run loses unfinished answers and the lines that waited in
memory.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from partial_folders.output_paths import check_place
from tqdm import tqdm

from batch_runs.batch_rows import SUCCESS_ENDING, BatchRow, output_line

MAX_WAITING_LINES = 32768  # in memory; exceeded by at most the number of concurrent requests
LOCK_SECONDS = 2
SHOWN_CHARACTERS = 200  # of a setting's value in an error message


def check_answers_path(output: Path, overwrite: bool) -> None:
    """Raise FileNotFoundError if the output's folder does not exist, FileExistsError if the output exists.

    overwrite: the output may exist. Raises ValueError if the folder is sealed, is inside a sealed folder, or is not
    writable.
    """
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent} does not exist; create this folder for --output {output}")
    check_place(output, output)
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; choose another --output, or replace it with --overwrite")


class AnswerFile:
    """The output of a new or resumed run. A context manager; an error before the first line removes its files."""

    def __init__(self, output: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
        """Open the partial output, and lock it.

        settings: all settings that determine the answers, as JSON values; overwrite: replace the files of another run.
        Raises the errors of check_answers_path, and ValueError if another process is writing the partial output or,
        without `overwrite`, if it belongs to another run.
        """
        self.output = output
        self.partial, self.settings_file = Path(f"{output}.partial"), Path(f"{output}.partial.json")
        self.failures_file = output.with_suffix(".failed.jsonl")
        check_answers_path(output, overwrite)
        self.waiting: dict[int, bytes] = {}  # line number -> line
        self.lines = 0  # complete lines in the file
        self.file = self.partial.open("a+b")
        try:
            self.resume_or_truncate(settings, overwrite)
        except BaseException:
            self.file.close()
            raise

    def resume_or_truncate(self, settings: Mapping[str, Any], overwrite: bool) -> None:
        """Lock the file; keep its complete lines if they are from the same run, else truncate it.

        Raises ValueError if the lines are from another run and `overwrite` is false.
        """
        self.lock()
        previous = None
        with suppress(FileNotFoundError, ValueError):
            previous = json.loads(self.settings_file.read_text(encoding="utf-8"))
        size = self.file.seek(0, os.SEEK_END)
        if previous == settings:
            self.file.seek(0)
            size = 0  # bytes of the complete lines
            for line in self.file:
                if line.endswith(b"\n"):
                    self.lines += 1
                    size += len(line)
            self.file.truncate(size)
            return
        if size and not overwrite:
            raise ValueError(
                f"{self.partial} belongs to another run ({difference(previous, settings)}); give the same settings to "
                "resume it, another --output, or --overwrite to start again"
            )
        self.file.truncate(0)
        new_file = Path(f"{self.settings_file}.new")
        new_file.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        new_file.replace(self.settings_file)

    def lock(self) -> None:
        """Lock the file against other processes.

        Raises ValueError if another process still holds the lock after LOCK_SECONDS (a process that was just killed
        exits in this time), or if another process has just finished the output.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    message = f"another process is writing {self.partial}; wait for it, or end it"
                    raise ValueError(message) from None
            time.sleep(0.05)
        if not (self.partial.is_file() and os.path.samestat(os.fstat(self.file.fileno()), self.partial.stat())):
            raise ValueError(f"another process has just finished {self.output}; choose another --output")

    def write(self, number: int, line: bytes) -> None:
        """Add a line; write it and the waiting lines that follow, once all lines before them are written.

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

    def kept_lines(self) -> str:
        """Return a phrase for the message of an interrupted run: which lines are on disk."""
        if not self.lines:
            return "nothing was written"
        return f"{self.partial} ends with line {self.lines}; the same command resumes the run"

    def is_full(self) -> bool:
        """Return whether MAX_WAITING_LINES lines are waiting; no further row should be started then."""
        return len(self.waiting) >= MAX_WAITING_LINES

    def finish(self) -> tuple[int, int]:
        """Rename the file to OUTPUT, and list the failed rows in OUTPUT's .failed.jsonl.

        Returns (number of rows without blank lines, number of failed rows).
        """
        assert not self.waiting
        rows = failed = 0
        os.fsync(self.file.fileno())
        new_file = Path(f"{self.failures_file}.new")
        self.file.seek(0)
        with new_file.open("wb") as failures:
            for number, line in enumerate(self.file, 1):
                rows += line != b"\n"
                if not line.endswith(SUCCESS_ENDING) and line != b"\n":
                    failed += 1
                    entry = {"line": number, "error": json.loads(line)["error"]}
                    failures.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        if failed:
            new_file.replace(self.failures_file)
        else:
            new_file.unlink()
            self.failures_file.unlink(missing_ok=True)
        self.partial.replace(self.output)
        self.settings_file.unlink(missing_ok=True)
        return rows, failed

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not self.lines:
            self.partial.unlink(missing_ok=True)
            self.settings_file.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk, which `write` has reported
            self.file.close()


class BatchProgress:
    """Writes the answers of a run, counts them, and shows a progress bar on a terminal."""

    def __init__(self, file: AnswerFile, rows: int) -> None:
        """rows: number of rows in the input, including those that an earlier run has answered."""
        self.file, self.rows = file, rows
        self.failed = self.output_tokens = 0
        self.bar: Any = None
        self.began = self.seconds = 0.0

    def start(self) -> None:
        """Start the clock; called when the first row can be answered."""
        self.bar = tqdm(total=self.rows, initial=self.file.lines, unit="row", disable=None, smoothing=0.1)
        self.began = time.monotonic()

    def write(self, row: BatchRow, answer: Mapping[str, Any]) -> None:
        self.file.write(row.number, output_line(row, answer))
        self.failed += bool(answer["error"])
        self.output_tokens += answer["num_output_tokens_cf"]
        self.seconds = time.monotonic() - self.began
        self.bar.set_postfix_str(f"{self.rate()}, {self.failed} failed", refresh=False)
        self.bar.update()

    def rate(self) -> str:
        return f"{self.output_tokens / max(self.seconds, 1e-3):,.0f} output tokens/s"


def difference(previous: Mapping[str, Any] | None, current: Mapping[str, Any]) -> str:
    """Return a description of the settings in which two runs differ, for an error message."""
    if not previous:
        return "its settings file is missing or damaged"
    names = [name for name in {**previous, **current} if previous.get(name) != current.get(name)]
    return "; ".join(f"{name} was {shorten(previous.get(name))}, is now {shorten(current.get(name))}" for name in names)


def shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
