"""The folder of a running download, and the note in it about its origin.

`<target>.partial` holds complete files under their names, and in NOTES incomplete ones, a lock and the note. After the
download it is renamed, and only the note is left in NOTES.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from checkpoint_io.checkpoint_folders import read_json, write_json

from hub_download.hub_files import NOTES, RemoteFile, format_bytes, part_path


@dataclass
class DownloadNote:
    """Origin of a folder, and the hash of each file as it arrived (of the published kind, else sha256)."""

    repository: str
    kind: str
    revision: str  # as requested
    commit: str
    files: dict[str, str]

    def is_of(self, other: "DownloadNote") -> bool:
        return (self.repository, self.kind) == (other.repository, other.kind)


def read_note(folder: Path) -> DownloadNote | None:
    """The folder's note, or None without a readable one."""
    path = folder / NOTES / "note.json"
    if path.is_symlink() or not path.is_file():
        return None
    try:
        note = DownloadNote(**read_json(path))
    except (ValueError, TypeError):  # truncated, or of another program
        return None
    return note if isinstance(note.files, dict) else None


def write_note(folder: Path, note: DownloadNote) -> None:
    (folder / NOTES).mkdir(exist_ok=True)
    fresh = folder / NOTES / "note.json.new"
    write_json(fresh, asdict(note))
    fresh.replace(folder / NOTES / "note.json")


@contextmanager
def staging(partial: Path, note: DownloadNote, files: list[RemoteFile]) -> Iterator[None]:
    """Lock the partial folder and remove everything that does not belong to this download.

    note: written into the folder. After an error the folder is kept if anything arrived. Raises ValueError if another
    process writes to it or it belongs to another repository.
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
        raise ValueError(f"{partial} is being written by another process; wait for it") from None
    try:
        sweep(partial, files)
        write_note(partial, note)
        yield
        (partial / NOTES / "lock").unlink(missing_ok=True)
    except BaseException:
        if not any(file_size(path) for path in partial.rglob("*") if path not in own_files(partial)):
            shutil.rmtree(partial)
        raise
    finally:
        lock.release()


def own_files(partial: Path) -> set[Path]:
    return {partial / NOTES / "note.json", partial / NOTES / "lock"}


def sweep(partial: Path, files: list[RemoteFile]) -> None:
    """Remove all links, and what a different download left in the partial folder."""
    known = {partial / file.name for file in files} | {part_path(partial, file) for file in files}
    known |= own_files(partial) | {partial / NOTES}
    for path in sorted(partial.rglob("*"), reverse=True):  # content before its folder
        if path.is_symlink() or (path.is_file() and path not in known):
            path.unlink()
        elif path.is_dir() and path not in known and not any(path.iterdir()):
            path.rmdir()


def check_free_space(partial: Path, files: list[RemoteFile]) -> None:
    """ValueError if the disk has too little space for the missing files."""
    above = next(folder for folder in (partial, *partial.absolute().parents) if folder.is_dir())
    needed, free = missing_bytes(partial, files), shutil.disk_usage(above).free
    if needed > free:
        raise ValueError(
            f"{above} has {format_bytes(free)} free, {format_bytes(needed)} are needed; choose another disk"
        )


def missing_bytes(partial: Path, files: list[RemoteFile]) -> int:
    """Bytes of the files that have not arrived in the partial folder."""
    return sum(
        max(0, file.size - file_size(partial / file.name) - file_size(part_path(partial, file))) for file in files
    )


def file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def check_links(folder: Path, files: list[RemoteFile]) -> None:
    """ValueError if a parent folder of a file is a link, which may lead anywhere."""
    for file in files:
        for above in (folder / file.name).relative_to(folder).parents:
            if above != Path() and (folder / above).is_symlink():
                raise ValueError(f"{folder / above} is a link through which {file.name} would be written; remove it")


def move_files(partial: Path, target: Path, files: list[RemoteFile]) -> None:
    """Move the files into the finished folder, replacing each older file in one step."""
    for file in files:
        (target / file.name).parent.mkdir(parents=True, exist_ok=True)
        (partial / file.name).replace(target / file.name)
