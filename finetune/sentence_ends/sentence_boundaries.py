"""Find where sentences end in Chinese, English and code, with one compiled pattern for each.

`benchmarks/bench_sentences.py` compares the patterns with ICU by speed, and by precision and recall on labelled texts.
"""

import re
from itertools import groupby

LANGUAGES = ("auto", "en", "zh", "code")


def _not_after(words: str) -> str:
    """Return a pattern that matches a position that does not follow one of `words` and a full stop.

    A lookbehind needs a fixed length, so there is one for each word length.
    """
    by_length = groupby(sorted(words.split(), key=len), len)
    return "".join(rf"(?<!(?a:\b)(?:{'|'.join(map(re.escape, same))})\.)" for _, same in by_length)


# Every pattern begins with a character of _FIRST, which the regular expression engine finds quickly; the rest of the
# pattern checks the position after it. In every language a sentence ends after a newline and the blank lines that
# follow; a punctuation mark directly before a newline adds no second end. Quantifiers are possessive (one in a
# lookahead is lazy), and a run of marks is matched only from its first mark, so that the time is linear in the length
# of the text.
_FIRST = r"[\n.!?。！？…]"
_NEWLINE = r"(?<=\n)(?:[^\S\n]*+\n)*+"
_NO_NEWLINE = r"(?![^\S\n]*+\n)"
_NO_CONTINUATION = r"(?![，、；：。！？…》,;:.!?\]])"  # 《谁？》 is a title, [谁？](…) is the text of a link
_CHINESE = (
    r"(?<![。！？…!?].)"
    r"(?:(?<=[。！？])|(?<=[!?])(?=[。！？])|(?<=[!?…])(?=[。！？!?…]*?[!?][。！？])|(?<=\w…)(?=[…。！？]))"
    rf"[。！？!?…]*+[”’」』）】\")]*+{_NO_CONTINUATION}{_NO_NEWLINE}"
)
_TITLES = "Mr Mrs Ms Dr St Mt Jr Sr Lt Prof Gen Col Capt Sgt Maj Gov Sen Rev Hon Ave Blvd Dept Inc Ltd"
_TERMS = "Fig Figs Eq Eqs Sec vs cf al approx e.g i.e"
_BEFORE_NUMBERS = "No no Nos nos Vol vol Ch pp p Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec"
_LIST_ITEM = r"(?:^|(?<=[.!?:;] ))"
_NO_ABBREVIATION = (
    _not_after(f"{_TITLES} {_TERMS}")
    + r"(?<!(?a:\b)[A-Z]\.)"  # initials: J. Smith, the U.S. Army
    + rf"(?<!{_LIST_ITEM}\d\.)(?<!{_LIST_ITEM}\d\d\.)"  # numbers of list items: 1. First item
    + rf"(?:(?!\s\d)|{_not_after(_BEFORE_NUMBERS)})"  # "No. 5" continues; "He said no. Five did not." is two sentences
)
# The next two patterns check the text after the mark first, since most positions fail that check, and abbreviations
# second, which is slower.
_CHINESE_ASCII_CLOSE = r"[!?]*+[”’」』）】\")]*+"
_CHINESE_ASCII = (
    rf"(?<=[.!?])(?<![!?].)(?={_CHINESE_ASCII_CLOSE}[^\S\n]*+[\u3400-\u9fff])"
    rf"(?:(?<=[!?])|(?<=[^\W\d_]{{2}}\.){_NO_ABBREVIATION}){_CHINESE_ASCII_CLOSE}"  # excludes 1.打开 and A.B.公司
)
_ENGLISH_CLOSE = r"[.!?…]*+[\"'”’)\]*_]*+"
_ENGLISH = (
    rf"(?<=[.!?…])(?<![.!?…].)(?={_ENGLISH_CLOSE}[^\S\n]++[^\sa-z,;:.!?])"
    rf"{_NO_ABBREVIATION}{_ENGLISH_CLOSE}"
)
_SENTENCE_ENDS = {
    language: re.compile(pattern, re.MULTILINE)
    for language, pattern in {
        "auto": f"{_FIRST}(?:{_NEWLINE}|{_CHINESE}|{_CHINESE_ASCII}|{_ENGLISH})",
        "en": rf"[\n.!?…](?:{_NEWLINE}|{_ENGLISH})",
        "zh": f"{_FIRST}(?:{_NEWLINE}|{_CHINESE}|{_CHINESE_ASCII})",
        "code": rf"\n{_NEWLINE}",
    }.items()
}
_CLAUSE_END = re.compile(r"[,;:)\]}](?!\d)|[，；：、。！？—）】》”]")
_WORD_END = re.compile(r"(?<=\S)(?=\s)")

_ALPHANUMERIC = re.compile(r"[^\W_]")
_BLOCK = 2**16  # characters
# If there is no letter or digit in this number of characters before `start` (after `stop`), `sentence_ends_between`
# searches the text from its beginning (to its end).
_LONGEST_GAP = 1000


def sentence_ends(text: str, language: str = "auto") -> list[int]:
    """Return the ends of the sentences of a text: ascending positions in characters.

    A position is after the sentence's last mark, closing quotation marks and newlines included. language: `auto`
    (Chinese and English rules together), `en`, `zh`, or `code` (each line ends a sentence, with the blank lines that
    follow). The text is searched in blocks, between which other threads can run, since `re` holds Python's global lock
    during a search. A block ends after a letter or digit, across which no rule matches; if 65,536 characters contain
    none, it ends after these.
    """
    pattern, ends, start = _SENTENCE_ENDS[language], [], 0
    while start < len(text):
        letter = _ALPHANUMERIC.search(text, start + _BLOCK, start + 2 * _BLOCK)
        stop = letter.end() if letter else start + 2 * _BLOCK
        ends += [match.end() for match in pattern.finditer(text, start, stop)]
        start = stop
    return ends


def sentence_ends_between(text: str, language: str, start: int, stop: int) -> list[int]:
    """Return the sentence ends from `start` to `stop`, both included, usually without reading the rest of the text.

    No rule matches across a letter or digit, or looks ahead beyond the next one. A search between two letters or digits
    therefore finds the same ends as a search of the whole text. If the next letter or digit is more than 1,000
    characters away, the text is searched from its beginning or to its end.
    """
    first, last = start, stop
    while first > 0 and not text[first - 1].isalnum():
        first = first - 1 if start - first < _LONGEST_GAP else 0
    while last < len(text) and not text[last].isalnum():
        last = last + 1 if last - stop < _LONGEST_GAP else len(text)
    matches = _SENTENCE_ENDS[language].finditer(text, first, last + 1)
    return [end for match in matches if start <= (end := match.end()) <= stop]


def clause_ends(text: str) -> list[int]:
    """Return the ends of clauses, to cut long sentences: ascending positions after commas, closing brackets etc."""
    return [match.end() for match in _CLAUSE_END.finditer(text)]


def word_ends(text: str) -> list[int]:
    """Return the ends of words, to cut long clauses: ascending positions before white space."""
    return [match.end() for match in _WORD_END.finditer(text)]
