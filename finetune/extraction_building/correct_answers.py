"""Write the correct answer of a row, and its annotated items with their spans.

Answers are objects keyed by the row's schema entries, in their order; kg has only entries with values:
    ner, eet  {type: [text]}
    re, spo   {relation: [{"subject", "object"}]}      the keys are those of the answer's shape, e.g. head and tail
    ee        {type: [{"trigger", "arguments": {role: text | [text, …]}}]}
    eea       {type: [{role: text | [text, …]}]}
    kg        {entity type: {head: {attribute: value | [value, …]}}}
In the style schema_json, each role that an event with arguments lacks is "NAN", as in IEPile.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from annotation_reading.annotated_sentences import Entity, Event, Mention, Relation

from extraction_building.schema_items import KINDS, Schema, SchemaItem
from extraction_building.task_items import Item

NO_VALUE = "NAN"
PLACEHOLDER = re.compile(r"<[^<>]+>")
SUBJECTS = ("subject", "head")  # keys of a triple's first name in an answer's shape
Answer = dict[str, Any]


class TaskAnswerForm(NamedTuple):
    """The form of a task's answers.

    shape: as in extraction.json. lists_all: the answer has every entry that was asked for; False: only those with
    items. missing_roles: a role without argument is NO_VALUE; False: it is omitted.
    """

    shape: Mapping[str, Any]
    lists_all: bool
    missing_roles: bool

    def pair_keys(self) -> tuple[str, str]:
        """Return the keys of subject and object in a triple."""
        first, second = next(iter(self.shape.values()))[0]
        return (first, second) if second not in SUBJECTS else (second, first)

    def entry_key(self, item: SchemaItem) -> str:
        """Return the key of a schema entry in the answer."""
        key = next(iter(self.shape))
        if PLACEHOLDER.fullmatch(key):
            return item.name
        types = dict(zip(("<subject_type>", "<object_type>"), item.parts, strict=False))
        return PLACEHOLDER.sub(lambda placeholder: types.get(placeholder[0], item.name), key)


def distinct(items: Sequence[Item]) -> list[Item]:
    """Return all events, or the entities or triples without those that repeat the names of an earlier one."""
    if not items or isinstance(items[0], Event):
        return list(items)
    first: dict[tuple[str, ...], Item] = {}
    for item in items:
        first.setdefault(names_of(item), item)
    return list(first.values())


def names_of(item: Item) -> tuple[str, ...]:
    """Return the name of an entity, or the names of a triple."""
    if isinstance(item, Relation):
        return (item.subject.text, item.object.text, item.label)
    return (item.mention.text,) if isinstance(item, Entity) else ()


def correct_answer(
    schema: Schema, batch: Sequence[int], items: Mapping[int, Sequence[Item]], form: TaskAnswerForm
) -> Answer:
    """Return the answer of a row that asks for the entries of `batch`; items: entry -> its items in the text.

    Unless form.lists_all, the entries are in the order of the text's annotations.
    """
    answer: Answer = {}
    for number in batch if form.lists_all else [entry for entry in items if entry in batch]:
        entry, found = schema.items[number], items.get(number, ())
        if schema.task == "kg":
            if found:
                answer[entry.name] = entity_attributes(entry, found)
        elif found or form.lists_all:
            values = [item_value(schema.task, entry, item, form) for item in found]
            answer.setdefault(form.entry_key(entry), []).extend(values)
    return answer


def item_value(task: str, entry: SchemaItem, item: Item, form: TaskAnswerForm) -> Any:
    """Return an item as it is written in an answer."""
    match item:
        case Entity():
            return item.mention.text
        case Relation():
            subject, object_ = form.pair_keys()
            return {subject: item.subject.text, object_: item.object.text}
    trigger = item.trigger.text if item.trigger else NO_VALUE
    if task == "eet":
        return trigger
    roles = arguments_by_role(entry, item, form)
    return roles if task == "eea" else {"trigger": trigger, "arguments": roles}


def arguments_by_role(entry: SchemaItem, event: Event, form: TaskAnswerForm) -> dict[str, Any]:
    """Return role -> name or names, in the order of the schema; {} for an event without arguments."""
    values: dict[str, list[str]] = {role: [] for role in entry.parts}
    for role, mention in event.arguments:
        if mention.text not in values[role]:
            values[role].append(mention.text)
    missing = form.missing_roles and bool(event.arguments)
    return {role: one_or_list(names) if names else NO_VALUE for role, names in values.items() if names or missing}


def entity_attributes(entry: SchemaItem, relations: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """Return head -> attribute -> value or values, with the attributes in the order of the schema."""
    values: dict[str, dict[str, list[str]]] = {}
    for relation in relations:
        if isinstance(relation, Relation):
            names = values.setdefault(relation.subject.text, {}).setdefault(relation.label, [])
            if relation.object.text not in names:
                names.append(relation.object.text)
    return {
        head: {attribute: one_or_list(found[attribute]) for attribute in entry.parts if attribute in found}
        for head, found in values.items()
    }


def one_or_list(names: list[str]) -> str | list[str]:
    """Return the only name, or the list if there are several."""
    return names[0] if len(names) == 1 else names


def gold_items(schema: Schema, batch: Sequence[int], items: Mapping[int, Sequence[Item]]) -> dict[str, list[Any]]:
    """Return the annotated items of a row with their spans, as scoring reads them (the key "gold" of a row)."""
    found = [item for number in batch for item in items.get(number, ())]
    if KINDS[schema.task] != "event":
        found = list(dict.fromkeys(found))
    kind = {"entity": "entities", "event": "events"}.get(KINDS[schema.task], "triples")
    return {kind: [gold_item(item) for item in found]}


def gold_item(item: Item) -> dict[str, Any]:
    """Return an annotated item as JSON."""
    match item:
        case Entity():
            return {"type": item.type} | gold_mention(item.mention)
        case Relation():
            return {
                "subject": gold_mention(item.subject),
                "relation": item.label,
                "object": gold_mention(item.object),
            }
    arguments = [{"role": role} | gold_mention(mention) for role, mention in item.arguments]
    return {"type": item.type, "trigger": item.trigger and gold_mention(item.trigger), "arguments": arguments}


def gold_mention(mention: Mention) -> dict[str, Any]:
    """Return a mention as JSON."""
    return {"name": mention.text} | ({"spans": [list(span) for span in mention.spans]} if mention.spans else {})
