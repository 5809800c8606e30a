"""Parse the text of an option to a value of the option's type; no text is evaluated as Python.

Types: str, int, float, bool, Literal of strings, list[T] and tuple[T, ...] with T one of str, int and float; each may
have `| None`.
"""

import math
import re
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
# A quoted or an unquoted item, its comma, and the spaces after it. Possessive quantifiers keep the time linear.
LIST_ITEM = re.compile(r"""(?:'([^']*)'|"([^"]*)"|([^,'"][^,]*+))\s*+(?:,\s*+|$)""")
YES_OR_NO = {"true": True, "false": False}
TYPE_DESCRIPTIONS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def parse_value(option: str, text: str | Sequence[str], kind: Any) -> Any:
    """Return the value of an option of type `kind`; raises ValueError, which names the option.

    option: the name as written on the command line, such as `--samples`. text: the value; for a list type it may be
    several words. The text `None` gives None for an optional type, except for `str | None`.
    """
    if get_origin(kind) in (Union, UnionType):
        kinds = [one for one in get_args(kind) if one is not NoneType]
        if text == "None" and NoneType in get_args(kind) and str not in kinds:
            return None
        return parse_value(option, text, str if str in kinds else kinds[0])
    try:
        if get_origin(kind) in (list, tuple):
            item = get_args(kind)[0]
            return get_origin(kind)(_scalar(part, item) for part in parse_list(text))
        return _scalar(str(text), kind)
    except ValueError as error:
        reason = f" ({error})" if str(error) else ""
        given = text if isinstance(text, str) else " ".join(text)
        raise ValueError(f"{option} takes {_type_description(kind)}, not {given!r}{reason}") from None


def is_bool(kind: Any) -> bool:
    """Return whether an option of this type may be written without a value."""
    return kind is bool or kind == bool | None


def _scalar(text: str, kind: Any) -> Any:
    """Return a single value; raises ValueError, usually without a message, since the caller names the type."""
    if get_origin(kind) is Literal and text in get_args(kind):
        return text
    if kind is int and WHOLE_NUMBER.fullmatch(text):
        return int(text)
    if kind is int and text.strip("+-").isdecimal() and text.isascii():
        raise ValueError("more than 18 digits")
    if kind is float and NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if kind is bool and text.lower() in YES_OR_NO:
        return YES_OR_NO[text.lower()]
    if kind in (str, object, Any):
        return text
    raise ValueError


def _type_description(kind: Any) -> str:
    """Return the description of an option's type for error messages."""
    if get_origin(kind) in (list, tuple):
        item = get_args(kind)[0]
        example = "[1,2]" if item is int else "[0.5,1]" if item is float else "[a,b]"
        return f"a list of {TYPE_DESCRIPTIONS[item].removeprefix('a ')}{'s' * (item is not str)} such as {example}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return TYPE_DESCRIPTIONS[kind]


def parse_list(text: str | Sequence[str]) -> list[str]:
    """Return the items of `a,b`, `[a,b]`, `(a,b)`, `['a','b']` or `"a","b"`, or of several words in these notations.

    Quotes protect commas, spaces and brackets; there are no escapes. Raises ValueError on an empty item, an unclosed
    bracket or quote, and text after a closing quote.
    """
    if not isinstance(text, str):
        if not text or text[0].lstrip()[:1] not in ("[", "("):
            return [item for word in text for item in parse_list(word)]
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
        found = LIST_ITEM.match(text, at)
        if found is None:
            is_empty = text[at] == ","
            raise ValueError("an item is empty" if is_empty else "a quote is not closed, or text follows it")
        items.append(found[1] or found[2] or (found[3] or "").strip())
        at = found.end()
    return items
