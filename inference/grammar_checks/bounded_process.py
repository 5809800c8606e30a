"""Run a function in forked processes, each within a limit of processor time and memory.

A library that compiles grammars can neither be interrupted in a thread nor limited in memory; a process can. The server
forks one child, which shares the server's modules and tokenizer. For each call, the child forks another process (in
milliseconds), which is killed at the limit. The child has a single thread, so its forks are safe.
"""

import asyncio
import gc
import os
import resource
import signal
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

WALL_FACTOR = 8  # a call is also killed if its elapsed time is this many times the limit of processor time
STANDARD_STREAMS = (0, 1, 2)

Function = Callable[[Any], Any]


class LimitExceededError(Exception):
    """Raised if a call exceeded the limit of processor time or memory, or crashed."""


class QueueFullError(Exception):
    """Raised if too many calls are waiting."""


class BoundedProcess:
    """Runs the calls of a function one after the other, each in a process of its own."""

    def __init__(self, prepare: Callable[[], Function], seconds: int, memory: int, max_waiting: int) -> None:
        """Fork the child at once; create the object while this process still has few threads.

        prepare: called in the child, returns the function; seconds: processor time of a call; memory: bytes that a call
        may allocate; max_waiting: maximum number of calls that wait or run.
        """
        self.prepare, self.seconds, self.memory, self.max_waiting = prepare, seconds, memory, max_waiting
        self.waiting = 0
        self.thread = ThreadPoolExecutor(1, "bounded-process")
        self.start()

    def start(self) -> None:
        self.connection, end = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.connection.close()
                serve(end, self.prepare, self.seconds, self.memory)
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(1)
        end.close()

    async def run(self, argument: Any) -> Any:
        """Return function(argument).

        Raises ValueError with the message of the function's ValueError, LimitExceededError if the call was killed,
        QueueFullError if too many calls wait, and RuntimeError for another exception or if the child was killed.
        """
        if self.waiting >= self.max_waiting:
            raise QueueFullError
        self.waiting += 1
        try:
            kind, value = await asyncio.get_running_loop().run_in_executor(self.thread, self.ask, argument)
        finally:
            self.waiting -= 1
        if kind == "result":
            return value
        raise {"refused": ValueError, "killed": LimitExceededError}.get(kind, RuntimeError)(value)

    def ask(self, argument: Any) -> tuple[str, Any]:
        try:
            self.connection.send(argument)
            return self.connection.recv()
        except (EOFError, OSError):  # the child was killed from outside, or `prepare` failed
            self.close()
            self.start()
            return "failed", "the process was killed"

    def close(self) -> None:
        """End the child."""
        self.connection.close()
        with suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def serve(connection: Connection, prepare: Callable[[], Function], seconds: int, memory: int) -> None:
    """Answer the calls of the parent until it closes the connection or ends."""
    gc.freeze()  # no finalizer of the parent's objects runs here
    gc.disable()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    close_other_files(connection.fileno())
    function = prepare()
    while True:
        try:
            argument = connection.recv()
        except EOFError:
            os._exit(0)
        connection.send(run_forked(function, argument, seconds, memory))


def close_other_files(kept: int) -> None:
    """Close the inherited files and sockets except `kept` and the standard streams."""
    folder = Path("/proc/self/fd")
    for number in [int(entry.name) for entry in folder.iterdir()] if folder.exists() else []:
        if number != kept and number not in STANDARD_STREAMS:
            with suppress(OSError):
                os.close(number)


def run_forked(function: Function, argument: Any, seconds: int, memory: int) -> tuple[str, Any]:
    """Return ("result", value), ("refused", message), ("killed", reason) or ("failed", message) of a forked call."""
    reader, writer = Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        try:
            limit_this_process(seconds, memory)
            writer.send(outcome(function, argument))
        finally:
            os._exit(0)
    writer.close()
    answer = None
    if wait([reader], WALL_FACTOR * seconds):
        with suppress(EOFError, OSError):
            answer = reader.recv()
    else:
        os.kill(pid, signal.SIGKILL)
    reader.close()
    _, status = os.waitpid(pid, 0)
    if answer:
        return answer
    # Compiled code may crash if an allocation fails, so a crash is reported as exceeded memory.
    has_crashed = os.WIFSIGNALED(status) and os.WTERMSIG(status) not in (signal.SIGXCPU, signal.SIGKILL)
    return "killed", f"more than {memory >> 20} MiB" if has_crashed else f"more than {seconds} s"


def outcome(function: Function, argument: Any) -> tuple[str, Any]:
    try:
        return "result", function(argument)
    except ValueError as error:
        return "refused", str(error)
    except MemoryError:
        return "killed", "more memory than allowed"
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"


def limit_this_process(seconds: int, memory: int) -> None:
    """Limit the processor time (SIGXCPU ends the process) and the memory that is allocated from now on."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    with suppress(OSError, ValueError):  # no /proc, or a lower limit is set already
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        total = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (total, total))
