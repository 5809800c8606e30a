"""Find dates in English and Chinese text. The value of a date is "2019-11-20", "2019-11" or "2019"; 221 BC is "-221".

Forms: 2019-11-20, 2019/11/20, 2019.11.20, 20 November 2019, 20th of November, 2019, Nov. 20, 2019, November 2019,
2019年11月20日, 二〇一九年十一月二十号, 公元前221年, 221 BC, 1879. Day and month in numbers without a leading year
(11/20/2019) are not read, since their order is ambiguous. The time is linear: every pattern has a bounded length.
"""

import re
from calendar import monthrange
from collections.abc import Iterator

from literal_values.number_values import CHINESE_NUMERALS, chinese_number

MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_MONTH = "|".join(sorted({*MONTHS, *(name[:3] for name in MONTHS), "sept"}, key=len, reverse=True))
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>[0-9]{4})(?![0-9])"
_CN = f"[{CHINESE_NUMERALS}]"
_CN_YEAR = r"[0-9]{3,4}|[〇○零一二三四五六七八九]{4}|(?<=公元)[0-9]{1,2}|(?<=公元前)[0-9]{1,2}"
_CN_PART = rf"[0-9]{{1,2}}|{_CN}{{1,3}}"
_NO_DIGIT_BEFORE = r"(?<![0-9.,])"
# (key of `has` in find_dates, pattern): a text without this part of a date is not searched for the pattern.
_PATTERNS = [
    (contained, re.compile(pattern, re.IGNORECASE))
    for contained, pattern in (
        (
            "年",
            rf"(?P<bc>公元前)?(?:公元)?(?<![0-9])(?P<year>{_CN_YEAR}) ?年"
            rf"(?: ?(?P<month>{_CN_PART}) ?月(?:份|(?: ?(?P<day>{_CN_PART}) ?[日号])?))?",
        ),
        (
            "year",
            rf"{_NO_DIGIT_BEFORE}(?P<year>[0-9]{{4}})(?P<separator>[-/.])(?P<month>[0-9]{{1,2}})"
            rf"(?:(?P=separator)(?P<day>[0-9]{{1,2}}))?(?:T[0-9:.]{{4,16}}Z?)?(?![0-9])",
        ),
        ("month", rf"(?<![\w.,]){_DAY}(?: of)?[ -](?P<month>{_MONTH})\b\.?,?[ -]{_YEAR}"),
        ("month", rf"\b(?P<month>{_MONTH})\b\.? {_DAY},? {_YEAR}"),
        ("month", rf"\b(?P<month>{_MONTH})\b\.?,? {_YEAR}"),
        ("bc", r"(?<![\w.,])(?P<year>[0-9]{1,4}) (?P<bc>B\.?C\.?(?:E\b\.?)?)(?!\w)"),
        ("year", rf"(?<![\w.,/:$€£¥-]){_YEAR}(?![\w/:%]|[.,][0-9]|-[0-9])"),
    )
]
_FOUR_DIGITS = re.compile("[0-9]{4}")
FIRST_YEAR, LAST_YEAR = 1000, 2999  # a bare number in this range may be a year


def find_dates(text: str) -> Iterator[tuple[int, int, str, bool]]:
    """Yield (start, end, value, is_part) of each date.

    A date with a day or month is followed by its year, with is_part true. Of other overlapping dates, only the one
    whose form is first in the list of patterns counts. Invalid dates (2019-13-45) yield nothing.
    """
    taken, lower, has_year = bytearray(len(text)), text.lower(), bool(_FOUR_DIGITS.search(text))
    has = {
        "年": "年" in text, "year": has_year, "bc": "bc" in lower or "b.c" in lower,
        "month": has_year and any(name[:3] in lower for name in MONTHS),
    }  # fmt: skip
    for contained, pattern in _PATTERNS:
        for match in pattern.finditer(text) if has[contained] else ():
            start, end = match.span()
            value = "" if taken[start] or taken[end - 1] else _value(match.groupdict())
            if not value:
                continue
            taken[start:end] = b"\1" * (end - start)
            yield start, end, value, False
            if "-" in value[1:]:
                year_start, year_end = match.span("year")
                is_chinese = text[year_end : year_end + 1] == "年"
                yield year_start, year_end + is_chinese, value[: 1 + value[1:].index("-")], True


def _value(parts: dict[str, str | None]) -> str:
    """Return the value of a match, or "" if there is no such date."""
    year = _number(parts["year"] or "", is_year=True)
    if not year:
        return ""
    if parts.get("bc"):
        return f"-{year}"
    month, day = (_number(parts.get(name) or "") for name in ("month", "day"))
    if "month" not in parts and "day" not in parts:
        return str(year) if FIRST_YEAR <= year <= LAST_YEAR else ""
    if not month and not day:  # Wikidata writes a year as 1879-00-00
        return f"{year:04}"
    if month is None or day is None or not 1 <= month <= 12:
        return ""
    if not day:
        return f"{year:04}-{month:02}"
    return f"{year:04}-{month:02}-{day:02}" if day <= monthrange(max(year, 1), month)[1] else ""


def _number(text: str, is_year: bool = False) -> int | None:
    """Return the number of a day, a month (also by name) or a year; 0 for "", None for an invalid numeral."""
    if not text or (text.isascii() and text.isdecimal()):
        return int(text or 0)
    if text[0].isascii():
        return next(number for number, name in enumerate(MONTHS, 1) if name.startswith(text[:3].lower()))
    value = chinese_number(text)
    return None if value is None or value % 1 or (is_year and len(text) != 4) else int(value)
