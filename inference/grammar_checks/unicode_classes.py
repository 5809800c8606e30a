"""Replace Unicode classes in a pattern (`\\p{Han}`, `\\P{L}`, `\\pN`), which xgrammar does not support, by ranges."""

import re
import sys
from functools import cache

import regex

# A Unicode class (escaped p or P with a name in braces or of one letter), another escape, a bracket, or other text.
TOKEN = re.compile(r"\\(?P<kind>[pP])(?:\{(?P<name>[^{}]*)\}|(?P<letter>[A-Za-z]))|\\.|\[\^?\]?|\]|[^\\\[\]]+|.", re.S)
MAX_CHARACTERS = 2**18  # of all ranges that replace the classes of a pattern
NAME = re.compile(r"\^?[\w -]{1,60}(?:[=:][\w -]{1,60})?", re.A)


def expand_unicode_classes(pattern: str) -> str:
    """Return a pattern with explicit ranges instead of Unicode classes.

    Raises ValueError for a class that the package regex does not know or that has no character, and if the ranges of
    all classes together have more than MAX_CHARACTERS characters.
    """
    parts, in_brackets, length = [], False, 0
    for token in TOKEN.finditer(pattern):
        text = token[0]
        if kind := token["kind"]:
            ranges = class_ranges(token["name"] if token["letter"] is None else token["letter"], kind == "P")
            parts.append(ranges if in_brackets else f"[{ranges}]")
            length += len(ranges)
            if length > MAX_CHARACTERS:
                raise ValueError("the pattern has too many Unicode classes; use ranges such as [\\u4e00-\\u9fff]")
            continue
        if not in_brackets and text.startswith("["):
            in_brackets = True
        elif in_brackets and text in ("]", "[]"):
            in_brackets = False
        parts.append(text)
    return "".join(parts)


@cache
def class_ranges(name: str, negated: bool) -> str:
    r"""Return the characters of a Unicode class as ranges such as `\u{4e00}-\u{9fff}`.

    name: the class, such as `Han` or `Script=Greek`; negated: return the characters outside the class instead.
    """
    try:
        if not NAME.fullmatch(name):
            raise regex.error("no name")
        members = regex.compile(rf"\{'P' if negated else 'p'}{{{name}}}+")
    except regex.error:
        raise ValueError(
            f"the pattern has the unknown Unicode class {name[:60]!r}; use one such as \\p{{Han}}"
        ) from None
    # surrogates are not characters of UTF-8; a range must not span them
    halves = ("".join(map(chr, range(0xD800))), "".join(map(chr, range(0xE000, sys.maxunicode + 1))))
    runs = [match[0] for half in halves for match in members.finditer(half)]
    if not runs:
        raise ValueError(f"the Unicode class {name!r} has no character; remove it from the pattern")
    return "".join(f"\\u{{{ord(run[0]):x}}}-\\u{{{ord(run[-1]):x}}}" for run in runs)
