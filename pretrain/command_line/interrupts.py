"""Handle Ctrl-C and SIGTERM: one line and exit status 130 or 143 instead of a traceback, and time to clean up.

Importing this module in a command installs the handlers. `command_line` is the first import of every command (isort's
settings in pyproject.toml keep it there) and imports this module first, so Ctrl-C prints a traceback only in the first
hundredths of a second.
"""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130  # exit status: 128 + SIGINT, as in shells
TERMINATED = 143  # 128 + SIGTERM
CHECK_SECONDS = 0.005  # between checks whether an import is still running
COMMAND_PID = os.getpid()
exit_status = INTERRUPTED  # exit status of a command that ends with KeyboardInterrupt


def is_command() -> bool:
    """Return whether the running program is a command of the stage folder that contains this package."""
    program = getattr(sys.modules["__main__"], "__file__", None) or ""
    return os.path.dirname(os.path.abspath(program)) == os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120


def print_line(line: str) -> None:
    """Print a line to stderr; on a terminal, first end the current line, which may show ^C or a progress bar."""
    print("\n" * sys.stderr.isatty() + line, file=sys.stderr, flush=True)


def exit_interrupted(number: int, *_: object) -> None:
    """Print "interrupted" and end the process at once, without Python's clean-up."""
    print_line("interrupted")
    os._exit(128 + number)


def raise_interrupts() -> None:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt from now on, so that the work can clean up."""
    if signal.getsignal(signal.SIGINT) is exit_interrupted:
        signal.signal(signal.SIGINT, raise_after_imports)
        sys.unraisablehook = raise_later
    if signal.getsignal(signal.SIGTERM) is exit_interrupted:
        signal.signal(signal.SIGTERM, raise_on_sigterm)
        sys.unraisablehook = raise_later


def raise_on_sigterm(number: int, frame: FrameType | None) -> None:
    """Signal handler: do the same as on Ctrl-C, and ignore further SIGTERMs, since `timeout` sends two.

    A forked process, which inherits the handler, ends at once.
    """
    if os.getpid() != COMMAND_PID:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    global exit_status
    exit_status = TERMINATED
    signal.signal(number, signal.SIG_IGN)
    raise_after_imports(number, frame)


def raise_after_imports(number: int, frame: FrameType | None) -> None:
    """Signal handler: raise KeyboardInterrupt, after the current import if one is running.

    Some compiled libraries replace a KeyboardInterrupt during their import with another error, or call std::terminate.
    Therefore a timer calls this handler again every CHECK_SECONDS until no import is running. A second Ctrl-C during an
    import ends the process at once.
    """
    is_waiting = signal.getsignal(signal.SIGALRM) is raise_after_imports
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            if is_waiting and number == signal.SIGINT:
                exit_interrupted(number)
            start_timer()
            return
        frame = frame.f_back
    if is_waiting:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    raise KeyboardInterrupt


def start_timer() -> None:
    """Call `raise_after_imports` again in CHECK_SECONDS."""
    signal.signal(signal.SIGALRM, raise_after_imports)
    signal.setitimer(signal.ITIMER_REAL, CHECK_SECONDS)


def raise_later(unraisable: "sys.UnraisableHookArgs") -> None:
    """Hook for exceptions that Python discards: raise a discarded KeyboardInterrupt again, and report all others.

    Python discards the exceptions of finalizers (`__del__`), of callbacks of weak references and of the garbage
    collector. Without this hook, Ctrl-C at such a moment prints "Exception ignored in ..." and has no effect.
    """
    is_handled = signal.getsignal(signal.SIGINT) is raise_after_imports or exit_status == TERMINATED
    if unraisable.exc_type is KeyboardInterrupt and is_handled:
        start_timer()
    else:
        sys.__unraisablehook__(unraisable)


def silence_interrupts() -> None:
    """Let signals end the process without a message from now on: the command has printed its result or error."""
    if signal.getsignal(signal.SIGTERM) is raise_on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is raise_after_imports:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    if signal.getsignal(signal.SIGALRM) is raise_after_imports:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


# A process that was started with a signal ignored, such as SIGINT in a background job, continues to ignore it.
if is_command():
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_interrupted)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, exit_interrupted)
