"""Rows of an input file, read one at a time, and the lines of the output.

Line k of the output belongs to line k of the input: a line that is not a row gets a line with its error, an empty line
an empty one.
"""

import codecs
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

REQUEST_FIELDS = ("instruction", "input", "messages", "model", "parameters")  # of a row; others are only copied
ANSWER_FIELDS = ("generated_text", "num_output_tokens_cf", "error")  # the envelope of /generate
SUCCESS_ENDING = b'"error": null}\n'  # of the line of an answered row
# Names of the same setting: a row that gives one of them replaces both of the command line.
SYNONYMS = ({"max_tokens", "max_new_tokens"}, {"temperature", "do_sample"})


class BatchRow(NamedTuple):
    """A line of the input."""

    number: int  # from 1; in a JSON list, the item's
    content: dict[str, Any] | None  # None: the line is not a row
    error: str = ""  # the reason; "" without content: the line is empty


class RowAnswer(NamedTuple):
    """The text generated for a row, or the error."""

    text: str = ""
    tokens: int = 0  # generated, the end token included
    error: str | None = None
    prompt_tokens: int = 0  # 0 for a server, which does not report it


MakeRequest = Callable[[dict[str, Any]], dict[str, Any]]  # a row's content to the body of /generate
WriteAnswer = Callable[[BatchRow, RowAnswer], None]  # takes the answers in any order
ShouldWait = Callable[[], bool]  # whether no further row should be started for now


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON value")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits)


DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def read_rows(path: Path, skip: int = 0) -> Iterator[BatchRow]:
    """The lines of a JSONL file behind the first `skip`, one at a time; or the items of a JSON list.

    A list is read whole; ValueError where it is broken. A broken line of JSONL is a row with an error.
    """
    if is_list(path):
        yield from (row_of(number, item) for number, item in enumerate(read_list(path), 1) if number > skip)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number > skip:
                yield parse(number, line)


def is_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def read_list(path: Path) -> list[Any]:
    try:
        return DECODER.decode(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} begins as a JSON list and is none ({error}); repair it, or give JSONL") from None


def parse(number: int, line: bytes) -> BatchRow:
    """The row of a line of JSONL."""
    try:
        text = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
        return row_of(number, DECODER.decode(text)) if text.strip() else BatchRow(number, None)
    except UnicodeDecodeError as error:
        return BatchRow(number, None, f"the line is not UTF-8 ({error.reason} at byte {error.start})")
    except json.JSONDecodeError as error:
        return BatchRow(number, None, f"the line is no JSON: {error.msg} at character {error.pos}")
    except (ValueError, RecursionError) as error:
        return BatchRow(number, None, f"the line is no JSON: {error}")


def row_of(number: int, item: Any) -> BatchRow:
    if isinstance(item, dict):
        return BatchRow(number, item)
    return BatchRow(number, None, 'the row must be an object such as {"instruction": …}')


def request_of(content: Mapping[str, Any], model: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of /generate for a row.

    model, parameters: of the command line; the row's own take precedence, each parameter by itself.
    """
    body = {name: content[name] for name in REQUEST_FIELDS if content.get(name) is not None}
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
    """Return the line of the output: the row's keys, then the answer's, which replace keys of the same names."""
    if row.content is None and not row.error:
        return b"\n"
    kept = {name: value for name, value in (row.content or {}).items() if name not in ANSWER_FIELDS}
    whole = kept | dict(zip(ANSWER_FIELDS, (answer.text, answer.tokens, answer.error), strict=True))
    try:
        return json.dumps(whole, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which can only be written as an escape
        return json.dumps(whole).encode() + b"\n"
