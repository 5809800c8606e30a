"""The retry policy of downloads: pauses after errors of the hub or the connection, and when to give up."""

import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from tqdm import tqdm

TRIES = 8  # attempts without progress
FIRST_PAUSE = 1.0  # seconds; doubled after each attempt
LONGEST_BACKOFF = 60.0  # seconds
LONGEST_PAUSE = 3600.0  # seconds; longer requests of a hub are errors
TRY_AGAIN = {408, 425, 429, *range(500, 600)}  # HTTP status codes

Result = TypeVar("Result")


class StoppedError(Exception):
    """Another thread failed, or the user interrupted the run."""


def notice(line: str) -> None:
    """Print a line on stderr without breaking the progress bar."""
    tqdm.write(f"notice: {line}", file=sys.stderr)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def asked_pause(headers: Mapping[str, str]) -> float | None:
    """Return the pause in seconds that headers request: Retry-After (seconds or a date) or the hub's RateLimit."""
    from huggingface_hub.utils import parse_ratelimit_headers

    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    if value:
        try:
            return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):  # not a date, or one without a time zone
            return None
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None


class RetryPolicy:
    """Waits between attempts, longer each time; gives up after TRIES without progress."""

    def __init__(self, what: str, stop: threading.Event) -> None:
        self.what, self.stop, self.tries = what, stop, 0

    def wait(self, error: Exception, progressed: bool = False) -> None:
        """Print a notice and wait before the next attempt.

        progressed: bytes arrived since the last attempt. Raises `error` if it is not temporary or after TRIES attempts
        without progress, ValueError if the hub requests too long a pause, StoppedError if the run is stopped.
        """
        if self.stop.is_set():
            raise StoppedError
        self.tries = 1 if progressed else self.tries + 1
        response = getattr(error, "response", None)
        if self.tries >= TRIES or (response is not None and response.status_code not in TRY_AGAIN):
            raise error
        asked = asked_pause(response.headers) if response is not None else None
        seconds = max(asked or 0.0, min(FIRST_PAUSE * 2 ** (self.tries - 1), LONGEST_BACKOFF))
        reason = f"HTTP {response.status_code}" if response is not None else f"connection broken, {first_line(error)}"
        if seconds > LONGEST_PAUSE:
            fact = f"{self.what}: the hub asks for a pause of {seconds:.0f} s ({reason})"
            raise ValueError(f"{fact}; run this command again later") from error
        notice(f"{self.what}: {reason}; retrying in {seconds:.0f} s")
        if self.stop.wait(seconds):
            raise StoppedError


def with_retries(ask: Callable[[], Result], what: str, stop: threading.Event, kind: type[Exception]) -> Result:
    """Return the result of `ask`; retry it after errors of type `kind`, see RetryPolicy."""
    retries = RetryPolicy(what, stop)
    while True:
        try:
            return ask()
        except kind as error:
            retries.wait(error)
