"""Decide whether a sentence may state a relation of the graph between two of its entities.

A sentence that mentions two related entities often states something else about them. Two checks raise precision at the
cost of recall: words of the relation's name in the sentence (birth, born for /people/person/place_of_birth), and a
largest distance between the two mentions.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

# Words of relation names -> words that express them in sentences.
_SYNONYMS = {
    "birth": "born", "death": "die", "death_place": "die", "spouse": "marr wife husband wed", "marriage": "marr wife",
    "author": "wr", "written": "wr", "nationality": "born citizen", "employer": "work employ", "education": "stud educ",
    "institution": "stud graduat attend universit", "student": "stud graduat attend", "capital": "capital",
    "founders": "found establish", "founder": "found establish", "parents": "son daughter father mother",
    "children": "son daughter father mother", "religion": "religio church", "profession": "",
    "headquarters": "headquarter based seat", "director": "direct", "producer": "produc", "actor": "star act play",
    "film": "star film", "starring": "star", "contains": "in of", "adjoins": "border adjacent neighbo",
    "currency": "currency", "language": "langu speak spoken", "languages": "langu speak spoken",
}  # fmt: skip
_IGNORED = frozenset(["the", "and", "for", "from", "has", "is", "was", "with", "person", "place", "location", "date"])
_LATIN = re.compile(r"[A-Za-z]+")
_HAN = re.compile(r"[\u3400-\u9fff]{2,}")
Span = tuple[int, int]
STEM = 5  # letters of a word that must agree: "locat" for located and location


def evidence_words(relation: str, given: Iterable[str] = ()) -> list[str]:
    """Return the words, or beginnings of words, that express a relation.

    relation: its name in the graph; of a path such as /people/person/place_of_birth, the last part counts. given:
    further words, from the user.
    """
    last = re.split(r"[/#]", relation.rstrip("/#"))[-1]
    words = [word.lower() for word in _LATIN.findall(re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", last))]
    found = [word[:STEM] for word in words if len(word) > 2 and word not in _IGNORED]
    found += [synonym for word in words for synonym in _SYNONYMS.get(word, "").split()]
    for run in _HAN.findall(last):
        found += [run[at : at + 2] for at in range(len(run) - 1)]
    return list(dict.fromkeys([*given, *found]))


class RelationEvidence:
    """The two checks. words: relation -> further words that express it. largest_gap: in characters; 0: no limit.

    require_words: whether a sentence must have a word of the relation; a relation without words then always passes.
    """

    def __init__(self, words: Mapping[str, list[str]], require_words: bool, largest_gap: int) -> None:
        self.words, self.require_words, self.largest_gap = words, require_words, largest_gap
        self._pattern = lru_cache(1 << 12)(self._pattern_of)

    def accepts(self, relation: str, text: str, sentence: Span, first: Span, second: Span) -> bool:
        """Return whether a sentence may state a relation between two mentions; the spans are [start, end) in `text`."""
        if self.largest_gap and max(second[0] - first[1], first[0] - second[1]) > self.largest_gap:
            return False
        pattern = self._pattern(relation) if self.require_words else None
        if pattern is None:
            return True
        words = pattern.finditer(text, *sentence)
        return any(not any(start <= word.start() < end for start, end in (first, second)) for word in words)

    def _pattern_of(self, relation: str) -> re.Pattern[str] | None:
        words = evidence_words(relation, self.words.get(relation, ()))
        parts = [rf"\b{re.escape(word)}" if word.isascii() else re.escape(word) for word in words]
        return re.compile("|".join(parts), re.IGNORECASE) if parts else None
