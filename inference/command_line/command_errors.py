"""How a command ends: an error that a user can cause is one line and exit status 2, Ctrl-C is one line and 130."""

from command_line import interrupts

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

ERROR = 2


def one_line(error: BaseException) -> str:
    """An error's message without line breaks, or the name of its class where it has no message.

    Of the errors that pydantic raises, with an input and a link for each, only the messages.
    """
    errors = getattr(error, "errors", None)
    text = "; ".join(str(each["msg"]) for each in errors()) if callable(errors) else str(error)
    return " ".join(text.split()) or type(error).__name__


def unknown_option(written: str, known: Collection[str]) -> ValueError:
    """The error for an option that a command does not have, with the closest of the known ones (`--name`)."""
    from difflib import get_close_matches

    close = get_close_matches(written, known, n=1)
    return ValueError(f"unknown option {written}; " + (f"did you mean {close[0]}?" if close else "see --help"))


@contextmanager
def resumable(remedy: str) -> Iterator[None]:
    """Around work that the same command can resume: Ctrl-C then also prints how. Other work prints "interrupted"."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {remedy}") from None


def run_command(work: Callable[[], int | None], failures: Mapping[type[Exception], int] | None = None) -> NoReturn:
    """Do the work of a command and exit with its status; see `exit_status`."""
    sys.exit(exit_status(work, failures))


def exit_status(work: Callable[[], int | None], failures: Mapping[type[Exception], int] | None = None) -> int:
    """Do the work of a command and return its exit status: what `work` returns, or the status of the error it raises.

    ValueError and OSError are printed as one line and give 2, the classes in `failures` likewise their status; other
    exceptions are programming errors and pass. Ctrl-C gives 130 and prints "interrupted", or the line that the
    KeyboardInterrupt holds where the interrupted function knows more (`resumable`).
    """
    interrupts.begin_work()
    statuses: dict[type[Exception], int] = {ValueError: ERROR, OSError: ERROR, **(failures or {})}
    try:
        return work() or 0
    except (KeyboardInterrupt, Exception) as error:
        if interrupt := _interrupt_behind(error):
            interrupts.print_line(str(interrupt) or "interrupted")
            return interrupts.INTERRUPTED
        status = next((status for kind, status in statuses.items() if isinstance(error, kind)), None)
        if status is None:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return status
    finally:
        interrupts.end_work()


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The KeyboardInterrupt that caused an error; libraries turn one into another exception while they are imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error
