"""Read the options of a command that asks a server, and open the client with its journal."""

from command_line.command_errors import resumable

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from endpoint_requests.endpoint_client import EndpointClient, EndpointOptions, base_url
from endpoint_requests.endpoint_option_types import DEFAULTS
from endpoint_requests.request_journal import RequestJournal
from endpoint_requests.request_totals import RequestTotals

MAX_CONCURRENCY = 1024  # each request has an open connection
MAX_TIMEOUT = 86_400  # seconds


def endpoint_options(url: str, model: str, given: Mapping[str, Any]) -> EndpointOptions:
    """Return the settings of requests; the key may come from OPENAI_API_KEY.

    given: the options of the command line, by name. Raises ValueError for an invalid value.
    """
    values = {**DEFAULTS, **given}
    for name in ("concurrency", "attempts"):
        if values[name] < 1:
            raise ValueError(f"--{name} {values[name]} is too small; it must be at least 1")
    if values["concurrency"] > MAX_CONCURRENCY:
        raise ValueError(f"--concurrency {values['concurrency']} is too large; it must be at most {MAX_CONCURRENCY}")
    if not 0 < values["timeout"] <= MAX_TIMEOUT:
        raise ValueError(f"--timeout {values['timeout']:g} is out of range; give seconds, at most {MAX_TIMEOUT}")
    key = values["api_key"] or os.environ.get("OPENAI_API_KEY", "")
    return EndpointOptions(
        base_url(url), model, key, values["api"], values["concurrency"], values["attempts"], values["timeout"],
        extra=extra_fields(values["extra_body"]),
    )  # fmt: skip


def extra_fields(text: str) -> dict[str, Any]:
    """Return --extra_body as an object; raises ValueError if it is not one."""
    try:
        fields = json.loads(text or "{}")
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ValueError(f"--extra_body {text} is not a JSON object; give one such as '{{\"top_p\": 0.9}}'")
    return fields


def recorded_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a command for its run record: without the key."""
    return {name: value for name, value in options.items() if name != "api_key"}


@contextmanager
def opened_client(output: str, url: str, model: str, given: Mapping[str, Any]) -> Iterator[EndpointClient]:
    """Yield a client whose answers are kept in `<output>.journal`; Ctrl-C and ConnectionError say how to resume.

    Raises the errors of `endpoint_options`, RequestTotals and RequestJournal.
    """
    options, values = endpoint_options(url, model, given), {**DEFAULTS, **given}
    totals, journal_file = RequestTotals(values["input_price"], values["output_price"]), f"{output}.journal"
    with (
        resumable(f"the same command resumes from {journal_file}"),
        RequestJournal(journal_file, values["retry_failed"]) as journal,
        EndpointClient(options, journal, totals) as client,
    ):
        try:
            yield client
        except ConnectionError as error:
            if not journal.completions:
                raise
            raise ConnectionError(f"{error}; the answers so far are in {journal_file}") from None
