"""Log filters that keep the text of requests out of the log, unless --enable-log-requests is given.

vLLM does not log prompts, but its code that reads requests and parses answers quotes them in some warnings and in the
messages of exceptions. The access log has the whole URL, including the query.
"""

import logging
import traceback

QUOTING_LOGGERS = ("vllm.entrypoints", "vllm.renderers", "vllm.parser", "vllm.tool_parsers", "vllm.reasoning")
HIDDEN = "…"


def install_log_filters() -> None:
    """Add both filters; must be called after uvicorn and vLLM have configured logging."""
    logging.getLogger("uvicorn.access").addFilter(remove_query)
    for handler in logging.getLogger("vllm").handlers:
        handler.addFilter(remove_request_text)


def remove_query(record: logging.LogRecord) -> bool:
    """Remove the query of a URL from a line of the access log. A log filter."""
    if isinstance(record.args, tuple):
        record.args = tuple(value.partition("?")[0] if isinstance(value, str) else value for value in record.args)
    return True


def remove_request_text(record: logging.LogRecord) -> bool:
    """Hide exception messages and all arguments but numbers in warnings and errors of QUOTING_LOGGERS. A log filter."""
    if record.levelno >= logging.WARNING and record.name.startswith(QUOTING_LOGGERS):
        if isinstance(record.args, tuple):
            record.args = tuple(value if isinstance(value, int | float) else HIDDEN for value in record.args)
        if record.exc_info and record.exc_info[0]:
            kind, _, trace = record.exc_info
            record.exc_text = f"{''.join(traceback.format_tb(trace))}{kind.__name__}: {HIDDEN}"
    return True
