"""Rows of questions from a file, one at a time, and each with its answer as a line of the output.

Line k of the output belongs to row k of the input: a row with an error gets a line with the error, a blank line a blank
line.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from json_rows.instruction_rows import checked_rows, question_of

ASKED = ("instruction", "input", "messages", "model", "parameters")  # of a row; its other keys are only carried along
ANSWERED = ("generated_text", "num_output_tokens_cf", "error")  # the envelope of /generate
SUCCESS = b'"error": null}\n'  # how the line of an answered row ends
# Two names for one thing: a row that gives one of them takes the place of both on the command line.
SAME_THING = ({"max_tokens", "max_new_tokens"}, {"temperature", "do_sample"})


class Row(NamedTuple):
    """A row of the input."""

    number: int  # from 1; the line's where every row stands on its line
    content: dict[str, Any] | None  # None where there is an error or a blank line
    error: str = ""


class Answer(NamedTuple):
    """What was generated for a row, or why nothing was."""

    text: str = ""
    tokens: int = 0  # generated, the end token included
    error: str | None = None
    prompt_tokens: int = 0  # 0 where a server, which does not tell, was asked


Request = Callable[[dict[str, Any]], dict[str, Any]]  # a row's content to the body of /generate
Take = Callable[[Row, Answer], None]  # gets the answers, in any order
Wait = Callable[[], bool]  # whether no further row should be begun for now


def read_rows(path: Path, skip: int = 0) -> Iterator[Row]:
    """The rows behind the first `skip`; a blank line counts as a row.

    Raises ValueError with file and line where the rest of the file cannot be read, and where it has no rows.
    """
    for number, row in enumerate(checked_rows(path, answers=False, blank_lines=True), 1):
        if number > skip:
            yield Row(number, row.content, f"{row.place} {row.error}" if row.error else "")


def request_of(content: dict[str, Any], model: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The body of /generate for a row.

    model, parameters: those of the command line, over which the row's own go, each parameter by itself.
    """
    body = {name: content[name] for name in ASKED if content.get(name) is not None}
    if "messages" in body:
        body["messages"] = question_of(content)
    if model:
        body.setdefault("model", model)
    own = body.get("parameters", {})
    if isinstance(own, dict):
        replaced = set(own).union(*(names for names in SAME_THING if names & set(own)))
        merged = {name: value for name, value in parameters.items() if name not in replaced} | own
        if merged:
            body["parameters"] = merged
    return body


def line_of(row: Row, answer: Answer) -> bytes:
    """The line of the output: the row's own keys, then the answer's, which replace keys of the same names."""
    if row.content is None and not row.error:
        return b"\n"
    kept = {name: value for name, value in (row.content or {}).items() if name not in ANSWERED}
    whole = kept | dict(zip(ANSWERED, (answer.text, answer.tokens, answer.error), strict=True))
    try:
        return json.dumps(whole, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a lone half of a surrogate pair, which only an escape can spell
        return json.dumps(whole).encode() + b"\n"
