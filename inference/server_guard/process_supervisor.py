"""Three small rules about a server's processes that vLLM does not keep, kept by two processes beside it.

    launcher (supervisor)          what the user started, ends and waits for; a few megabytes
      ├─ watchdog                  in a session of its own; ends the server where the launcher was killed
      └─ server                    the launcher once more, in a process group of its own: this one goes on to vLLM
           └─ engine, workers, …

- Whatever ends the launcher or the server, a SIGKILL or a full memory included, ends all. vLLM's engine and workers
  learn of an orderly end only. All that the server starts, however deep, inherits a mark in its environment, from its
  first moment on; and what carries the mark is killed. (The kernel's own means, PR_SET_PDEATHSIG, is sent when the
  parent's *thread* ends, has to be asked for by each process, and misses those that are just starting.)
- Ctrl-C, or a signal to the launcher's group, reaches the launcher alone. vLLM's workers would stop at once and fail
  what runs.
- The first signal is passed on once the server serves; before that, and a second time, it ends all at once. vLLM takes
  the first and ignores the rest, and while its engine starts it loses it (and then waits for ten minutes). Once all
  answers are out, what has nothing left to do gets a moment to clear up.
"""

import math
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MARK = "KNOWLM_SERVER"  # in the environment: the supervisor's process id, a dash, random digits
# What an API process reports to the supervisor. Real-time signals queue up, so each one counts.
SERVING, LEAVING = (signal.SIGRTMIN, signal.SIGRTMIN + 1) if sys.platform == "linux" else (0, 0)
SAME_SIGNAL = 0.5  # seconds; `timeout` and others signal a process and then its group, which is one wish
TRACKER_SECONDS = 5.0  # for multiprocessing's resource tracker to unlink the shared memory of those that were killed
CLEAR_UP_SECONDS = 1.0
GIVE_UP_SECONDS = 60.0  # the kernel does not let go of a process that waits for a device


def supervise() -> None:
    """Start this very command once more, as the server, and see to its end. Returns in the server alone.

    Exits with the server's status, or 128 + the number of the signal that ended it. Where there is no /proc (elsewhere
    than on Linux) it returns at once.
    """
    if sys.platform != "linux" or supervisor() == os.getppid():
        return
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    line = f"{MARK}={mark}".encode()
    start_watchdog(line)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # inherited: in a group of its own, it may still write to a terminal
    awaited = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, SERVING, LEAVING)
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    server = os.posix_spawn(
        sys.executable,
        [sys.executable, *sys.orig_argv[1:]],
        # setproctitle, by which vLLM names its processes, would write over their environment, and with it the mark
        os.environ | {MARK: mark, "SPT_NOENV": "1"},
        setpgroup=0,
        setsigmask=(),
    )
    status = until_it_ends(server, awaited)
    end_marked(line)
    os._exit(status)


def until_it_ends(server: int, awaited: Sequence[int]) -> int:
    """Pass signals on to the server while it runs; the exit status for it, as a shell counts it.

    server: its process id; awaited: the signals, which are blocked.
    """
    serving = 0  # API processes
    told, deadline = 0.0, math.inf
    while True:
        seconds = min(deadline - time.monotonic(), 3600.0)
        got = signal.sigtimedwait(awaited, max(seconds, 0.0))
        number = got.si_signo if got else 0
        if number == signal.SIGCHLD:
            ended, status = os.waitpid(server, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        elif number == SERVING:
            serving += 1
        elif number == LEAVING:
            serving -= 1
            if told and not serving:
                deadline = time.monotonic() + CLEAR_UP_SECONDS
        elif number and serving and not told:
            os.kill(server, number)
            told = time.monotonic()
        elif number and time.monotonic() - told > SAME_SIGNAL:
            return 128 + number
        elif time.monotonic() > deadline:
            return 0


def supervisor() -> int:
    """Process id of this server's supervisor; 0: it has none."""
    return int(os.environ.get(MARK, "0").partition("-")[0])


def report(what: int) -> None:
    """Tell the supervisor, where there is one, that this API process is SERVING (and knows how to end), or LEAVING."""
    if pid := supervisor():
        with suppress(ProcessLookupError):
            os.kill(pid, what)


def start_watchdog(line: bytes) -> None:
    """Start the process that ends all that carry the mark, `line` of their environment, should this one be killed.

    It learns of that by a pipe, whose other side this process alone holds: all it starts by exec have it closed.
    """
    watched, _held = os.pipe()
    if not (child := os.fork()):
        try:
            os.setsid()
            if not os.fork():  # so it is nobody's child, and awaited by nobody
                watch(watched, line)
        finally:
            os._exit(0)
    os.close(watched)
    os.waitpid(child, 0)


def watch(watched: int, line: bytes) -> None:
    """The watchdog's life: wait until nobody holds the pipe's other side any more, then end what is marked.

    watched: the pipe's file descriptor; every other is let go of, so that no port, lock or terminal is held by it.
    """
    for number in signal.valid_signals():
        with suppress(OSError):  # SIGKILL and SIGSTOP are not for us to ignore
            signal.signal(number, signal.SIG_IGN)
    os.dup2(watched, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    os.closerange(0, 3)
    for _ in range(3):
        os.open(os.devnull, os.O_RDWR)
    os.chdir("/")
    with suppress(OSError):
        Path("/proc/self/comm").write_text("knowlm-watchdog")
    os.read(3, 1)
    end_marked(line)


def end_marked(line: bytes) -> None:
    """Kill what is marked until two looks in a row find nothing; one may just be starting another."""
    began = time.monotonic()
    clean = 0
    while clean < 2 and time.monotonic() - began < GIVE_UP_SECONDS:
        found = marked(line)
        clean = 0 if found else clean + 1
        for pid in found:
            if time.monotonic() - began > TRACKER_SECONDS or not is_tracker(pid):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def marked(line: bytes) -> list[int]:
    """Process ids of all whose environment had this line when they began."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if line in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def is_tracker(pid: int) -> bool:
    """Whether it is multiprocessing's resource tracker, which ends by itself when the last that it serves has ended."""
    with suppress(OSError):
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
