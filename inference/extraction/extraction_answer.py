"""Reading an answer that was decoded under its grammar, also one that the token limit cut off.

the route /extract is made of it.
"""

import json
import re
from typing import Any

TOKENS = re.compile(r'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)  # a text, the quote of one without end, a bracket
CLOSERS = {"{": "}", "[": "]"}


def read(text: str) -> tuple[dict[str, Any], bool]:
    """The answer as an object, and whether it was complete.

    Of one that is not, everything up to its last complete item is kept. A key that comes again adds to what it holds
    already. Text that is no such answer at all is an empty object.
    """
    for written, complete in ((text, True), (closed(text), False)):
        try:
            found = json.loads(written, object_pairs_hook=merged)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found, complete
    return {}, False


def merged(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values; what came under one key is one list."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        found[key] = [*listed(found[key]), *listed(value)] if key in found else value
    return found


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def closed(text: str) -> str:
    """The text up to the last place at which the answer could have ended, with the brackets that end it there.

    Such places are behind the answer's opening bracket and a list's, behind an item, and behind a list.
    """
    opened: list[str] = []
    whole = "{}"
    for token in TOKENS.finditer(text):
        if token[0] in CLOSERS:
            opened.append(token[0])
        elif token[0] in CLOSERS.values():
            opened = opened[:-1]
        elif token[0] == '"':
            break
        if opened == ["{", "["] or (opened == ["{"] and token[0][0] != '"'):
            whole = text[: token.end()] + "".join(CLOSERS[bracket] for bracket in reversed(opened))
    return whole
