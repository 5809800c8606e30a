"""Report a user error once for all ranks: one line and exit status 2.

A launcher ends the other ranks as soon as one exits with an error, even if they wait in a collective operation. Most
user errors (an unknown option, a missing file) occur on every rank at about the same time, so the exits are staggered:
rank 0 exits at once, the first rank of each other machine after GRACE seconds, all other ranks after twice as long. A
delayed rank therefore prints its error only if no earlier rank failed.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 10.0  # seconds; torchrun and deepspeed poll their ranks more often


@contextmanager
def user_errors_in_turn() -> Iterator[None]:
    """Delay ValueError and OSError on all ranks but rank 0, so that the command prints its error line once.

    Also serves as a decorator.
    """
    try:
        yield
    except (ValueError, OSError):
        if int(os.environ.get("RANK", "0")):
            time.sleep(GRACE * (2 if int(os.environ.get("LOCAL_RANK", "0")) else 1))
        raise
