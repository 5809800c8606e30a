"""Write a new folder or file in `<target>.partial`, then rename it. One process at a time writes a target."""

from command_line.command_errors import DISK_ERRORS

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from partial_folders import resume_journal
from partial_folders.disk_space import check_space
from partial_folders.output_paths import file_path, folder_path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_folder(target: str | Path, needed: int, run: str = "", inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield the folder `<target>.partial` and rename it to `target` if the block ends without an error.

    needed: bytes that will be written; the free space is checked first. run: see `partial_folder`. inputs: folders that
    must not change. Raises ValueError if the target contains files, is inside an input or cannot be written, if another
    process is writing it, or if its disk is too small.
    """
    inputs = list(inputs)
    path = folder_path(target, inputs)
    with partial_folder(target, path, needed, run) as partial:
        folder_path(target, inputs)  # another process may have finished it
        if path.exists():
            check_replaceable(path, partial, target)
        yield partial
        for part in (*partial.iterdir(), partial):
            fsync_path(part)
        partial.replace(path)
        with suppress(OSError):  # the journal, which held the lock until the rename; readers ignore it
            (path / resume_journal.JOURNAL).unlink()


def check_replaceable(path: Path, partial: Path, target: str | Path) -> None:
    """Raise ValueError unless the empty folder `path` can be replaced; the check replaces it with another empty folder.

    Only an attempt shows that a bind mount, for example, cannot be replaced.
    """
    probe = partial / ".empty"
    probe.mkdir(exist_ok=True)  # a killed run may have left it
    try:
        probe.replace(path)
    except OSError as error:
        probe.rmdir()
        raise ValueError(f"{target} cannot be replaced ({error.strerror}); name a folder inside it") from None


@contextmanager
def new_file(target: str | Path, needed: int = 0, run: str = "", replace: bool = False) -> Iterator[Path]:
    """Yield a file path in the folder `<target>.partial` and move the file to `target`; otherwise like `new_folder`.

    replace: the target may exist already.
    """
    path = file_path(target, replace)
    with partial_folder(target, path, needed, run) as partial:
        file_path(target, replace)  # another process may have finished it
        yield partial / path.name
        fsync_path(partial / path.name)
        (partial / path.name).replace(path)
        resume_journal.remove_folder(partial)


@contextmanager
def partial_folder(target: str | Path, path: Path, needed: int, run: str) -> Iterator[Path]:
    """Yield the locked folder `<path>.partial`; it is removed after an error.

    path: the real path of `target`. run: the identity of a resumable run (`resume_journal.run_identity`), or "". If a
    resumable run is killed or interrupted, its folder is kept, and the same run continues from its journal; a different
    run empties the folder. The message of KeyboardInterrupt says whether the same command resumes.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with resume_journal.locked_folder(partial, run):
            try:
                check_space(path, needed - sum(part.stat().st_size for part in partial.iterdir()))
                yield partial
            except BaseException as error:
                if not (run and isinstance(error, KeyboardInterrupt)):
                    resume_journal.remove_folder(partial)
                raise
    except KeyboardInterrupt:
        if run:
            raise KeyboardInterrupt(f"interrupted; the same command resumes from {partial}") from None
        raise KeyboardInterrupt("interrupted; nothing was kept, the same command starts over") from None
    except Exception as error:
        number, name = (error.errno, error.filename) if isinstance(error, OSError) else (rust_errno(error), None)
        place = Path(name or target)
        is_output = any(map(place.is_relative_to, (target, path, partial))) or partial.is_relative_to(place)
        if number in DISK_FULL or (name and is_output):
            reason = os.strerror(number or 0)
            raise ValueError(f"{target} cannot be written ({reason}: {place}); make room or write elsewhere") from None
        if number in DISK_ERRORS and not isinstance(error, OSError):  # the file is unknown, perhaps an input
            raise OSError(number, os.strerror(number)) from None
        raise


def rust_errno(error: Exception) -> int | None:
    """Return the error number in the message of a library in Rust, such as safetensors; None if there is none."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
