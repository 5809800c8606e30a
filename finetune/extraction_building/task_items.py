"""Assign the annotated items of a sentence to the entries of a schema, and describe the items that do not fit it."""

from collections.abc import Mapping
from typing import NamedTuple

from annotation_reading.annotated_sentences import AnnotatedSentence, Entity, Event, Relation, types_by_name

from extraction_building.schema_items import KINDS, Schema

Item = Entity | Relation | Event
LISTS = {"entity": "entities", "relation": "relations", "attribute": "relations", "event": "events"}


class Misfit(NamedTuple):
    """An item, or an argument, that does not fit the schema. label: its type; message: begins with file and line."""

    label: str
    message: str


class SentenceItems(NamedTuple):
    """The items of a sentence by schema entry, in their order, and the items that do not fit the schema."""

    by_entry: dict[int, list[Item]]
    misfits: list[Misfit]


def annotated_items(sentence: AnnotatedSentence, task: str) -> tuple[Item, ...]:
    """Return the annotated items of the task's kind; raises ValueError if the sentence does not annotate this kind."""
    name = LISTS[KINDS[task]]
    items: tuple[Item, ...] | None = getattr(sentence, name)
    if items is None:
        raise ValueError(
            f"{sentence.location} has no annotated {name}, which --task {task} needs; give other --input, or write an "
            "empty list if the text has none"
        )
    return items


def assign_items(sentence: AnnotatedSentence, schema: Schema) -> SentenceItems:
    """Return the items of a sentence by schema entry; raises ValueError as annotated_items."""
    by_entry: dict[int, list[Item]] = {}
    misfits: list[Misfit] = []
    types = types_by_name(sentence.entities or ())
    for item in annotated_items(sentence, schema.task):
        kept = item
        if isinstance(item, Relation):
            entries, label, name = relation_entries(item, types, schema), item.label, "relation"
        else:
            entries, label, name = schema.entries_of(item.type), item.type, type(item).__name__.lower()
        problem = ""
        if isinstance(item, Event) and entries:
            if schema.task == "eet" and item.trigger is None:
                problem = "has no trigger, which the task eet asks for"
            elif schema.task != "eet":
                kept, more = with_known_roles(sentence, item, schema.items[entries[0]].parts)
                misfits += more
        if not entries:
            problem = f"has a {'relation' if name == 'relation' else 'type'} that is not in the schema"
        elif len(entries) > 1 and schema.task in ("spo", "kg"):
            problem = "fits several entries of the schema; annotate the types of its subject and object"
        if problem:
            misfits.append(Misfit(label, f"{sentence.location} {name} {described(item)} {problem}"))
        else:
            by_entry.setdefault(entries[0], []).append(kept)
    return SentenceItems(by_entry, misfits)


def relation_entries(relation: Relation, types: Mapping[str, str], schema: Schema) -> list[int]:
    """Return the schema entries of a relation; types that it lacks are taken from `types` (name -> type)."""
    entries = schema.entries_of(relation.label, relation.subject_type, relation.object_type)
    if len(entries) > 1 and types and schema.task in ("spo", "kg"):
        return schema.entries_of(relation.label, *relation.types(types))
    return entries


def with_known_roles(sentence: AnnotatedSentence, event: Event, roles: tuple[str, ...]) -> tuple[Event, list[Misfit]]:
    """Return an event with the arguments whose role is in the schema, and the others as misfits."""
    unknown = [
        Misfit(
            f"{event.type}/{role}",
            f"{sentence.location} event {event.type!r:.60} has the argument {mention.text!r:.60} with the role "
            f"{role!r:.60}, which is not in the schema",
        )
        for role, mention in event.arguments
        if role not in roles
    ]
    if not unknown:
        return event, []
    return event._replace(arguments=tuple(pair for pair in event.arguments if pair[0] in roles)), unknown


def described(item: Item) -> str:
    """Return an item for a message."""
    if isinstance(item, Relation):
        types = f" of {item.subject_type!r:.60} and {item.object_type!r:.60}" if item.subject_type else ""
        return f"{item.label!r:.60}{types} ({item.subject.text!r:.60}, {item.object.text!r:.60})"
    if isinstance(item, Event):
        return f"{item.type!r:.60}" + (f" ({item.trigger.text!r:.60})" if item.trigger else "")
    return f"{item.mention.text!r:.60} of the type {item.type!r:.60}"
