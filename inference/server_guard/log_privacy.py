"""What the server writes down while it serves: nothing of a request's text, unless --enable-log-requests asks for it.

vLLM does not log prompts, but the code that reads requests quotes them here and there in a warning, and in the message
of an error; and the access log has all of an address, to which people add what they like.
"""

import logging
import traceback

READERS = ("vllm.entrypoints", "vllm.renderers", "vllm.parser", "vllm.tool_parsers", "vllm.reasoning")
HIDDEN = "…"


def keep_requests_private() -> None:
    """Put the filters below where they see each record; call it once uvicorn and vLLM have set their logs up."""
    logging.getLogger("uvicorn.access").addFilter(without_query)
    for handler in logging.getLogger("vllm").handlers:
        handler.addFilter(without_words)


def without_query(record: logging.LogRecord) -> bool:
    """Filter that leaves out what follows an address's question mark."""
    if isinstance(record.args, tuple):
        record.args = tuple(part.partition("?")[0] if isinstance(part, str) else part for part in record.args)
    return True


def without_words(record: logging.LogRecord) -> bool:
    """Filter that leaves of a reader's warning its numbers, and of an error where it was raised."""
    if record.levelno >= logging.WARNING and record.name.startswith(READERS):
        if isinstance(record.args, tuple):
            record.args = tuple(part if isinstance(part, int | float) else HIDDEN for part in record.args)
        if record.exc_info and record.exc_info[0]:
            kind, _, trace = record.exc_info
            record.exc_text = f"{''.join(traceback.format_tb(trace))}{kind.__name__}: {HIDDEN}"
    return True
