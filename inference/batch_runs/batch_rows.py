"""Rows of an input file, read one at a time, and the lines of the output.

Line k of the output belongs to row k of the input. An invalid row gets a line with its error; a blank line stays blank.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from json_rows.instruction_rows import checked_rows, prompt_messages

REQUEST_FIELDS = ("instruction", "input", "messages", "model", "parameters")  # sent to the server
ANSWER_FIELDS = ("generated_text", "num_output_tokens_cf", "error")  # the envelope of /generate
SUCCESS_ENDING = b'"error": null}\n'  # how the output line of a row without an error ends
# Pairs of parameters for one setting: if a row has either of them, the command line's values of both are ignored.
SYNONYMS = ({"max_tokens", "max_new_tokens"}, {"temperature", "do_sample"})


class BatchRow(NamedTuple):
    """A row of the input."""

    number: int  # from 1; in JSONL the line number
    content: dict[str, Any] | None  # None for an invalid row or a blank line
    error: str = ""
    request: dict[str, Any] | None = None  # request body of /generate; None if `content` is None


class RowAnswer(NamedTuple):
    """The text generated for a row, or the error."""

    text: str = ""
    tokens: int = 0  # generated tokens, end token included
    error: str | None = None


def read_rows(
    path: Path, skip: int = 0, model: str = "", parameters: Mapping[str, Any] | None = None
) -> Iterator[BatchRow]:
    """Yield the rows after the first `skip`; a blank line counts as a row.

    model, parameters: see generate_request. Raises ValueError with file and line if the rest of the file cannot be
    read, or if it has no rows.
    """
    for number, row in enumerate(checked_rows(path, answers=False, blank_lines=True), 1):
        if number > skip:
            error = f"{row.location} {row.error}" if row.error else ""
            request = None if row.content is None else generate_request(row.content, model, parameters or {})
            yield BatchRow(number, row.content, error, request)


def generate_request(content: dict[str, Any], model: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request body of /generate for a row.

    model, parameters: defaults from the command line; the row's own model and parameters take precedence.
    """
    body = {name: content[name] for name in REQUEST_FIELDS if content.get(name) is not None}
    if "messages" in body or content.get("system") or content.get("history"):
        body = {name: value for name, value in body.items() if name not in ("instruction", "input")}
        body["messages"] = prompt_messages(content)
    if model:
        body.setdefault("model", model)
    own = body.get("parameters", {})
    if isinstance(own, dict):
        replaced = set(own).union(*(names for names in SYNONYMS if names & set(own)))
        merged = {name: value for name, value in parameters.items() if name not in replaced} | own
        if merged:
            body["parameters"] = merged
    return body


def output_line(row: BatchRow, answer: RowAnswer) -> bytes:
    """Return the output line of a row: the row's keys, then the answer's keys, which replace keys of the same name."""
    if row.content is None and not row.error:
        return b"\n"
    kept = {name: value for name, value in (row.content or {}).items() if name not in ANSWER_FIELDS}
    fields = kept | dict(zip(ANSWER_FIELDS, (answer.text, answer.tokens, answer.error), strict=True))
    try:
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which can only be written as an escape
        return json.dumps(fields).encode() + b"\n"
