"""Supervise a server's processes: all end with the launcher, and each signal is delivered once.

    launcher (supervisor)          the process that the user starts and signals; a few megabytes
      ├─ watchdog                  in its own session; kills the server's processes if the launcher is killed
      └─ server                    the same command once more, in its own process group; runs vLLM
           └─ engine, workers, …

- When the launcher or the server ends for any reason, SIGKILL and the out-of-memory killer included, all processes
  end. (vLLM's engine and workers by themselves detect only an orderly exit.) Every descendant of the server inherits a
  mark in its environment, and marked processes are killed. (The kernel's PR_SET_PDEATHSIG is sent when the parent's
  *thread* ends, has to be requested by each process, and misses processes that are just starting.)
- Ctrl-C, or a signal to the launcher's process group, reaches the launcher only. If it reached vLLM's workers, they
  would stop at once and fail the running requests.
- While the server is serving, the first signal is forwarded to it. A signal before that, and the second signal, kill
  all processes at once: vLLM loses a signal while its engine starts (and then waits for ten minutes), and ignores all
  signals but the first. After the last response, the server's processes get CLEAN_UP_SECONDS to exit.
"""

from command_line.interrupts import print_line

import math
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MARK = "KNOWLM_SERVER"  # environment variable: the supervisor's process id, a dash, random digits
# Signals from an API process to the supervisor. Real-time signals are queued, so each one is counted.
SERVING, ALL_ANSWERED = (signal.SIGRTMIN, signal.SIGRTMIN + 1) if sys.platform == "linux" else (0, 0)
SAME_SIGNAL_SECONDS = 0.5  # `timeout` and others signal a process and then its group; both count as one signal
TRACKER_SECONDS = 5.0  # given to multiprocessing's resource tracker to unlink the shared memory of killed processes
CLEAN_UP_SECONDS = 3.0
ENGINE_ENDED = "the server stopped: its engine or a worker failed or was killed; the log above names the process"
GIVE_UP_SECONDS = 60.0  # a process cannot be killed while it waits for a device


def supervise(ends_by_itself: bool = False) -> None:
    """Run this command again as the server, and supervise it; returns only in the server's processes.

    ends_by_itself: whether the command exits with status 0 once its work is done, as batch.py does. If not, status 0
    without a signal means that the engine has failed.

    The supervisor exits with the server's status, or 128 + the number of the signal that ended it, or 1 if the engine
    has failed. On systems other than Linux (without /proc), the function returns at once.
    """
    if sys.platform != "linux" or supervisor_pid():
        return
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    line = f"{MARK}={mark}".encode()
    start_watchdog(line)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # inherited by the server, which may then write to the terminal
    awaited = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, SERVING, ALL_ANSWERED)
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    server = os.posix_spawn(
        sys.executable,
        [sys.executable, *sys.orig_argv[1:]],
        # vLLM renames its processes with setproctitle, which would overwrite the mark without SPT_NOENV
        os.environ | {MARK: mark, "SPT_NOENV": "1", "PYTHONWARNINGS": python_warnings()},
        setpgroup=0,
        setsigmask=(),
    )
    status = wait_for_server(server, awaited, ends_by_itself)
    kill_marked(line)
    with suppress(ChildProcessError):
        os.waitpid(server, os.WNOHANG)  # reap the server, since init in a container may not do so
    # A killed process may have left an unfinished line in the log: start a new one.
    if status == -signal.SIGINT:
        print_line("\ninterrupted")
    if status is None:
        print_line("\n" + ENGINE_ENDED)
        status = 1
    os._exit(status if status >= 0 else 128 - status)


def python_warnings() -> str:
    """Return PYTHONWARNINGS that also hides multiprocessing's warning about shared memory left by killed processes."""
    return ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning")))


def wait_for_server(server: int, awaited: Sequence[int], ends_by_itself: bool) -> int | None:
    """Forward signals to the server until it ends or has to be killed.

    Returns the server's exit status as a shell reports it; -N if signal N came and the server has to be killed; 0 if
    the server has not exited CLEAN_UP_SECONDS after its last response; None if a server that does not end by itself
    exited with status 0 while it was serving.

    server: its process id; awaited: the blocked signals that are handled here; ends_by_itself: as in `supervise`.
    """
    serving = 0  # number of API processes that are serving
    signalled_at, deadline = 0.0, math.inf
    while True:
        seconds = min(deadline - time.monotonic(), 3600.0)
        info = signal.sigtimedwait(awaited, max(seconds, 0.0))
        number = info.si_signo if info else 0
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(server, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                if code == 0 and serving and not ends_by_itself:  # vLLM's server exits with status 0 if its engine ends
                    return None
                return code if code >= 0 else 128 - code
        elif number == SERVING:
            serving += 1
        elif number == ALL_ANSWERED:
            serving -= 1
            if signalled_at and not serving:
                deadline = time.monotonic() + CLEAN_UP_SECONDS
        elif number and serving and not signalled_at:
            os.kill(server, number)
            signalled_at = time.monotonic()
        elif number and time.monotonic() - signalled_at > SAME_SIGNAL_SECONDS:
            return -number
        elif time.monotonic() > deadline:
            return 0


def supervisor_pid() -> int:
    """Return the process id of this server's supervisor, 0 if there is none."""
    return int(os.environ.get(MARK, "0").partition("-")[0])


def notify_supervisor(state: int) -> None:
    """Send the supervisor, if there is one, SERVING (this process serves and handles signals) or ALL_ANSWERED."""
    if pid := supervisor_pid():
        with suppress(ProcessLookupError):
            os.kill(pid, state)


def start_watchdog(line: bytes) -> None:
    """Start the process that kills the marked processes if this one is killed; line: the mark in their environment.

    The watchdog waits on a pipe whose write end only this process holds. In a session of its own, it gets no signals
    from the terminal.
    """
    read_end, _write_end = os.pipe()
    code = f"import sys; from server_guard import process_supervisor as s; sys.stdin.read(); s.kill_marked({line!r})"
    subprocess.Popen(
        [sys.executable, "-c", code], stdin=read_end, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip
    os.close(read_end)


def kill_marked(line: bytes) -> None:
    """Kill the marked processes until two consecutive scans find none, since a process may be starting another one.

    Gives up after GIVE_UP_SECONDS.
    """
    began = time.monotonic()
    empty_scans = 0
    while empty_scans < 2 and time.monotonic() - began < GIVE_UP_SECONDS:
        found = marked_processes(line)
        empty_scans = 0 if found else empty_scans + 1
        for pid in found:
            if time.monotonic() - began > TRACKER_SECONDS or not is_resource_tracker(pid):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def kill_others() -> None:
    """Kill the other processes that have this process's mark, such as those of a server that it started."""
    kill_marked(f"{MARK}={os.environ[MARK]}".encode())


def marked_processes(line: bytes) -> list[int]:
    """Return the ids of the other processes that were started with this line in their environment."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if line in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def is_resource_tracker(pid: int) -> bool:
    """Return whether a process is multiprocessing's resource tracker, which exits after the processes it serves."""
    with suppress(OSError):
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
