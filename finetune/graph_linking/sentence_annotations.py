"""Write a document as annotated sentences: the linked entities of each sentence, and the graph's triples between them.

A row has the form that ie_build.py reads, and in addition the ids of the graph:
    {"sentence", "entity_list": [{"name", "type", "spans", "id"}],
     "relation_list": [{"subject", "relation", "object", "subject_type", "object_type", "subject_spans", "object_spans",
                        "subject_id", "object_id"}]}
The object of a relation may be a date or a number, which is not listed among the entities; its object_id is the literal
of the graph. Relations connect mentions of one sentence, also if a row has several sentences.
"""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any, Literal, NamedTuple

from literal_values.literal_mentions import LiteralMention, find_literals, is_date, literal_text
from sentence_ends.sentence_boundaries import sentence_ends

from graph_linking.entity_linking import EntityMention
from graph_linking.graph_files import ANY_TYPE, Schema, SchemaRule
from graph_linking.graph_index import CACHED, NUMBER, GraphIndex
from graph_linking.relation_evidence import RelationEvidence

Row = dict[str, Any]
Sentences = Literal["linked", "related", "all"]
DEFAULT_TYPE = "entity"  # of an entity without a type in the graph
# Names of the kinds of literals in schemas; the first one is written if there is no schema.
DATE_TYPES = ("date", "time", "year", "日期", "时间", "年份")
NUMBER_TYPES = ("number", "quantity", "数值", "数量", "数字")
TEXT_TYPES = ("text", "文本")
# Limits for one sentence, so that a long list of names takes linear time.
MOST_ENTITIES = 200  # different entities between which relations are sought
MOST_REPEATED = 8  # mentions of an entity among which the nearest is sought
MOST_LITERAL_CHARACTERS = 20_000  # of a sentence that is searched for dates and numbers


class AnnotationSettings(NamedTuple):
    """The content of the output.

    schema: allowed triples; None: all. sentences: the rows to write: those with a linked entity, those with a relation,
    or all. sentences_per_row: consecutive sentences of a document that form a row.
    """

    schema: Schema | None
    evidence: RelationEvidence
    sentences: Sentences = "linked"
    sentences_per_row: int = 1


class EntityDescription(NamedTuple):
    """An entity as rows describe it. type: "" for a text literal, which is not listed among the entities."""

    id: str
    type: str
    types: tuple[str, ...]
    literal_kinds: int  # DATE, NUMBER, their sum, or 0


class SentenceMention(NamedTuple):
    """A linked name in a row: [start, end) in characters of the row, and the entry of entity_list."""

    start: int
    end: int
    entity: int
    description: EntityDescription
    row: Row


ObjectCandidate = tuple[int, SentenceMention, int, int, str, tuple[str, ...]]


class SentenceAnnotator:
    """Writes the rows of documents."""

    def __init__(self, index: GraphIndex, settings: AnnotationSettings) -> None:
        self.index, self.settings = index, settings
        rules = [rule for rules in (settings.schema or {}).values() for rule in rules]
        self.schema_types = {kind for rule in rules for kind in (rule.subject_type, rule.object_type)}
        self.describe = lru_cache(CACHED)(self._describe)

    def _describe(self, entity: int) -> EntityDescription:
        """Describe an entity; of several types, the first one that occurs in the schema is written, else the first."""
        id, types = self.index.keys[entity], self.index.types(entity)
        kinds = self.index.literal_kinds[entity]
        if id.startswith('"'):  # quotation marks: a text, not an entity
            return EntityDescription(literal_text(id), "", types or TEXT_TYPES, kinds)
        types = types or (DEFAULT_TYPE,)
        kind = next((kind for kind in types if kind in self.schema_types), types[0])
        return EntityDescription(id, kind, types, kinds)

    def annotate(self, text: str, mentions: list[EntityMention]) -> Iterator[Row]:
        """Yield the rows of a document. mentions: its linked names, by position."""
        if not mentions and self.settings.sentences != "all":
            return
        ends, size = sentence_ends(text), self.settings.sentences_per_row
        if not ends or ends[-1] < len(text):
            ends.append(len(text))
        at = last = 0
        while last < len(ends):
            if self.settings.sentences != "all":  # continue at the row of the next mention
                if at == len(mentions):
                    return
                last = bisect_right(ends, mentions[at][0]) // size * size
            start, row_ends = ends[last - 1] if last else 0, ends[last : last + size]
            last += size
            row_text, offset = _stripped(text, start, row_ends[-1])
            entities, relations = list[Row](), list[Row]()
            for end in row_ends:
                sentence: list[SentenceMention] = []
                while at < len(mentions) and mentions[at][0] < end:
                    if mentions[at][1] <= end:
                        sentence.append(self._mention(row_text, mentions[at], offset))
                    at += 1
                entities += [one.row for one in sentence if one.row["type"]]
                if len(sentence) > 1 or (sentence and sentence[0].description.literal_kinds):
                    relations += self._relations(row_text, sentence, (max(start - offset, 0), end - offset))
                start = end
            if size > 1:  # sentences may repeat a triple
                seen = {(one["subject_id"], one["relation"], one["object_id"]): one for one in reversed(relations)}
                relations = list(reversed(seen.values()))
            if row_text and (relations or self.settings.sentences == "all" or (entities and self.is_linked_kept)):
                yield {"sentence": row_text, "entity_list": entities, "relation_list": relations}

    @property
    def is_linked_kept(self) -> bool:
        """Whether rows without a relation are written."""
        return self.settings.sentences == "linked"

    def _mention(self, text: str, mention: EntityMention, offset: int) -> SentenceMention:
        start, end, entity = mention[0] - offset, mention[1] - offset, mention[2]
        description = self.describe(entity)
        row = {"name": text[start:end], "type": description.type, "spans": [[start, end]], "id": description.id}
        return SentenceMention(start, end, entity, description, row)

    def _relations(self, text: str, mentions: list[SentenceMention], sentence: tuple[int, int]) -> list[Row]:
        """Return the triples of the graph between the mentions of a sentence, and between them and its literals.

        text: the row; sentence: [start, end) in it.
        """
        found: dict[tuple[int, int, str], tuple[int, Row]] = {}
        for relation, head, start, end, object_id, kinds in self._candidates(text, mentions, sentence):
            gap = max(head.start - end, start - head.end)
            key = (head.entity, relation, object_id)
            if gap < 0 or (key in found and found[key][0] <= gap):  # of several pairs, the nearest counts
                continue
            name = self.index.relation_names[relation]
            rule = allowed_rule(self.settings.schema, name, head.description.types, kinds)
            if rule is None or not self.settings.evidence.accepts(name, text, sentence, head[:2], (start, end)):
                continue
            row = {
                "subject": text[head.start : head.end], "relation": rule.label, "object": text[start:end],
                "subject_type": rule.subject_type, "object_type": rule.object_type,
                "subject_spans": [[head.start, head.end]], "object_spans": [[start, end]],
                "subject_id": head.description.id, "object_id": object_id,
            }  # fmt: skip
            found[key] = gap, row
        return [row for _, row in found.values()]

    def _candidates(
        self, text: str, mentions: list[SentenceMention], sentence: tuple[int, int]
    ) -> Iterator[ObjectCandidate]:
        """Yield (relation, subject, start and end of the object, its id, its types) of the graph's triples."""
        places: dict[int, list[SentenceMention]] = {}
        for mention in mentions:
            same = places.get(mention.entity)
            if same is None and len(places) < MOST_ENTITIES:
                places[mention.entity] = [mention]
            elif same is not None and len(same) < MOST_REPEATED:
                same.append(mention)
        others = set(places)
        for entity, heads in places.items() if len(places) > 1 else ():
            for relation, other in self.index.triples_among(entity, others):
                if other != entity:
                    for head, tail in product(heads, places[other]):
                        yield relation, head, tail.start, tail.end, tail.description.id, tail.description.types
        with_literals = [mention for mention in mentions[:MOST_ENTITIES] if mention.description.literal_kinds]
        if with_literals:
            yield from self._literals(text, mentions, with_literals, sentence)

    def _literals(
        self, text: str, mentions: list[SentenceMention], subjects: list[SentenceMention], sentence: tuple[int, int]
    ) -> Iterator[ObjectCandidate]:
        """Yield the same fields for literals as objects; dates and numbers within names of entities do not count."""
        begin, with_numbers = sentence[0], any(subject.description.literal_kinds & NUMBER for subject in subjects)
        found = find_literals(text[begin : min(sentence[1], begin + MOST_LITERAL_CHARACTERS)], with_numbers)
        if not found:
            return
        taken = {position for mention in mentions for position in (mention.start, mention.end - 1)}
        places: dict[str, list[LiteralMention]] = {}
        for place in found:
            if taken.isdisjoint(range(place.start + begin, place.end + begin)):
                for key in place.keys:
                    places.setdefault(key, []).append(place)
        literals = [(subject, *literal) for subject in subjects for literal in self.index.literals(subject.entity)]
        for subject, relation, literal, keys in literals:
            for place in [place for key in keys for place in places.get(key, ())][:MOST_REPEATED]:
                kinds = DATE_TYPES if is_date(keys & place.keys) else NUMBER_TYPES
                yield relation, subject, place.start + begin, place.end + begin, literal, kinds


def _stripped(text: str, start: int, end: int) -> tuple[str, int]:
    """Return text[start:end] without surrounding white space, and the position at which it begins in the text."""
    part = text[start:end].rstrip()
    stripped = part.lstrip()
    return stripped, start + len(part) - len(stripped)


def allowed_rule(
    schema: Schema | None, relation: str, subjects: tuple[str, ...], objects: tuple[str, ...]
) -> SchemaRule | None:
    """Return the first rule of the schema that allows a triple, with the types of this triple; None if no rule does.

    subjects, objects: the types of subject and object. Without a schema, every triple is allowed.
    """
    if schema is None:
        return SchemaRule(subjects[0], objects[0], relation)
    for rule in schema.get(relation, ()):
        subject = subjects[0] if rule.subject_type == ANY_TYPE else rule.subject_type
        object = objects[0] if rule.object_type == ANY_TYPE else rule.object_type
        lower = [kind.lower() for kind in objects]
        if subject in subjects and (object in objects or object.lower() in lower):
            return SchemaRule(subject, object, rule.label)
    return None
