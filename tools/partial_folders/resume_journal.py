"""The journal of a partial folder lists the finished parts, so that the same command can resume after an interruption.

The first line of `.journal.jsonl` identifies the run; each further line records one finished part. The file is locked
while a run writes the folder. It is removed last, after the folder was renamed or its other files were removed, so that
no other process can lock the folder until then.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

JOURNAL = ".journal.jsonl"
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # errors of flock on a file system without locks


@contextmanager
def locked_folder(partial: Path, run: str) -> Iterator[None]:
    """Create and lock the partial folder; keep its content if the same run wrote it, else empty it.

    run: the line from `run_identity`, or "" for a run that cannot resume. Raises ValueError if another process holds
    the lock, or if `partial` is a file.
    """
    with locked_journal(partial) as file:
        file.seek(0)
        if not run or file.readline() != f"{run}\n":
            empty_folder(partial)
            file.truncate(0)
            file.write(f"{run}\n")
            file.flush()
        yield


def locked_journal(partial: Path) -> TextIO:
    """Create the partial folder; return its journal, open and, if the file system has locks, locked.

    If the previous holder of the lock has meanwhile renamed or removed the folder, the locked file is no longer the
    folder's journal, and the function tries again.
    """
    while True:
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if not partial.exists():  # the other process removed it at this moment
                continue
            raise ValueError(f"{partial} is a file, not the folder of an unfinished result; remove it") from None
        with suppress(FileNotFoundError):
            file = (partial / JOURNAL).open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise ValueError(
                    f"{partial} is being written by another process; wait for it or write elsewhere"
                ) from None
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
            if os.path.samestat(os.fstat(file.fileno()), (partial / JOURNAL).stat()):
                return file
            file.close()


def empty_folder(partial: Path) -> None:
    """Remove everything except the journal from a partial folder."""
    for path in partial.iterdir():
        if path.name != JOURNAL:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_folder(partial: Path) -> None:
    """Remove a locked partial folder, its journal last, since other processes cannot lock the folder until then."""
    with suppress(OSError):
        empty_folder(partial)
        (partial / JOURNAL).unlink()
        partial.rmdir()


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


def run_identity(script: str, options: Mapping[str, object], sources: Iterable[Path]) -> str:
    """Return a line that identifies a run: script, options; name, size and modification time of every input file.

    sources: input folders and files; of a folder, the files directly in it.
    """
    inputs = [
        [file.name, file.stat().st_size, file.stat().st_mtime_ns]
        for source in sources for file in (sorted(source.iterdir()) if source.is_dir() else [source]) if file.is_file()
    ]  # fmt: skip
    return json.dumps([script, {name: str(value) for name, value in options.items()}, inputs])
