"""Write a document as annotated sentences: the linked entities of each sentence, and the graph's triples between them.

A row has the form that ie_build.py reads, and in addition the ids of the graph:
    {"sentence", "entity_list": [{"name", "type", "spans", "id"}],
     "relation_list": [{"subject", "relation", "object", "subject_type", "object_type", "subject_spans", "object_spans",
                        "subject_id", "object_id"}]}
The object of a relation may be a date or a number, which is not listed among the entities; its object_id is the literal
of the graph. Relations connect mentions of one sentence, also if a row has several sentences.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from literal_values.literal_mentions import LiteralMention, find_literals, is_date, literal_text
from sentence_ends.sentence_boundaries import sentence_ends

from graph_linking.entity_linking import EntityMention
from graph_linking.graph_files import ANY_TYPE, Schema, SchemaRule
from graph_linking.graph_index import GraphIndex
from graph_linking.relation_evidence import RelationEvidence

Row = dict[str, Any]
Sentences = Literal["linked", "related", "all"]
DEFAULT_TYPE = "entity"  # of an entity without a type in the graph
# Names of the kinds of literals in schemas; the first one is written if there is no schema.
DATE_TYPES = ("date", "time", "year", "日期", "时间", "年份")
NUMBER_TYPES = ("number", "quantity", "数值", "数量", "数字")
TEXT_TYPES = ("text", "文本")
NEAREST = 64  # entities after an entity in its sentence with which it is compared: linear in the sentence's length
MOST_LITERAL_CHARACTERS = 20_000  # of a sentence that is searched for dates and numbers


class AnnotationSettings(NamedTuple):
    """What is written. schema: allowed triples, None: all; sentences: rows to keep: with a linked entity, with a
    relation, or all; sentences_per_row: consecutive sentences of a document that form a row."""

    schema: Schema | None
    evidence: RelationEvidence
    sentences: Sentences = "linked"
    sentences_per_row: int = 1


def annotate_document(
    index: GraphIndex, settings: AnnotationSettings, text: str, mentions: list[EntityMention]
) -> Iterator[Row]:
    """Yield the rows of a document. mentions: its linked names, by position."""
    if not mentions and settings.sentences != "all":
        return
    at, start, ends = 0, 0, _row_ends(text, settings.sentences_per_row)
    for row_ends in ends:
        entities, relations = list[Row](), list[Row]()
        row_text, offset = _stripped(text, start, row_ends[-1])
        for end in row_ends:
            first = at
            while at < len(mentions) and mentions[at].start < end:
                at += 1
            inside = [one for one in mentions[first:at] if one.end <= end]
            if inside:
                entities += [
                    _entity(index, settings.schema, row_text, one, offset) for one in inside if one.entity >= 0
                ]
                relations += _relations(index, settings, row_text, inside, offset, (max(start, offset), end))
            start = end
        entities = [entity for entity in entities if entity["type"]]
        kept = {"linked": entities or relations, "related": relations, "all": True}[settings.sentences]
        if row_text and kept:
            yield {"sentence": row_text, "entity_list": entities, "relation_list": relations}


def _row_ends(text: str, sentences_per_row: int) -> Iterator[list[int]]:
    """Yield the ends of the sentences of each row."""
    ends = sentence_ends(text)
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    for at in range(0, len(ends), sentences_per_row):
        yield ends[at : at + sentences_per_row]


def _stripped(text: str, start: int, end: int) -> tuple[str, int]:
    """Return text[start:end] without surrounding white space, and the position at which it begins in the text."""
    part = text[start:end].rstrip()
    stripped = part.lstrip()
    return stripped, start + len(part) - len(stripped)


def is_text_literal(key: str) -> bool:
    """Return whether the id of an entity is a text in quotation marks, which is a literal and not an entity."""
    return key.startswith('"')


def _types(index: GraphIndex, entity: int) -> tuple[str, ...]:
    """Return the types of an entity."""
    return index.types(entity) or (TEXT_TYPES if is_text_literal(index.key(entity)) else (DEFAULT_TYPE,))


def _entity(index: GraphIndex, schema: Schema | None, text: str, mention: EntityMention, offset: int) -> Row:
    """Return the entry of a mention; its type is "" if it is a text literal, which is not listed.

    Of several types, the first one that occurs in the schema counts, else the first one.
    """
    types, key = _types(index, mention.entity), index.key(mention.entity)
    if schema and len(types) > 1:
        known = {kind for rules in schema.values() for rule in rules for kind in (rule.subject_type, rule.object_type)}
        types = tuple(kind for kind in types if kind in known) or types
    start, end = mention.start - offset, mention.end - offset
    kind = "" if is_text_literal(key) else types[0]
    return {"name": text[start:end], "type": kind, "spans": [[start, end]], "id": key}


def _relations(
    index: GraphIndex, settings: AnnotationSettings, text: str, mentions: list[EntityMention], offset: int,
    sentence: tuple[int, int],
) -> list[Row]:  # fmt: skip
    """Return the triples of the graph between the mentions of a sentence, and between them and its literals.

    offset: position of `text`, the row, in the document. sentence: [start, end) in the document.
    """
    found: dict[tuple[int, str, str], Row] = {}
    gaps: dict[tuple[int, str, str], int] = {}

    def add(relation: int, head: EntityMention, start: int, end: int, object_id: str, kinds: tuple[str, ...]) -> None:
        name = index.relation_names[relation]
        rule = allowed_rule(settings.schema, name, _types(index, head.entity), kinds)
        subject, object = (head.start - offset, head.end - offset), (start - offset, end - offset)
        gap = max(subject[0] - object[1], object[0] - subject[1])
        key = (head.entity, name, object_id)
        if rule is None or gap < 0 or gaps.get(key, gap + 1) <= gap:  # of several mentions, the nearest count
            return
        span = (sentence[0] - offset, sentence[1] - offset)
        if not settings.evidence.accepts(name, text[span[0] : span[1]], *_moved(subject, object, span[0])):
            return
        gaps[key] = gap
        found[key] = {
            "subject": text[slice(*subject)], "relation": rule.label, "object": text[slice(*object)],
            "subject_type": rule.subject_type, "object_type": rule.object_type, "subject_spans": [list(subject)],
            "object_spans": [list(object)], "subject_id": index.key(head.entity), "object_id": object_id,
        }  # fmt: skip

    for at, first in enumerate(mentions):
        for second in mentions[at + 1 : at + 1 + NEAREST]:
            if first.entity != second.entity:
                for head, tail in ((first, second), (second, first)):
                    for relation in index.relations_between(head.entity, tail.entity):
                        kinds = _types(index, tail.entity)
                        id = index.key(tail.entity)
                        id = literal_text(id) if is_text_literal(id) else id
                        add(relation, head, tail.start, tail.end, id, kinds)
    for head, relation, literal, keys, place in _literal_matches(index, text, mentions, offset, sentence):
        kinds = DATE_TYPES if is_date(keys & place.keys) else NUMBER_TYPES
        add(relation, head, place.start, place.end, literal, kinds)
    return list(found.values())


def _moved(first: tuple[int, int], second: tuple[int, int], by: int) -> list[tuple[int, int]]:
    return [(start - by, end - by) for start, end in (first, second)]


def _literal_matches(
    index: GraphIndex, text: str, mentions: list[EntityMention], offset: int, sentence: tuple[int, int]
) -> Iterator[tuple[EntityMention, int, str, frozenset[str], LiteralMention]]:
    """Yield (subject, relation, literal, its keys, its place in the document) for the literals in a sentence.

    A date or number within the name of an entity does not count.
    """
    subjects = [(mention, literals) for mention in mentions if (literals := index.literals(mention.entity))]
    if not subjects:
        return
    start, end = sentence[0], min(sentence[1], sentence[0] + MOST_LITERAL_CHARACTERS)
    taken = {position for mention in mentions for position in (mention.start, mention.end - 1)}
    places: dict[str, list[LiteralMention]] = {}
    for place in find_literals(text[start - offset : end - offset]):
        moved = LiteralMention(place.start + start, place.end + start, place.keys)
        if not taken.intersection(range(moved.start, moved.end)):
            for key in moved.keys:
                places.setdefault(key, []).append(moved)
    for mention, literals in subjects if places else ():
        for relation, literal, keys in literals:
            for place in [place for key in keys for place in places.get(key, ())][:NEAREST]:
                yield mention, relation, literal, keys, place


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
