"""Lock the extensions that DeepSpeed compiles at the start of a run; take over locks of processes that have ended.

PyTorch's FileBaton waits without a message for a lock file to disappear, even if the process that created it was
killed. `OwnedBaton` records its owner; `install` makes torch.utils.cpp_extension use it.
"""

import fcntl
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from rank_group.rank_errors import BuildError, clean_up_at_stop

LONGEST_BUILD = 1800.0  # seconds; DeepSpeed's largest extensions take minutes
INTERRUPTED = "interrupted by user"  # in ninja's message if it or a compiler got SIGTERM, SIGINT or SIGHUP
SIGNAL_SECONDS = 10.0  # to wait for the signal that ended ninja
held: set[Path] = set()  # the locks of this process


def install() -> None:
    """Make torch.utils.cpp_extension lock its builds with OwnedBaton."""
    cpp_extension.FileBaton = OwnedBaton  # type: ignore[misc]


def release_all() -> None:
    """Remove the locks of this process, before it ends during a build."""
    for lock in held:
        lock.unlink(missing_ok=True)


clean_up_at_stop.append(release_all)


def process_start(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot; "" if it does not run."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def end_ninja(folder: Path) -> None:
    """End the ninja process that builds in a folder, with its compilers; ninja survives the process that started it."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            is_ninja = Path(os.fsdecode((process / "cmdline").read_bytes().split(b"\0")[0])).name == "ninja"
            if is_ninja and (process / "cwd").readlink() == folder.resolve():
                os.kill(int(process.name), signal.SIGTERM)


class OwnedBaton(FileBaton):
    """A lock file with its owner: host, process and start time of the process."""

    @property
    def path(self) -> Path:
        return Path(self.lock_file_path)

    def try_acquire(self) -> bool:
        """Create the lock file, after removing one with `is_owner_gone`; return False if another process holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name("lock.takeover").open("a") as takeover:
            fcntl.flock(takeover, fcntl.LOCK_EX)
            if self.is_owner_gone():
                print(f"notice: {self.path} is from a build that ended, or is too old; it is removed", file=sys.stderr)
                end_ninja(self.path.parent)
                self.path.unlink(missing_ok=True)
            if not super().try_acquire():
                return False
            assert self.fd is not None
            os.truncate(self.path, 0)
            self.path.write_text(f"{socket.gethostname()} {os.getpid()} {process_start(os.getpid())}")
        held.add(self.path)
        return True

    def release(self) -> None:
        """Remove the lock. If a signal to the process group ended ninja, wait until it ends this process too."""
        super().release()
        held.discard(self.path)
        if INTERRUPTED in str(sys.exc_info()[1]):
            time.sleep(SIGNAL_SECONDS)  # if no signal arrives, the build's error is raised

    def is_owner_gone(self) -> bool:
        """Return whether the owner has ended; if it is unknown or on another host, whether the lock is too old."""
        try:
            owner, age = self.path.read_text().split(), time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return False
        if len(owner) == 3 and owner[0] == socket.gethostname():
            return process_start(int(owner[1])) != owner[2]
        return age > LONGEST_BUILD

    def wait(self) -> None:
        """Wait until the lock is released.

        Raises BuildError if the owner ends without releasing it, or after waiting for LONGEST_BUILD.
        """
        begun = time.monotonic()
        with suppress(FileNotFoundError):
            owner = " ".join(self.path.read_text().split()[:2]) or "unknown"
            print(f"waiting for the build of {self.path.parent.name} by process {owner} ({self.path})", file=sys.stderr)
        while self.path.exists():
            if self.is_owner_gone() or time.monotonic() - begun > LONGEST_BUILD:
                raise BuildError(
                    f"the build of {self.path.parent.name} ended without a result or exceeds {LONGEST_BUILD:.0f} s; "
                    f"remove {self.path} and start again"
                )
            time.sleep(self.wait_seconds)
