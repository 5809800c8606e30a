"""Check properties for a limited time; KNOWLM_FUZZ_SECONDS (default 600) is the time of all slow fuzz tests."""

from command_line.command_errors import one_line

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy, tuples

SECONDS = float(os.environ.get("KNOWLM_FUZZ_SECONDS", "600"))
FEW, MANY = 25, 500  # examples per call of Hypothesis
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)  # with lone surrogates and control characters
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.sampled_from([10**30, "{", "[]", ""])


def share_of_seconds(share: float) -> float:
    """Return a share of KNOWLM_FUZZ_SECONDS."""
    return share * SECONDS


def run_for(seconds: float, holds: Callable[..., None], strategies: Sequence[SearchStrategy[Any]]) -> None:
    """Check a property with new random examples for a time; with 0 seconds, with a few examples that never change."""
    end, failures = time.monotonic() + seconds, 0

    def example(values: tuple[Any, ...]) -> None:
        nonlocal failures
        if seconds and not failures and time.monotonic() > end:
            return
        try:
            holds(*values)
        except BaseException:
            failures += 1  # from now on no time limit: Hypothesis searches for a smaller example
            raise

    while True:
        count = settings(max_examples=MANY if seconds else FEW, derandomize=not seconds, database=None)
        checked = settings(count, deadline=None, suppress_health_check=list(HealthCheck))
        checked(given(tuples(*strategies))(lambda values: example(values)))()  # a new function for each call
        if time.monotonic() >= end:
            return


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def value_or_error(read: Callable[[Any], Any], given: Any) -> Any:
    """Return a function's value, or None if it raises ValueError or FileNotFoundError, whose message users get."""
    try:
        return read(given)
    except (ValueError, FileNotFoundError) as error:
        assert one_line(error)
        return None
