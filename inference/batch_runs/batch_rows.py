"""Rows of questions from a file, one at a time, and each with its answer as a line of the output.

batch.py reads and writes through it. Line k of the output belongs to line k of the input, whatever stands
there: a line that is no row gets a line with its error, an empty one an empty one.
"""

import codecs
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ASKED = ("instruction", "input", "messages", "model", "parameters")  # of a row; its other keys are only carried along
ANSWERED = ("generated_text", "num_output_tokens_cf", "error")  # the envelope of /generate
SUCCESS = b'"error": null}\n'  # how the line of an answered row ends
# Two names for one thing: a row that gives one of them takes the place of both on the command line.
SAME_THING = ({"max_tokens", "max_new_tokens"}, {"temperature", "do_sample"})


class Row(NamedTuple):
    """A line of the input."""

    number: int  # from 1; in a JSON list, the item's
    content: dict[str, Any] | None  # None: the line is no row
    error: str = ""  # why not; "" with no content: the line is empty


class Answer(NamedTuple):
    """What was generated for a row, or why nothing was."""

    text: str = ""
    tokens: int = 0  # generated, the end token included
    error: str | None = None
    prompt_tokens: int = 0  # 0 where a server, which does not tell, was asked


Request = Callable[[dict[str, Any]], dict[str, Any]]  # a row's content to the body of /generate
Take = Callable[[Row, Answer], None]  # gets the answers, in any order
Wait = Callable[[], bool]  # whether no further row should be begun for now


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON value")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse(digits)


DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def read_rows(path: Path, skip: int = 0) -> Iterator[Row]:
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


def parse(number: int, line: bytes) -> Row:
    """The row of a line of JSONL."""
    try:
        text = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
        return row_of(number, DECODER.decode(text)) if text.strip() else Row(number, None)
    except UnicodeDecodeError as error:
        return Row(number, None, f"the line is not UTF-8 ({error.reason} at byte {error.start})")
    except json.JSONDecodeError as error:
        return Row(number, None, f"the line is no JSON: {error.msg} at character {error.pos}")
    except (ValueError, RecursionError) as error:
        return Row(number, None, f"the line is no JSON: {error}")


def row_of(number: int, item: Any) -> Row:
    if isinstance(item, dict):
        return Row(number, item)
    return Row(number, None, 'the row must be an object such as {"instruction": …}')


def request_of(content: Mapping[str, Any], model: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The body of /generate for a row.

    model, parameters: those of the command line, over which the row's own go, each parameter by itself.
    """
    body = {name: content[name] for name in ASKED if content.get(name) is not None}
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
