"""Read rows of data sets for information extraction: IEPile, InstructIE, DuIE, NYT, DuEE and FewFC.

Offsets are in characters (Unicode code points). Mentions without offsets have no spans.
"""

from typing import Any

from annotation_reading.annotated_sentences import AnnotatedSentence, Entity, Event, Mention, Relation
from annotation_reading.json_row_files import (
    JsonObject,
    RowError,
    key_names,
    list_at,
    objects_at,
    sentence_of,
    span_of,
    string_at,
    text_at,
)

IEPILE_FORM = (
    '{"text", "entity": [{"entity", "entity_type"}], "relation": [{"head", "relation", "tail"}], "event": '
    '[{"event_trigger", "event_type", "arguments": [{"argument", "role"}]}]} with at least one of the lists'
)
INSTRUCTIE_FORM = '{"text" or "input", "relation" or "kg": [{"head", "relation", "tail"} or [head, relation, tail]]}'
DUIE_FORM = '{"text", "spo_list": [{"predicate", "subject", "object", "subject_type", "object_type"}]}'
NYT_FORM = '{"sentText", "relationMentions": [{"em1Text", "label", "em2Text"}]} or {"text", "triple_list": [[…]]}'
DUEE_FORM = '{"text", "event_list": [{"event_type", "trigger", "arguments": [{"role", "argument"}]}]}'
FEWFC_FORM = '{"content", "events": [{"type", "mentions": [{"word", "span": [start, end], "role"}]}]}'
NO_RELATION = "None"  # label of a pair without a relation in NYT
TRIGGER = "trigger"  # role of the trigger in FewFC


def read_iepile_row(row: JsonObject) -> AnnotatedSentence:
    """Return the sentence of an IEPile sample. A trigger or argument that is "" or "NAN" is dropped."""
    text = text_at(row, "text")
    if not any(isinstance(row.get(key), list) for key in ("entity", "relation", "event")):
        raise RowError(f"has no list under 'entity', 'relation' or 'event' (keys: {key_names(row)})")
    entities = relations = events = None
    if row.get("entity") is not None:
        entities = [
            Entity(string_at(item, "entity_type"), Mention(string_at(item, "entity")))
            for item in objects_at(row, "entity")
        ]
    if row.get("relation") is not None:
        relations = [head_relation(item) for item in list_at(row, "relation")]
    if row.get("event") is not None:
        events = [iepile_event(item) for item in objects_at(row, "event")]
    return sentence_of(text, entities, relations, events)


def iepile_event(item: JsonObject) -> Event:
    """Return an event of an IEPile sample."""
    trigger = string_at(item, "event_trigger", "")
    arguments = objects_at(item, "arguments") if item.get("arguments") is not None else []
    return Event(
        string_at(item, "event_type"),
        None if trigger in ("", "NAN") else Mention(trigger),
        tuple(
            (string_at(argument, "role"), Mention(name))
            for argument in arguments
            if (name := string_at(argument, "argument")) not in ("", "NAN")
        ),
    )


def head_relation(item: Any) -> Relation:
    """Return the triple of {"head", "relation", "tail"} with optional types, or of [head, relation, tail]."""
    if isinstance(item, list):
        head, label, tail = three_texts(item)
        return Relation(label, Mention(head), Mention(tail))
    if not isinstance(item, dict):
        raise RowError(f"has the relation {str(item)[:40]!r}, which is not a JSON object or list")
    head, label, tail = (string_at(item, key) for key in ("head", "relation", "tail"))
    types = (string_at(item, key, "") for key in ("head_type", "tail_type"))
    return Relation(label, Mention(head), Mention(tail), *types)


def three_texts(item: Any) -> list[str]:
    """Return the texts of a triple that is a list; raises RowError."""
    if not isinstance(item, list) or len(item) != 3 or any(not isinstance(part, str) for part in item):
        raise RowError(f"has the triple {str(item)[:60]!r}, which is not a list of three texts")
    return item


def read_instructie_row(row: JsonObject) -> AnnotatedSentence:
    """Return the sentence of an InstructIE row: `text` or `input`, and triples under `relation` or `kg`."""
    key = "relation" if row.get("relation") is not None else "kg"
    return sentence_of(text_at(row, "text", "input"), relations=[head_relation(item) for item in list_at(row, key)])


def read_duie_row(row: JsonObject) -> AnnotatedSentence:
    """Return the sentence of a DuIE row.

    In DuIE 2.0 an object has several slots, {"@value": "晴雯", "inWork": "红楼梦"}. Each slot that is not empty becomes
    a relation: `predicate` for "@value", and `predicate_slot` (配音_inWork) for the others.
    """
    relations = []
    for item in objects_at(row, "spo_list"):
        predicate, subject = string_at(item, "predicate"), Mention(string_at(item, "subject"))
        subject_type, value, types = string_at(item, "subject_type", ""), item.get("object"), item.get("object_type")
        slots = value if isinstance(value, dict) else {"@value": value}
        if "@value" not in slots:
            raise RowError(f"has an object without '@value' (keys: {key_names(slots)})")
        for slot in slots:
            name = string_at(slots, slot)
            if slot != "@value" and not name:
                continue  # DuIE writes "" in a slot that the text does not fill
            object_type = types.get(slot, "") if isinstance(types, dict) else types or ""
            if not isinstance(object_type, str):
                raise RowError(f"has the object_type {str(object_type)[:40]!r}, which is not text")
            label = predicate if slot == "@value" else f"{predicate}_{slot}"
            relations.append(Relation(label, subject, Mention(name), subject_type, object_type))
    return sentence_of(text_at(row, "text"), relations=relations)


def read_nyt_row(row: JsonObject) -> AnnotatedSentence:
    """Return the sentence of an NYT row: `relationMentions` and `entityMentions`, or `triple_list`.

    A pair with the label "None" has no relation.
    """
    if "triple_list" in row:
        triples = map(three_texts, list_at(row, "triple_list"))
        relations = [Relation(label, Mention(head), Mention(tail)) for head, label, tail in triples]
        return sentence_of(text_at(row, "text", "sentText"), relations=relations)
    entities = None
    if row.get("entityMentions") is not None:
        entities = [
            Entity(string_at(item, "label"), Mention(string_at(item, "text")))
            for item in objects_at(row, "entityMentions")
        ]
    relations = [
        Relation(label, Mention(string_at(item, "em1Text")), Mention(string_at(item, "em2Text")))
        for item in objects_at(row, "relationMentions")
        if (label := string_at(item, "label")) != NO_RELATION
    ]
    return sentence_of(text_at(row, "sentText"), entities, relations)


def placed_mention(name: str, start: Any) -> Mention:
    """Return a mention that begins at the character `start`; it has no span if `start` is None or -1."""
    if start in (None, -1):
        return Mention(name)
    start, _ = span_of(start, start)
    return Mention(name, ((start, start + len(name)),))


def read_duee_row(row: JsonObject) -> AnnotatedSentence:
    """Return the sentence of a DuEE row (also DuEE-Fin, which has no offsets and may have no trigger)."""
    events = []
    for item in objects_at(row, "event_list"):
        trigger = string_at(item, "trigger", "")
        arguments = objects_at(item, "arguments") if item.get("arguments") is not None else []
        event = Event(
            string_at(item, "event_type"),
            placed_mention(trigger, item.get("trigger_start_index")) if trigger else None,
            tuple(
                (
                    string_at(argument, "role"),
                    placed_mention(string_at(argument, "argument"), argument.get("argument_start_index")),
                )
                for argument in arguments
            ),
        )
        events.append(event)
    return sentence_of(text_at(row, "text"), events=events)


def read_fewfc_row(row: JsonObject) -> AnnotatedSentence:
    """Return the sentence of a FewFC row. An event's first mention of the role "trigger" is its trigger."""
    events, problems = [], []
    for item in objects_at(row, "events"):
        label, triggers, arguments = string_at(item, "type"), [], []
        for mention in objects_at(item, "mentions"):
            span = list_at(mention, "span")
            if len(span) != 2:
                raise RowError(f"has the span {str(span)[:40]}, which is not [start, end]")
            role, found = string_at(mention, "role"), Mention(string_at(mention, "word"), (span_of(*span),))
            if role == TRIGGER:
                triggers.append(found)
            else:
                arguments.append((role, found))
        problems += [f"event {label!r} has a second trigger, {more.text[:60]!r}" for more in triggers[1:]]
        events.append(Event(label, triggers[0] if triggers else None, tuple(arguments)))
    return sentence_of(text_at(row, "content"), events=events, problems=problems)
