"""Detect whether a text is English or Chinese by the share of Chinese characters among its letters."""

import re

LANGUAGES = ("en", "zh")
LANGUAGE_ALIASES = {"english": "en", "chinese": "zh"}  # full names of the languages; see language_code

# Han characters and kana. Japanese counts as Chinese, since it is also written without spaces.
CJK_CHARACTERS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Chinese texts with many English terms must count as Chinese: the lowest share in 675 Chinese documents (documentation,
# articles and verse) was 0.202. English texts with Chinese names must not: the highest share in XQuAD's English
# sentences was 0.023. One Chinese character corresponds to three English letters (XQuAD's parallel passages: 3.03), so
# at 0.2 the Chinese part of a text carries three quarters (0.2 x 3 / 0.8) as much content as the English part.
CHINESE_SHARE = 0.2

_CJK = re.compile(f"[{CJK_CHARACTERS}]+")
_OTHER_THAN_LETTERS = re.compile(r"[\W\d_]+")


def language_of(text: str, chinese_share: float = CHINESE_SHARE) -> str:
    """Return `zh` if at least `chinese_share` of a text's letters are Chinese characters, else `en`."""
    letters = _OTHER_THAN_LETTERS.sub("", text)
    chinese = len(letters) - len(_CJK.sub("", letters))
    return "zh" if chinese and chinese / len(letters) >= chinese_share else "en"


def language_code(name: str) -> str:
    """Return the code of a language name (`english`: `en`, `chinese`: `zh`); other names are returned unchanged."""
    return LANGUAGE_ALIASES.get(name, name)
