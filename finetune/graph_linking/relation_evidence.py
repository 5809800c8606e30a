"""Decide whether a sentence may state a relation of the graph between two of its entities.

A sentence that names two related entities often states something else about them. Two checks raise precision at the
cost of recall: a largest distance between the two mentions, and words of the relation's name near the mentions (birth,
born for /people/person/place_of_birth). For "is in" relations between places, the words between the mentions count:
"Oslo, Norway", "Oslo in southern Norway", "Norway's capital Oslo".
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

# Words of relation names -> beginnings of words that express them in sentences.
_SYNONYMS = {
    "birth": "born native", "death": "died dies killed", "spouse": "marr wife husband wed", "marriage": "marr wife",
    "author": "wrote writ", "written": "wrote writ", "nationality": "born citizen native", "employer": "work employ",
    "education": "stud graduat", "institution": "stud graduat attend", "student": "stud graduat attend",
    "students": "stud graduat attend", "founders": "found establish", "founder": "found establish",
    "parents": "son daughter father mother", "children": "son daughter father mother", "religion": "church faith",
    "headquarters": "based seat", "director": "direct", "starring": "star", "actor": "star play", "winner": "won win",
    "adjoins": "border adjacent neighbo", "combatants": "war fought battle", "languages": "speak spoke language",
    "language": "speak spoke", "lived": "live native resid", "profession": "work", "member": "member join",
}  # fmt: skip
_IGNORED = frozenset(
    ["the", "and", "for", "from", "has", "with", "person", "place", "places", "location", "date", "category", "node"]
)
_LATIN = re.compile(r"[A-Za-z]+")
_HAN = re.compile(r"[\u3400-\u9fff]{2,}")
NEAR = 40  # characters before the first and after the second mention in which a word of the relation counts
MOST_BETWEEN = 120  # characters; between more distant mentions, no word of the relation counts
# Relations of a place to the larger place that it is in, and the reverse; their names must match _OF_PLACES.
_OF_PLACES = re.compile("locat|aareas|administrative|continent")
_IN_OBJECT = frozenset(["country", "state", "administrative_parent", "citytown", "state_province_region", "located_in"])
_IN_SUBJECT = frozenset(["contains", "partially_contains", "countries_within"])
_INNER_FIRST = re.compile(r"\s*,\s*|\s*,?\s+(?:in|at)\s+(?:\w+\s+){0,3}(?:of\s+)?")
_OUTER_FIRST = re.compile(r"\s*['’]s\s+(?:\w+\s+){0,3},?\s*")
Span = tuple[int, int]  # [start, end) in characters


class RelationForm(NamedTuple):
    """How sentences express a relation. words: None if no word is known; outer: which end of an "is in" relation is the
    larger place, "subject" or "object", or "" for another relation."""

    words: re.Pattern[str] | None
    outer: str


def evidence_words(relation: str, given: Iterable[str] = ()) -> list[str]:
    """Return the words, or beginnings of words, that express a relation.

    relation: its name in the graph; of a path such as /people/person/place_of_birth, the last part counts, or the one
    before it if the last part has only general words (place_lived/location). given: further words, from the user.
    """
    found = list[str]()
    for part in reversed(_parts(relation)[-2:]):
        words = [word.lower() for word in _LATIN.findall(re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", part))]
        found += [word[: max(5, len(word) - 3)] for word in words if len(word) > 2 and word not in _IGNORED]
        found += [synonym for word in words for synonym in _SYNONYMS.get(word, "").split()]
        for run in _HAN.findall(part):
            found += [run[at : at + 2] for at in range(len(run) - 1)]
        if found:
            break
    return list(dict.fromkeys([*given, *found]))


def _parts(relation: str) -> list[str]:
    return re.split(r"[/#]", relation.rstrip("/#"))


class RelationEvidence:
    """The two checks. words: relation -> further words that express it. largest_gap: in characters; 0: no limit.

    require_words: whether a sentence must have a word of the relation; a relation without words then always passes.
    """

    def __init__(self, words: Mapping[str, list[str]], require_words: bool, largest_gap: int) -> None:
        self.words, self.require_words, self.largest_gap = words, require_words, largest_gap
        self._form = lru_cache(1 << 12)(self._form_of)

    def accepts(self, relation: str, text: str, sentence: Span, subject: Span, object: Span) -> bool:
        """Return whether a sentence may state a relation between two mentions; the spans are positions in `text`."""
        first, second = sorted((subject, object))
        if self.largest_gap and second[0] - first[1] > self.largest_gap:
            return False
        if not self.require_words:
            return True
        form = self._form(relation)
        if form.outer:
            is_outer_first = first == (subject if form.outer == "subject" else object)
            between = text[first[1] : min(second[0], first[1] + MOST_BETWEEN)]
            if (_OUTER_FIRST if is_outer_first else _INNER_FIRST).fullmatch(between):
                return True
            if relation not in self.words:
                return False
        if form.words is None:
            return True
        if second[0] - first[1] > MOST_BETWEEN:
            return False
        places = form.words.finditer(text, max(sentence[0], first[0] - NEAR), min(sentence[1], second[1] + NEAR))
        return any(not any(start <= word.start() < end for start, end in (first, second)) for word in places)

    def _form_of(self, relation: str) -> RelationForm:
        words = evidence_words(relation, self.words.get(relation, ()))
        parts = [rf"\b{re.escape(word)}" if word.isascii() else re.escape(word) for word in words]
        last, outer = _parts(relation)[-1], ""
        if _OF_PLACES.search(relation):
            outer = "object" if last in _IN_OBJECT else "subject" if last in _IN_SUBJECT else ""
        return RelationForm(re.compile("|".join(parts), re.IGNORECASE) if parts else None, outer)
