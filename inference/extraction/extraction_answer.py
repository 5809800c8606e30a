"""Parser of answers that were decoded under the grammar, including answers truncated by the token limit."""

import json
import re
from typing import Any

TOKENS = re.compile(r'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)  # a string, an unclosed quote, a bracket
CLOSERS = {"{": "}", "[": "]"}


def parse_answer(text: str) -> tuple[dict[str, Any], bool]:
    """Return (the answer as a dict, whether the answer is complete).

    A truncated answer is kept up to its last complete item. The values of a repeated key are joined into one list. Text
    that is not an answer gives ({}, False).
    """
    for candidate, complete in ((text, True), (complete_prefix(text), False)):
        try:
            answer = json.loads(candidate, object_pairs_hook=join_repeated_keys)
        except (ValueError, RecursionError):
            continue
        if isinstance(answer, dict):
            return answer, complete
    return {}, False


def join_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of the pairs; the values of a repeated key are joined into one list."""
    joined: dict[str, Any] = {}
    for key, value in pairs:
        joined[key] = [*as_list(joined[key]), *as_list(value)] if key in joined else value
    return joined


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def complete_prefix(text: str) -> str:
    """Return the longest prefix of a truncated answer that ends at an item boundary, with its brackets closed.

    An item boundary is the position after the answer's or a list's opening bracket, after an item, or after a list.
    """
    opened: list[str] = []
    prefix = "{}"
    for token in TOKENS.finditer(text):
        if token[0] in CLOSERS:
            opened.append(token[0])
        elif token[0] in CLOSERS.values():
            opened = opened[:-1]
        elif token[0] == '"':
            break
        if opened == ["{", "["] or (opened == ["{"] and token[0][0] != '"'):
            prefix = text[: token.end()] + "".join(CLOSERS[bracket] for bracket in reversed(opened))
    return prefix
