"""Decide by the share of Chinese characters among the letters whether a text is English or Chinese."""

import re

LANGUAGES = ("en", "zh")
OTHER_NAMES = {"english": "en", "chinese": "zh"}  # accepted wherever a language is named

# Kana count as Chinese characters: Japanese is written without spaces, too.
CHINESE_CHARACTERS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# A Chinese text with many English terms is still Chinese: the lowest share in 675 Chinese documents of documentation,
# articles and verse was 0.202. A name in an English text stays below: at most 0.023 in XQuAD's English sentences. One
# Chinese character corresponds to three English letters (XQuAD's parallel passages: 3.03), so at 0.2 the Chinese part
# of a text says three quarters as much as the English part.
CHINESE_SHARE = 0.2

_CHINESE = re.compile(f"[{CHINESE_CHARACTERS}]+")
_OTHER_THAN_LETTERS = re.compile(r"[\W\d_]+")


def language_of(text: str, chinese_share: float = CHINESE_SHARE) -> str:
    """The language of a text: `zh` where at least `chinese_share` of its letters are Chinese characters, else `en`."""
    letters = _OTHER_THAN_LETTERS.sub("", text)
    chinese = len(letters) - len(_CHINESE.sub("", letters))
    return "zh" if chinese and chinese / len(letters) >= chinese_share else "en"


def language_code(name: str) -> str:
    """The code of a language's name (`english` is `en`, `chinese` is `zh`); any other name is returned as it is."""
    return OTHER_NAMES.get(name, name)
