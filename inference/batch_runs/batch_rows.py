"""Rows of an input file, read one at a time, and the lines of the output.

A row with EXTRACTION_KEYS is a request to /extract; every other row is a request to /generate. Line k of the output
belongs to row k of the input. An invalid row gets a line with its error; a blank line stays blank.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from extraction.text_windows import CONCURRENT_WINDOWS
from json_rows.instruction_rows import SHAPE, prompt_messages, row_error
from json_rows.row_files import Row, iterate_rows

REQUEST_FIELDS = ("instruction", "input", "messages", "model", "parameters")  # sent to /generate
EXTRACTION_KEYS = ("task", "schema", "text")  # of each request to /extract
EXTRACTION_SHAPE = '{"task", "schema", "text"}'
EXTRACT_FIELDS = (  # sent to /extract
    *EXTRACTION_KEYS, "language", "model", "max_tokens", "names_from_text", "window_tokens",
)  # fmt: skip
AMBIGUOUS_KEYS = ("instruction", "messages", "parameters")  # of /generate; an error in a row with all EXTRACTION_KEYS
SHARED_PARAMETERS = {"max_tokens"}  # parameters of the command line that also apply to /extract
ITEM_FIELDS = ("entities", "triples", "events")  # a response of /extract without an error has one of them
WINDOW_CHARACTERS = 4096  # of a long window; most are shorter (WINDOW_TOKENS of routes/extract_api.py)
NO_ANSWER: dict[str, dict[str, Any]] = {  # route -> fields of all its responses, with the values of an empty answer
    "/generate": {"generated_text": "", "num_output_tokens_cf": 0, "error": None},
    "/extract": {"complete": False, "windows": 0, "num_output_tokens_cf": 0, "error": None},
}
SUCCESS_ENDING = b'"error": null}\n'  # how the output line of a row without an error ends
# Pairs of parameters for one setting: if a row has either of them, the command line's values of both are ignored.
SYNONYMS = ({"max_tokens", "max_new_tokens"}, {"temperature", "do_sample"})


class BatchRow(NamedTuple):
    """A row of the input."""

    number: int  # from 1; in JSONL the line number
    content: dict[str, Any] | None  # None for an invalid row or a blank line
    error: str = ""
    request: dict[str, Any] | None = None  # request body; None if `content` is None
    route: str = "/generate"  # or /extract

    def sequences(self) -> int:
        """Return a low estimate of the number of the request's concurrent sequences, from the length of its text."""
        text = self.request["text"] if self.request and self.route == "/extract" else ""
        return min(CONCURRENT_WINDOWS, 1 + len(text) // WINDOW_CHARACTERS) if isinstance(text, str) else 1


def read_rows(
    path: Path, skip: int = 0, model: str = "", parameters: Mapping[str, Any] | None = None
) -> Iterator[BatchRow]:
    """Yield the rows after the first `skip`; a blank line counts as a row.

    model, parameters: see generate_request. Raises ValueError if the file has no rows or, with file and line, if the
    rest of the file cannot be read.
    """
    for number, row in enumerate(iterate_rows(path, blank_lines=True), 1):
        if number > skip:
            yield batch_row(number, row, model, parameters or {})


def batch_row(number: int, row: Row, model: str, parameters: Mapping[str, Any]) -> BatchRow:
    """Return row `number` of the input; model, parameters: see generate_request."""
    content, error, keys = row.content, row.error, []
    if content is not None:
        keys = [name for name in EXTRACTION_KEYS if content.get(name) is not None]
        error = ambiguity(content) if len(keys) == len(EXTRACTION_KEYS) else row_error(content, answers=False)
        if error:
            error += f"; a row is {SHAPE}" + (f", or {EXTRACTION_SHAPE}" if keys else "")
    if content is None or error:
        return BatchRow(number, None, f"{row.location} {error}" if error else "")
    if len(keys) == len(EXTRACTION_KEYS):
        return BatchRow(number, content, "", extract_request(content, model, parameters), "/extract")
    return BatchRow(number, content, "", generate_request(content, model, parameters))


def ambiguity(content: Mapping[str, Any]) -> str:
    """Return the error of a row that has EXTRACTION_KEYS and also one of AMBIGUOUS_KEYS, "" if it has none of them."""
    key = next((name for name in AMBIGUOUS_KEYS if content.get(name) is not None), None)
    return f"has 'task', 'schema' and 'text', and also {key!r}" if key else ""


def extract_request(content: Mapping[str, Any], model: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request body of /extract for a row; model, parameters: as in generate_request."""
    defaults = {name: parameters[name] for name in SHARED_PARAMETERS & set(parameters)}
    defaults |= {"model": model} if model else {}
    return defaults | {name: content[name] for name in EXTRACT_FIELDS if content.get(name) is not None}


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


def row_answer(route: str, response: Any) -> dict[str, Any]:
    """Return the answer in a route's JSON response, with its fields in output order.

    Raises KeyError or TypeError if the response has another format.
    """
    names = (*(name for name in ITEM_FIELDS if name in response), *NO_ANSWER[route])
    return {name: response[name] for name in names}


def output_line(row: BatchRow, answer: Mapping[str, Any]) -> bytes:
    """Return the output line of a row: the row's keys, then the answer's keys, which replace keys of the same name."""
    if row.content is None and not row.error:
        return b"\n"
    fields = {name: value for name, value in (row.content or {}).items() if name not in answer} | dict(answer)
    try:
        return json.dumps(fields, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which can only be written as an escape
        return json.dumps(fields).encode() + b"\n"
