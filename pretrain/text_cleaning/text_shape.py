"""The shape of a text: prose among listings (code, terminal sessions), whose lines repeat by nature, and verse."""

import re
from collections import Counter

_FENCE = re.compile(r"\s*(?:```|~~~)")
_INDENTED = re.compile(r"(?: {4}|\t)\s*\S")
_PROMPT = re.compile(
    r"\s*(?:[$%] |>>> |\.\.\. |(?:mysql|sqlite|ghci|irb|psql)[^ ]*> |In \[\d+\]: |"
    r"\[?[\w.-]+@[\w.-]+[^#$%>]{0,40}[#$%>] ?|(?:PS )?[A-Z]:\\[^>]{0,80}> ?)\S"
)
MIN_PROSE_SHARE = 0.1  # minimum share of prose in the characters of a text; below it, `prose_of` returns the whole text
REPEATED_LINES = 3  # in a text with listings, a line with this many occurrences belongs to a listing


def prose_of(text: str) -> str:
    """Return a text without its listings, or the whole text if less than MIN_PROSE_SHARE of it is prose.

    A listing is a fenced block, a line that is indented by four spaces or a tab, or a line with a prompt and the lines
    after it, up to an empty line. In a text with listings, lines that occur at least REPEATED_LINES times are also
    removed.
    """
    prose, fenced, session = [], False, False
    for line in text.splitlines(keepends=True):
        if _FENCE.match(line):
            fenced = not fenced
            continue
        session = bool(_PROMPT.match(line) or (session and line.strip()))
        if not (fenced or session or _INDENTED.match(line)):
            prose.append(line)
    if len(prose) < text.count("\n"):
        counts = Counter(prose)
        prose = [line for line in prose if counts[line] < REPEATED_LINES or not line.strip()]
    found = "".join(prose)
    return found if len(found) >= MIN_PROSE_SHARE * len(text) else text


_LINE_END = tuple(",;:.!?—-\"'”’，；：。！？、…」）")
_MARKUP = re.compile(r"[{}=<>\\|_#*/$`\[\]\d]")
VERSE_LIMITS = {"lines": 4, "characters": 100, "long_lines": 0.1, "broken_lines": 0.3, "markup": 0.01}


def is_verse(text: str) -> bool:
    """Return whether a text has short lines that break sentences: verse, lyrics or dialogue, not a menu or a listing.

    The conditions (VERSE_LIMITS): at least `lines` lines that are not blank. At least the share `broken_lines` of the
    lines end with a punctuation mark or begin with a small letter, or all lines have the same length. At most the share
    `long_lines` of the lines have more than `characters` characters. At most the share `markup` of all characters are
    signs of code or digits.
    """
    lines = [line for raw in text.splitlines() if (line := raw.strip())]
    if len(lines) < VERSE_LIMITS["lines"]:
        return False
    long_lines = sum(len(line) > VERSE_LIMITS["characters"] for line in lines)
    broken_lines = sum(line.endswith(_LINE_END) or line[0].islower() for line in lines)
    return (
        long_lines <= VERSE_LIMITS["long_lines"] * len(lines)
        and (broken_lines >= VERSE_LIMITS["broken_lines"] * len(lines) or len({len(line) for line in lines}) == 1)
        and len(_MARKUP.findall(text)) <= VERSE_LIMITS["markup"] * len(text)
    )
