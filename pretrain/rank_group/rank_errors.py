"""Report a user error once for all ranks: one line and exit status 2.

A launcher ends the other ranks as soon as one exits with an error, even if they wait in a collective operation. Most
user errors (an unknown option, a missing file) occur on every rank at about the same time, so the exits are staggered:
rank 0 exits at once, the first rank of each other machine after GRACE seconds, all other ranks after twice as long. A
delayed rank therefore prints its error only if no earlier rank failed.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

GRACE = 10.0  # seconds; torchrun and deepspeed poll their ranks more often
clean_up_at_stop: list[Callable[[], None]] = []  # functions that `stop_before_first_step` calls


def stop_before_first_step(number: int, *_: object) -> NoReturn:
    """Handler of stop signals until the first step: end child processes, clean up, print a line, and exit."""
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread or the child has ended
            for child in children.read_text().split():  # a compilation, or the conversion of a checkpoint
                os.kill(int(child), signal.SIGTERM)
    for clean_up in clean_up_at_stop:
        clean_up()
    if not int(os.environ.get("RANK", "0")):
        stopped = f"stopped by {signal.Signals(number).name} before the first step, without a checkpoint"
        print(f"{stopped}; start the run again with the same command", file=sys.stderr, flush=True)
    os._exit(128 + number)


class BuildError(ValueError):
    """An extension was not built because the process that was building it ended or took too long."""


@contextmanager
def user_errors_in_turn() -> Iterator[None]:
    """Delay ValueError and OSError on all ranks except rank 0, so that the command prints its error line once.

    Until the trainer handles SIGTERM and SIGHUP, they call `stop_before_first_step`; a signal that the process ignores
    stays ignored. Also serves as a decorator.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        if before[number] is not signal.SIG_IGN:  # nohup
            signal.signal(number, stop_before_first_step)
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        # DeepSpeed raises a RuntimeError from a BuildError.
        cause = error.__cause__ if isinstance(error.__cause__, BuildError) else error
        if isinstance(cause, RuntimeError):
            raise
        if int(os.environ.get("RANK", "0")):
            time.sleep(GRACE * (2 if int(os.environ.get("LOCAL_RANK", "0")) else 1))
        raise cause from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
