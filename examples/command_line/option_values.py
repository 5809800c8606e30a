"""From the text of an option to its value, by the option's type: text stays text, and no text is evaluated.

Types: str, int, float, bool, Literal, list[X] and tuple[X, ...] of these, and `X | None`.
"""

import math
import re
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
YES_OR_NO = {"true": True, "false": False}
NOUNS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def value_of(option: str, text: str | Sequence[str], kind: Any) -> Any:
    """The value that `text` means for an option of type `kind`; raises ValueError with one line that names the option.

    option: as users write it, `--samples`. text: of a list also as several words. An optional type takes None for None,
    unless it is `str | None`.
    """
    if get_origin(kind) in (Union, UnionType):
        kinds = [one for one in get_args(kind) if one is not NoneType]
        if text == "None" and NoneType in get_args(kind) and str not in kinds:
            return None
        return value_of(option, text, str if str in kinds else kinds[0])
    try:
        if get_origin(kind) in (list, tuple):
            item = get_args(kind)[0]
            return get_origin(kind)(_scalar(part, item) for part in read_list(text))
        return _scalar(str(text), kind)
    except ValueError as error:
        reason = f" ({error})" if str(error) else ""
        given = text if isinstance(text, str) else " ".join(text)
        raise ValueError(f"{option} takes {_noun(kind)}, not {given!r}{reason}") from None


def is_bool(kind: Any) -> bool:
    """Whether an option of this type may be written without a value."""
    return kind is bool or kind == bool | None


def _scalar(text: str, kind: Any) -> Any:
    """One value; ValueError, without a message where the type says enough."""
    if get_origin(kind) is Literal and text in get_args(kind):
        return text
    if kind is int and WHOLE_NUMBER.fullmatch(text):
        return int(text)
    if kind is float and NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if kind is bool and text.lower() in YES_OR_NO:
        return YES_OR_NO[text.lower()]
    if kind in (str, object, Any):
        return text
    raise ValueError


def _noun(kind: Any) -> str:
    """What an error calls the values of a type."""
    if get_origin(kind) in (list, tuple):
        item = get_args(kind)[0]
        example = "[1,2]" if item is int else "[0.5,1]" if item is float else "[a,b]"
        return f"a list of {NOUNS[item].removeprefix('a ')}{'s' * (item is not str)} such as {example}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return NOUNS[kind]


def read_list(text: str | Sequence[str]) -> list[str]:
    """The items of `a,b`, `[a,b]`, `['a','b']` or `"a","b"`, or of several words in these notations.

    Quotes protect commas, spaces and brackets; there are no escapes. Takes time linear in the text and evaluates
    nothing. Raises ValueError on an empty item, an unclosed bracket or quote, and text behind a closed quote.
    """
    if not isinstance(text, str):
        if not text or text[0].lstrip()[:1] not in ("[", "("):
            return [item for word in text for item in read_list(word)]
        text = " ".join(text)
    text = text.strip()
    for opening, closing in ("[]", "()"):
        if text.startswith(opening):
            if not text.endswith(closing):
                raise ValueError(f"{opening} is not closed")
            text = text[1:-1].strip()
            break
    items, at = [], 0
    while at < len(text):
        item, at = _quoted(text, at) if text[at] in "'\"" else _bare(text, at)
        items.append(item)
    return items


def _bare(text: str, start: int) -> tuple[str, int]:
    """The item that begins at `start` without quotes, and where the next one begins."""
    end = text.find(",", start)
    end = len(text) if end < 0 else end
    item = text[start:end].strip()
    if not item:
        raise ValueError("an item is empty")
    return item, _next_item(text, end)


def _quoted(text: str, start: int) -> tuple[str, int]:
    """The item that begins with the quote at `start`, and where the next one begins."""
    end = text.find(text[start], start + 1)
    if end < 0:
        raise ValueError(f"{text[start]} is not closed")
    return text[start + 1 : end], _next_item(text, end + 1)


def _next_item(text: str, at: int) -> int:
    """The index behind the comma at `at`, spaces aside; the length of the text at its end."""
    while at < len(text) and text[at].isspace():
        at += 1
    if at < len(text) and text[at] != ",":
        raise ValueError(f"text follows a closed quote: {text[at : at + 20]}")
    at += 1
    while at < len(text) and text[at].isspace():
        at += 1
    return at
