"""The folder of a running download, and the note about its origin.

`<target>.partial` contains the complete files; its subfolder NOTES contains incomplete files, a lock and the note.
After the download the folder is renamed, and NOTES contains only the note.
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
    """The origin of a folder, and the hash of each downloaded file (of the published kind, else sha256)."""

    repository: str
    kind: str
    revision: str  # as requested
    commit: str
    files: dict[str, str]

    def is_of(self, other: "DownloadNote") -> bool:
        return (self.repository, self.kind) == (other.repository, other.kind)


def read_note(folder: Path) -> DownloadNote | None:
    """Return the folder's note, or None if it is missing or unreadable."""
    path = folder / NOTES / "note.json"
    if path.is_symlink() or not path.is_file():
        return None
    try:
        note = DownloadNote(**read_json(path))
    except (ValueError, TypeError):  # truncated, or written by another program
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

    note: written into the folder. After an error the folder is kept if it contains downloaded bytes. Raises ValueError
    if another process is writing the folder or it belongs to another repository.
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
    """Remove all links and the files of other downloads from the partial folder."""
    known = {partial / file.name for file in files} | {part_path(partial, file) for file in files}
    known |= own_files(partial) | {partial / NOTES}
    for path in sorted(partial.rglob("*"), reverse=True):  # files before their folder
        if path.is_symlink() or (path.is_file() and path not in known):
            path.unlink()
        elif path.is_dir() and path not in known and not any(path.iterdir()):
            path.rmdir()


def check_free_space(partial: Path, files: list[RemoteFile]) -> None:
    """Raise ValueError if the disk has too little space for the missing files."""
    above = next(folder for folder in (partial, *partial.absolute().parents) if folder.is_dir())
    needed, free = missing_bytes(partial, files), shutil.disk_usage(above).free
    if needed > free:
        raise ValueError(
            f"{above} has {format_bytes(free)} free, {format_bytes(needed)} are needed; choose another disk"
        )


def missing_bytes(partial: Path, files: list[RemoteFile]) -> int:
    """Return the number of bytes still to download into the partial folder."""
    return sum(
        max(0, file.size - file_size(partial / file.name) - file_size(part_path(partial, file))) for file in files
    )


def file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def check_links(folder: Path, files: list[RemoteFile]) -> None:
    """Raise ValueError if a parent folder of a file is a link, which may point outside the folder."""
    for file in files:
        for above in (folder / file.name).relative_to(folder).parents:
            if above != Path() and (folder / above).is_symlink():
                raise ValueError(f"{folder / above} is a link through which {file.name} would be written; remove it")


def move_files(partial: Path, target: Path, files: list[RemoteFile]) -> None:
    """Move the files into the finished folder, replacing each existing file atomically."""
    for file in files:
        (target / file.name).parent.mkdir(parents=True, exist_ok=True)
        (partial / file.name).replace(target / file.name)
