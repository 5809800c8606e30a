"""Exit handling of commands: one line and status 2 for a user error, 130 for Ctrl-C, 143 for SIGTERM."""

from command_line import interrupts

import errno
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

ERROR = 2
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def report_missing_package(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exception hook: print one line and exit with status 2 if a package is missing, else print the traceback."""
    if not isinstance(error, ModuleNotFoundError):
        return sys.__excepthook__(kind, error, trace)
    remedy = "source .venv/bin/activate (bash tools/setup.sh creates this environment)"
    print(f"error: {sys.executable} has no package {error.name}; activate the environment: {remedy}", file=sys.stderr)
    sys.exit(ERROR)


if interrupts.is_command():
    sys.excepthook = report_missing_package


def printable(text: str) -> str:
    """Return a text with its control characters (such as escape sequences of terminals) as Python escapes."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, control characters escaped, or the name of its class if it is empty.

    From pydantic's validation errors, only the messages are used, not the inputs and links. The message of an
    error of DISK_ERRORS (full or failing disk) is replaced by one with a remedy; such an error often names no file.
    """
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        place = error.filename2 or error.filename or "a file"
        return printable(f"{place} cannot be read or written ({error.strerror}); make room, or check the disk")
    errors = getattr(error, "errors", None)
    text = "; ".join(str(each["msg"]) for each in errors()) if callable(errors) else str(error)
    return printable(" ".join(text.split()) or type(error).__name__)


def unknown_option(written: str, known: Collection[str]) -> ValueError:
    """Return the error for the unknown option `written`; it suggests the most similar option in `known` (`--name`)."""
    from difflib import get_close_matches

    close = [name for name in known if name.startswith(written)] or get_close_matches(written, known, n=1)
    return ValueError(f"unknown option {written}; " + (f"did you mean {close[0]}?" if close else "see --help"))


def repeated_option(option: str, first: str, second: str) -> ValueError:
    """Return the error for an option that is given twice; option: its name as `--name`; first, second: its values."""
    return ValueError(f"{option} is given twice, as {first!r} and as {second!r}; give it once")


def check_encoding(words: Iterable[str]) -> None:
    """Raise ValueError if an argument of the command line is not UTF-8.

    Python decodes invalid bytes as lone surrogates, so a run would fail as soon as it prints or records the argument.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            remedy = "rename the file, or set the terminal to UTF-8"
            raise ValueError(f"the argument {word[:60]!r} is not UTF-8; {remedy}") from None


@contextmanager
def resumable(remedy: str) -> Iterator[None]:
    """Context manager for resumable work: Ctrl-C and SIGTERM print "interrupted; " followed by `remedy`."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {remedy}") from None


def run_command(work: Callable[[], int | None], failures: Mapping[type[Exception], int] | None = None) -> NoReturn:
    """Run `work` and exit with its return value (None: 0), or with the status of its exception.

    ValueError and OSError are printed as one line and give status 2. failures: exception class -> status, for further
    exceptions that are printed as one line. All others are programming errors and are raised again. Ctrl-C gives 130,
    SIGTERM 143; they print the message of the KeyboardInterrupt (see `resumable`), or "interrupted" if it has none.
    """
    interrupts.raise_interrupts()
    statuses: dict[type[Exception], int] = {ValueError: ERROR, OSError: ERROR, **(failures or {})}
    try:
        check_encoding(sys.argv)
        status = work()
    except (KeyboardInterrupt, Exception) as error:
        status = next((status for kind, status in statuses.items() if isinstance(error, kind)), None)
        if interrupt := _find_interrupt(error):
            status = interrupts.exit_status
            interrupts.print_line(str(interrupt) or "interrupted")
        elif status is None:
            raise
        else:
            print(f"error: {one_line(error)}", file=sys.stderr)
    finally:
        interrupts.silence_interrupts()
    sys.exit(status)


def _find_interrupt(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the KeyboardInterrupt that caused an error, or None.

    Some libraries replace a KeyboardInterrupt during their import with another exception.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error
