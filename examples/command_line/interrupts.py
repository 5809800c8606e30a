"""Ctrl-C while a command starts: importing this module in a running command makes it one line and exit status 130.

`command_line` is the first import of every command (isort's settings in pyproject.toml keep it there), and this module
its first, so that only the start of Python itself still ends with a traceback.
"""

import os
import sys
from types import FrameType, TracebackType

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def is_command() -> bool:
    """Whether the running program is a command of the stage that this copy of the package lies in."""
    program = getattr(sys.modules["__main__"], "__file__", None) or ""
    return os.path.dirname(os.path.abspath(program)) == os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120


def print_line(line: str) -> None:
    """Print to stderr, on a line of its own where a terminal shows ^C or a progress bar."""
    print("\n" * sys.stderr.isatty() + line, file=sys.stderr, flush=True)


def end_at_once(*_: object) -> None:
    """End the process without the clean-up of Python; see `raise_outside_imports`."""
    print_line("interrupted")
    os._exit(INTERRUPTED)


def end_quietly(*_: object) -> None:
    """End a process that has printed how its work ended."""
    os._exit(INTERRUPTED)


def print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's report of an uncaught exception, except for Ctrl-C."""
    if issubclass(kind, KeyboardInterrupt):
        end_at_once()
    sys.__excepthook__(kind, error, trace)


if is_command():
    sys.excepthook = print_exception

import signal  # noqa: E402 - takes ten milliseconds, during which the lines above help


def begin_work() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, for work that has to clean up."""
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, raise_outside_imports)


def raise_outside_imports(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; inside an import, which may lose it or abort the process, end at once instead.

    Compiled libraries that meet it while they are imported raise another error in its place, or call std::terminate.
    What an import inside of other work leaves half-written is what a killed process leaves.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            end_at_once()
        frame = frame.f_back
    raise KeyboardInterrupt


def end_work() -> None:
    """From here on Ctrl-C ends the process without a line: all has been printed, and only Python has to clean up."""
    if signal.getsignal(signal.SIGINT) is raise_outside_imports:
        signal.signal(signal.SIGINT, end_quietly)


# A process that was started with Ctrl-C ignored, such as a job in the background, keeps ignoring it.
if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)
