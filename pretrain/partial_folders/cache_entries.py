"""Write cache entries (files or folders) that several processes may write at the same time.

Each process writes in its own folder `<entry>.cache-<8 hexadecimal digits>.partial`, and then moves the result to the
path of the entry. Meanwhile it locks its folder, also against processes on other machines with the same file system. A
folder without a lock is left over from a killed process; the next process that needs an entry in the same parent folder
removes it.
"""

import fcntl
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from partial_folders import resume_journal
from partial_folders.atomic_outputs import fsync_path

PARTIAL = re.compile(r"\.cache-[0-9a-f]{8}\.partial$")


def ensure_cache_entry(
    entry: Path, write: Callable[[Path], object], is_valid: Callable[[Path], bool] = Path.exists
) -> None:
    """Write a cache entry unless it is valid; remove the folders of killed processes beside it.

    write: creates the file or folder at the given path. is_valid: whether a path is a complete, current entry; an
    invalid entry is replaced. Raises the errors of `write`, and OSError if the entry cannot be moved to its path; any
    OSError is ignored if another process has written a valid entry meanwhile.
    """
    remove_abandoned(entry.parent)
    if is_valid(entry):
        return
    with _new_locked_folder(entry) as folder:
        partial = folder / entry.name
        try:
            write(partial)
            for path in (*partial.rglob("*"), partial):
                fsync_path(path)
            if entry.is_dir() and not is_valid(entry):  # another process may be reading a valid one
                shutil.rmtree(entry, ignore_errors=True)
            partial.replace(entry)
        except OSError:  # a folder cannot replace the one that a faster process wrote
            if not is_valid(entry):
                raise


@contextmanager
def _new_locked_folder(entry: Path) -> Iterator[Path]:
    """Yield a new locked folder beside an entry; remove it afterwards."""
    with ExitStack() as stack:
        while True:
            folder = entry.with_name(f"{entry.name}.cache-{secrets.token_hex(4)}.partial")
            stack.callback(resume_journal.remove_folder, folder)
            with suppress(ValueError):  # another process locked it first, to remove it
                stack.enter_context(resume_journal.locked_folder(folder, ""))
                break
        yield folder


def remove_abandoned(parent: Path) -> None:
    """Remove the folders in `parent` in which killed processes wrote cache entries."""
    with suppress(OSError):  # there is no such folder, or it cannot be read
        for folder in [path for path in parent.iterdir() if PARTIAL.search(path.name)]:
            # OSError: a live process holds the lock, the file system has no locks, or the folder cannot be changed
            with suppress(OSError), (folder / resume_journal.JOURNAL).open("a") as journal:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
                resume_journal.remove_folder(folder)
