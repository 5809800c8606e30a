"""Find numbers in English and Chinese text, with their unit.

The value of 3 万, 30,000, 三万 and thirty thousand is 30000. Further forms: 1.5, 1亿2000万, 3.2 million, 三万五千,
二百五, 百分之五, 5%, twenty-one, three hundred and five. The time is linear: every pattern has a bounded length.
"""

import re
from collections.abc import Iterator
from decimal import Decimal

_DIGITS = {
    "零": 0,
    "〇": 0,
    "○": 0,
    "一": 1,
    "二": 2,
    "两": 2,
    "三": 3,
    "四": 4,
    "五": 5,
    "六": 6,
    "七": 7,
    "八": 8,
    "九": 9,
}
_TENS = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
CHINESE_NUMERALS = "".join([*_DIGITS, *_TENS, *_MYRIADS])
_WORDS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60,
    "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Names of units by the unit's symbol. Values are compared in the unit that the text states; there is no conversion.
UNITS = {
    "%": "% percent ％",
    "km": "km kilometres kilometers kilometre kilometer 公里 千米",
    "m": "m metres meters metre meter 米",
    "cm": "cm centimetres centimeters centimetre centimeter 厘米 公分",
    "kg": "kg kilograms kilogram kilos 公斤 千克",
    "t": "t tonnes tons tonne ton 吨",
    "km2": "km² km2 平方公里 平方千米",
    "m2": "m² m2 平方米",
    "USD": "$ USD US$ dollars dollar 美元",
    "CNY": "¥ CNY RMB yuan 元 人民币",
    "EUR": "€ EUR euros euro 欧元",
}
_SYMBOLS = {name.lower(): symbol for symbol, names in UNITS.items() for name in names.split()}
_UNIT = "|".join(
    re.escape(name) + (r"(?![a-z0-9²])" if name[-1].isascii() and name[-1].isalnum() else "")
    for name in sorted(_SYMBOLS, key=len, reverse=True)
)
_ARABIC = r"[0-9]{1,3}(?:[,，][0-9]{3}){1,9}(?![0-9])(?:\.[0-9]{1,20})?|[0-9]{1,30}(?:\.[0-9]{1,20})?"
_SCALE = r"万亿|百万|千万|[十百千]?亿|[百千万]|(?:hundred|thousand|million|billion|trillion)s?\b"
_WORD = "|".join(sorted([*_WORDS, *_SCALES], key=len, reverse=True))
_AFTER = rf"(?:[\ -]?(?P<unit>{_UNIT}))?"
# A pattern that begins with a set of characters is searched for many times faster; _prefix checks the text before it.
_NUMERALS = (
    re.compile(
        rf"(?P<number>(?:{_ARABIC})(?:\ ?(?:{_SCALE}))?(?:(?<=[亿万])[0-9]{{1,4}}(?:\.[0-9]{{1,9}})?[万千])?)" + _AFTER,
        re.IGNORECASE,
    ),
    re.compile(
        rf"(?P<number>[{CHINESE_NUMERALS}]{{1,20}}(?:点[零〇○一二三四五六七八九]{{1,20}})?)" + _AFTER, re.IGNORECASE
    ),
)
_NUMBER_WORDS = re.compile(
    rf"\b(?P<words>(?:a )?(?:{_WORD})(?:[ -](?:and )?(?:{_WORD})){{0,16}})\b" + _AFTER, re.IGNORECASE
)
_HAS_WORD = re.compile(rf"(?:{_WORD})\b", re.IGNORECASE)
_PART = re.compile(rf"(?P<number>{_ARABIC})\ ?(?P<scale>{_SCALE})?", re.IGNORECASE)


def find_numbers(text: str) -> Iterator[tuple[int, int, str, str]]:
    """Yield (start, end, value, unit) of each number; unit: "" or a key of UNITS.

    The span includes the unit; the value is a decimal number without trailing zeros. Numbers in digits come first, then
    Chinese numerals, then English words.
    """
    for pattern, value_of in zip(_NUMERALS, (_arabic_number, chinese_number), strict=True):
        for match in pattern.finditer(text):
            prefix = _prefix(text[max(0, match.start() - 8) : match.start()])
            value = value_of(match["number"]) if prefix else None
            if prefix and value is not None:
                length, sign, symbol = prefix
                unit = _SYMBOLS.get((match["unit"] or symbol).lower(), "")
                yield match.start() - length, match.end(), _text(-value if sign else value), unit
    for match in _NUMBER_WORDS.finditer(text) if _HAS_WORD.search(text) else ():
        value = _english_number(match["words"].lower())
        if value is not None:
            yield match.start(), match.end(), _text(value), _SYMBOLS.get((match["unit"] or "").lower(), "")


def _prefix(before: str) -> tuple[int, bool, str] | None:
    """Return (length, has a minus sign, unit) of the sign, currency or 百分之 at the end of the text before a number.

    None if the number is part of a word or of another number (x3, 1.2.3).
    """
    last = before[-1:]
    if last.isascii() and last.isalnum():
        return None
    if last in (".", ",") and before[-2:-1].isdecimal():
        return None
    if before.endswith("百分之"):
        return 3, False, "%"
    length, sign = 0, False
    if last in ("-", "−") and not (before[-2:-1].isalnum() or before[-2:-1] == ")"):
        length, sign = 1, True
    rest = before[: len(before) - length]
    for symbol in ("US$", "$", "€", "¥"):
        for text in (symbol, symbol + " "):
            if rest.endswith(text):
                return length + len(text), sign, symbol
    return length, sign, ""


def _text(value: Decimal) -> str:
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def chinese_number(text: str) -> Decimal | None:
    """Return the value of a Chinese numeral (三万五千, 二〇一九, 三点五), or None if it is not well formed (万三)."""
    whole, point, decimals = text.partition("点")
    fraction = "".join(str(_DIGITS[digit]) for digit in decimals)
    if point and not fraction:
        return None
    if all(digit in _DIGITS for digit in whole):  # digit by digit, as in years
        digits = "".join(str(_DIGITS[digit]) for digit in whole)
        return Decimal(f"{digits}.{fraction or 0}") if digits else None
    total = section = 0  # section: the part before the next 万 or 亿
    digit: int | None = None
    scale = 1  # of the last numeral before the last digit
    for one in whole:
        if one in _DIGITS:
            if digit:  # 三四百 is an approximate number
                return None
            digit = _DIGITS[one]
            scale = 1 if one in "零〇○" else scale
        elif one in _TENS:
            if digit is None and section:
                return None
            section += (1 if digit is None else digit) * _TENS[one]
            digit, scale = None, _TENS[one]
        else:
            section += digit or 0
            if not section and not total:
                return None
            if one in "亿億":
                total = (total + section) * _MYRIADS[one]
            else:
                total += section * _MYRIADS[one]
            section, digit, scale = 0, None, _MYRIADS[one]
    last = (digit or 0) * (scale // 10 if scale >= 100 and digit else 1)  # 二百五 is 250
    return Decimal(f"{total + section + last}.{fraction or 0}")


def _arabic_number(text: str) -> Decimal | None:
    """Return the value of digits with separators and scales: 30,000, 3 万, 1亿2000万, 3.2 million."""
    total = Decimal(0)
    for part in _PART.finditer(text):
        total += Decimal(re.sub("[,，]", "", part["number"])) * _scale(part["scale"] or "")
    return total


def _scale(name: str) -> int:
    lower = name.lower()
    if lower.removesuffix("s") in _SCALES:
        return _SCALES[lower.removesuffix("s")]
    product = 1
    for character in lower:
        product *= (_TENS | _MYRIADS)[character]
    return product


def _english_number(text: str) -> Decimal | None:
    """Return the value of number words (three hundred and five thousand), or None if they do not form one number."""
    total = group = 0
    room = 1000  # the next word must be smaller than this
    limit = 10**15
    for word in re.split("[ -]", text):
        if word in ("a", "and"):
            group = 1 if word == "a" else group
            continue
        if word in _WORDS:
            value = _WORDS[word]
            if value >= room:
                return None
            group += value
            room = 10 if value >= 20 else 0
        elif word == "hundred":
            if not 0 < group < 10:
                return None
            group, room = group * 100, 100
        else:
            if not group or _SCALES[word] >= limit:
                return None
            limit = _SCALES[word]
            total, group, room = total + group * limit, 0, 1000
    return Decimal(total + group)
