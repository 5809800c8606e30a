"""The journal of a partial folder lists the finished parts, so that the same command can resume after an interruption.

The first line of `.journal.jsonl` identifies the run; each further line records one finished part. The file is locked
while a run writes the folder, and removed before the folder is renamed.
"""

import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

JOURNAL = ".journal.jsonl"


@contextmanager
def locked_folder(partial: Path, run: str) -> Iterator[None]:
    """Create and lock the partial folder; keep its content if the same run wrote it, else empty it.

    run: the line from `run_identity`, or "" for a run that cannot resume. Raises BlockingIOError if another process
    holds the lock.
    """
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / JOURNAL).open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.seek(0)
        if not run or file.readline() != f"{run}\n":
            for path in partial.iterdir():
                if path.name != JOURNAL:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            file.truncate(0)
            file.write(f"{run}\n")
            file.flush()
        yield


def record_part(folder: Path, part: str, values: Mapping[str, Any]) -> None:
    """Record that a part is finished; do nothing in a folder without a journal."""
    if (folder / JOURNAL).is_file():
        with (folder / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps([part, values]) + "\n")


def finished_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """Return {part: recorded values} in recording order, up to the first truncated line."""
    lines = (folder / JOURNAL).read_text(encoding="utf-8").splitlines()[1:] if (folder / JOURNAL).is_file() else []
    parts = {}
    for line in lines:
        try:
            name, values = json.loads(line)
        except ValueError:
            break
        parts[name] = values
    return parts


def run_identity(script: str, options: Mapping[str, object], folders: Iterable[Path]) -> str:
    """Return a line that identifies a run: script, options; name, size and modification time of every input file."""
    inputs = [
        [file.name, file.stat().st_size, file.stat().st_mtime_ns]
        for folder in folders for file in sorted(folder.iterdir()) if file.is_file()
    ]  # fmt: skip
    return json.dumps([script, {name: str(value) for name, value in options.items()}, inputs])
