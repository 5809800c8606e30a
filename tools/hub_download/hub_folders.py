"""The folder of a download while it fills, and the note in it that says where it came from.

`<target>.partial` holds what arrived whole under its own name, and in NOTES what did not, a lock and the note. Renamed,
it is the finished folder, and of NOTES only the note is left. Not a script: tools/download.py imports it.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from checkpoint_io.checkpoint_folders import read_json, write_json

from hub_download.hub_files import NOTES, RemoteFile, amount, part_path


@dataclass
class Note:
    """Where a folder came from, and the hash of each file as it arrived (of the kind that was published, or sha256)."""

    repository: str
    kind: str
    revision: str  # as it was asked for
    commit: str
    files: dict[str, str]

    def is_of(self, other: "Note") -> bool:
        return (self.repository, self.kind) == (other.repository, other.kind)


def read_note(folder: Path) -> Note | None:
    """The folder's note; None where it has none that can be read."""
    path = folder / NOTES / "note.json"
    if path.is_symlink() or not path.is_file():
        return None
    try:
        note = Note(**read_json(path))
    except (ValueError, TypeError):  # cut off, or of another tool
        return None
    return note if isinstance(note.files, dict) else None


def write_note(folder: Path, note: Note) -> None:
    (folder / NOTES).mkdir(exist_ok=True)
    fresh = folder / NOTES / "note.json.new"
    write_json(fresh, asdict(note))
    fresh.replace(folder / NOTES / "note.json")


@contextmanager
def staging(partial: Path, note: Note, files: list[RemoteFile]) -> Iterator[None]:
    """Have the partial folder to ourselves, with nothing in it but what belongs to this download.

    note: written into it. An error leaves the folder as it is, unless nothing arrived. Raises ValueError where another
    process fills it, or it is another repository's.
    """
    from filelock import FileLock, Timeout

    other = read_note(partial)
    if other and not other.is_of(note):
        raise ValueError(f"{partial} is an unfinished download of {other.repository}; finish it, or remove it")
    (partial / NOTES).mkdir(parents=True, exist_ok=True)
    lock = FileLock(partial / NOTES / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{partial} is being filled by another process; let it end") from None
    try:
        sweep(partial, files)
        write_note(partial, note)
        yield
        (partial / NOTES / "lock").unlink(missing_ok=True)
    except BaseException:
        if not any(held(path) for path in partial.rglob("*") if path not in own_files(partial)):
            shutil.rmtree(partial)
        raise
    finally:
        lock.release()


def own_files(partial: Path) -> set[Path]:
    return {partial / NOTES / "note.json", partial / NOTES / "lock"}


def sweep(partial: Path, files: list[RemoteFile]) -> None:
    """Remove what an earlier, other download left in the partial folder, and every link."""
    known = {partial / file.name for file in files} | {part_path(partial, file) for file in files}
    known |= own_files(partial) | {partial / NOTES}
    for path in sorted(partial.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_symlink() or (path.is_file() and path not in known):
            path.unlink()
        elif path.is_dir() and path not in known and not any(path.iterdir()):
            path.rmdir()


def check_space(partial: Path, files: list[RemoteFile]) -> None:
    """Raises ValueError where the disk cannot take the files that are still to come."""
    above = next(folder for folder in (partial, *partial.absolute().parents) if folder.is_dir())
    needed, free = left(partial, files), shutil.disk_usage(above).free
    if needed > free:
        raise ValueError(f"{above} has {amount(free)} free, {amount(needed)} are to come; choose another disk")


def left(partial: Path, files: list[RemoteFile]) -> int:
    """Bytes of the files that are not in the partial folder yet, finished or begun."""
    return sum(max(0, file.size - held(partial / file.name) - held(part_path(partial, file))) for file in files)


def held(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def check_links(folder: Path, files: list[RemoteFile]) -> None:
    """Raises ValueError where a folder that a file lies in is a link, which may lead anywhere."""
    for file in files:
        for above in (folder / file.name).relative_to(folder).parents:
            if above != Path() and (folder / above).is_symlink():
                raise ValueError(f"{folder / above} is a link, behind which {file.name} would be written; remove it")


def move(partial: Path, target: Path, files: list[RemoteFile]) -> None:
    """Put the files into their places in the finished folder, each in one step over what was there."""
    for file in files:
        (target / file.name).parent.mkdir(parents=True, exist_ok=True)
        (partial / file.name).replace(target / file.name)
