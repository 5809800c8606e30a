"""Where sentences end in Chinese, English and code: one compiled pattern for each, measured against ICU.

`benchmarks/bench_sentences.py` is that comparison; `segmentation.py` cuts documents here.
"""

import re
from itertools import groupby

LANGUAGES = ("auto", "chinese", "english", "code")


def _not_after(words: str) -> str:
    """Pattern of a place that none of these words with a full stop stands before; a lookbehind is of one length."""
    lengths = groupby(sorted(words.split(), key=len), len)
    return "".join(rf"(?<!(?a:\b)(?:{'|'.join(map(re.escape, same))})\.)" for _, same in lengths)


# Patterns that begin after one character of _FIRST, so that the search for it is a quick one. A newline with the blank
# lines after it ends a sentence in every language; what stands before a newline does not end one of its own. Repeats
# are possessive: a run of 100,000 dots or spaces takes no longer than 100,000 letters.
_FIRST = r"[\n.!?。！？…]"
_NEWLINE = r"(?<=\n)(?:[^\S\n]*+\n)*+"
_NO_NEWLINE = r"(?![^\S\n]*+\n)"
_GOES_ON = r"(?![，、；：。！？…》,;:.!?\]])"  # no sentence begins so; 《谁？》 is a title, [谁？](…) a link's text
_CHINESE = (
    r"(?:(?<=[。！？])|(?<=\w…)(?=[…。！？]))(?<![。！？…].)"
    rf"[。！？!?…]*+[”’」』）】\")]*+{_GOES_ON}{_NO_NEWLINE}"
)
_TITLES = "Mr Mrs Ms Dr St Mt Jr Sr Lt Prof Gen Col Capt Sgt Maj Gov Sen Rev Hon Ave Blvd Dept Inc Ltd"
_TERMS = "Fig Figs Eq Eqs Sec vs cf al approx e.g i.e"
_NUMBERED = "No no Nos nos Vol vol Ch pp p Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec"
_ROW = r"(?:^|(?<=[.!?:;] ))"
_ABBREVIATION = (
    _not_after(f"{_TITLES} {_TERMS}")
    + r"(?<!(?a:\b)[A-Z]\.)"  # J. Smith, the U.S. Army
    + rf"(?<!{_ROW}\d\.)(?<!{_ROW}\d\d\.)"  # 1. the number of a list's row
    + rf"(?:(?!\s\d)|{_not_after(_NUMBERED)})"  # No. 5, but: He said no. Five others did not ask.
)
# In these two, how a sentence goes on is looked at before the many abbreviations are: most places fail at that.
_CHINESE_ASCII_CLOSE = r"[!?]*+[”’」』）】\")]*+"
_CHINESE_ASCII = (
    rf"(?<=[.!?])(?<![!?].)(?={_CHINESE_ASCII_CLOSE}[^\S\n]*+[\u3400-\u9fff])"
    rf"(?:(?<=[!?])|(?<=[^\W\d_]{{2}}\.){_ABBREVIATION}){_CHINESE_ASCII_CLOSE}"  # neither 1.打开 nor A.B.公司
)
_ENGLISH_CLOSE = r"[.!?…]*+[\"'”’)\]*_]*+"
_ENGLISH = (
    rf"(?<=[.!?…])(?<![.!?…].)(?={_ENGLISH_CLOSE}[^\S\n]++[^\sa-z,;:.!?])"
    rf"{_ABBREVIATION}{_ENGLISH_CLOSE}"
)
_SENTENCES = {
    "auto": f"{_FIRST}(?:{_NEWLINE}|{_CHINESE}|{_CHINESE_ASCII}|{_ENGLISH})",
    "chinese": f"{_FIRST}(?:{_NEWLINE}|{_CHINESE}|{_CHINESE_ASCII})",
    "english": rf"[\n.!?…](?:{_NEWLINE}|{_ENGLISH})",
    "code": rf"\n{_NEWLINE}",
}
_SENTENCE_END = {language: re.compile(pattern, re.MULTILINE) for language, pattern in _SENTENCES.items()}

_FAR = 1000  # characters without a letter or digit


def sentence_ends(text: str, language: str = "auto") -> list[int]:
    """Where sentences end, ascending: positions in characters, just after the closing quote or the newline.

    language: auto (Chinese and English rules together), chinese, english, or code (lines, with the blank lines after).
    """
    return [match.end() for match in _SENTENCE_END[language].finditer(text)]


def ends_within(text: str, language: str, start: int, stop: int) -> list[int]:
    """The sentence ends from start to stop, both included, mostly without a look at the rest of the text.

    No rule's match goes over a letter or digit, and none looks further ahead than to the next one, so a search between
    two of them finds what a search of all finds. Where they are far, all of the text is searched.
    """
    first, last = start, stop
    while first > 0 and not text[first - 1].isalnum():
        first = first - 1 if start - first < _FAR else 0
    while last < len(text) and not text[last].isalnum():
        last = last + 1 if last - stop < _FAR else len(text)
    matches = _SENTENCE_END[language].finditer(text, first, last + 1)
    return [end for match in matches if start <= (end := match.end()) <= stop]
