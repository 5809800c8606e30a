"""The harm filter: drop offers of harmful goods and services, and texts that are navigation bars or keyword lists.

A text is divided into parts of about PART_CHARACTERS characters, and dropped if at least half of the parts are offers,
navigation bars or keyword lists. The time is linear in the length of the text.
"""

import math
from collections import Counter
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter
from text_language.language_detection import LANGUAGE_ALIASES

from text_cleaning.offer_evidence import evidence_points
from text_cleaning.page_structure import page_kind
from text_cleaning.phrase_finder import PhraseFinder
from text_cleaning.text_folding import JOINED, fold

PART_CHARACTERS = 600
# A part with phrases of the word list is an offer if it has contact data, a link, a call to action or a price, and at
# least `points` points: `phrase` for the first phrase, 1 for each of up to `further` other phrases, `disguised` for
# each of up to two disguised words, and the points of offer_evidence.py. It is a keyword list if it has no evidence of
# a report, and at least `mentions` occurrences of phrases, which take at least `share` of its characters. Keyword lists
# without phrases: page_structure.py.
HARM_LIMITS = {"points": 6, "phrase": 2, "further": 3, "disguised": 2, "mentions": 2, "share": 0.35}


class HarmFilter(BaseFilter):
    """Drops offers of the goods and services in a word list, navigation bars and keyword lists.

    word_lists: language -> folded phrases (text_folding.py). Documents in other languages are kept.
    """

    name = "harm"

    def __init__(self, word_lists: dict[str, list[str]], writer: DiskWriter | None = None) -> None:
        super().__init__(writer)
        self.phrases = {
            language: PhraseFinder(phrases, whole_words=language == "en") for language, phrases in word_lists.items()
        }

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Return True to keep the document, else False and the most frequent reason among its parts."""
        language, text = doc.metadata["language"], doc.text
        if language not in self.phrases:
            return True
        parts = max(1, round(len(text) / PART_CHARACTERS))
        size = math.ceil(len(text) / parts) or 1
        reasons: Counter[str] = Counter()
        for at in range(0, len(text), size):
            reasons[self._reason(fold(text[at : at + size]), language)] += 1
            if reasons[""] * 2 > parts:  # more than half of the parts are kept
                return True
        del reasons[""]
        return (False, reasons.most_common(1)[0][0]) if reasons else True

    def _reason(self, part: str, language: str) -> str:
        """Return the reason to drop a folded part of a text: "offer", "navigation" or "keyword_list"; "" if none."""
        phrases = self.phrases[language].find(part)
        return (phrases and reason_of_phrases(part, phrases)) or page_kind(part, language)


def reason_of_phrases(text: str, phrases: list[str]) -> str:
    """Return "offer" or "keyword_list" if the phrases in a folded text show that it is one of these, else "".

    phrases: the phrases of the word list in the text, in order, with repetitions.
    """
    points = evidence_points(text)
    if any(points[kind] for kind in ("contact", "link", "call", "price")):
        disguised = text.count(JOINED) + sum(any(map(str.isdigit, phrase)) or "@" in phrase for phrase in set(phrases))
        of_phrases = HARM_LIMITS["phrase"] + min(HARM_LIMITS["further"], len(set(phrases)) - 1)
        of_phrases += HARM_LIMITS["disguised"] * min(2, disguised)
        if sum(points.values()) + of_phrases >= HARM_LIMITS["points"]:
            return "offer"
    mostly_phrases = sum(map(len, phrases)) >= HARM_LIMITS["share"] * len(text.strip())
    listed = len(phrases) >= HARM_LIMITS["mentions"] and mostly_phrases and not points["report"]
    return "keyword_list" if listed else ""


def read_word_lists(folder: Path) -> dict[str, list[str]]:
    """Read the word lists en.txt and zh.txt of a folder: language -> sorted phrases, folded (text_folding.py).

    A list has one phrase per line; lines that begin with # are comments. english.txt and chinese.txt are also read.
    Raises FileNotFoundError if the folder has no list, ValueError if a list is not UTF-8.
    """
    phrases: dict[str, set[str]] = {}
    for name, language in {"en": "en", "zh": "zh", **LANGUAGE_ALIASES}.items():
        path = folder / f"{name}.txt"
        if path.is_file():
            try:
                lines = [line.strip().lower() for line in path.read_text(encoding="utf-8-sig").splitlines()]
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path} is not UTF-8 ({error.reason} at byte {error.start + 1}); convert it"
                ) from None
            if found := {fold(line).replace(JOINED, "") for line in lines if line and not line.startswith("#")}:
                phrases.setdefault(language, set()).update(found)
    if not phrases:
        raise FileNotFoundError(
            f"{folder} has neither an en.txt nor a zh.txt with phrases; name a folder with them: --word_lists"
        )
    return {language: sorted(each) for language, each in phrases.items()}
