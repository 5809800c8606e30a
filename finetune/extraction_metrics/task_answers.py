"""Read the items of answers with events and knowledge graphs (tasks ee, eet, eea and kg).

    ee   {event type: [{"trigger": text, "arguments": {role: text | [text, …] | "NAN"}}]}
    eet  {event type: [trigger]}
    eea  {event type: [{role: text | [text, …] | "NAN"}]}
    kg   {entity type: {head: {attribute: value | [value, …]}}}

"NAN", "", null, [] and {} are absent values. A value of an unexpected form is an item that matches no correct item, so
it counts as a wrong prediction.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from extraction_metrics.item_kinds import AnswerItem, as_json

STRUCTURED = ("ee", "eet", "eea", "kg")
ABSENT: tuple[Any, ...] = ("NAN", "", None, [], {})


def is_absent(value: Any) -> bool:
    """Return whether a value of an answer means that there is no trigger, argument or attribute."""
    return any(type(value) is type(absent) and value == absent for absent in ABSENT)


def structured_items(found: Any, task: str) -> tuple[Counter[AnswerItem], bool]:
    """Return (items of an answer, whether it has the outer form of an answer).

    found: the JSON value of the answer; task: one of STRUCTURED.
    """
    form = dict if task == "kg" else list
    by_type = found if isinstance(found, dict) else {"": found}
    parsed = by_type is found
    items = Counter[AnswerItem]()
    for label, value in by_type.items():
        if task == "eea" and value == {}:
            continue
        parsed = parsed and isinstance(value, form)
        if task == "kg":
            items.update(graph_items(label, value))
            continue
        for each in value if isinstance(value, list) else [value]:
            items.update(event_items(label, each, task))
    return items, parsed


def text_item(kind: str, place: tuple[str, ...], value: Any, after: tuple[str, ...] = ()) -> AnswerItem:
    """Return an item whose content is `place`, a value that should be text, and `after`."""
    if isinstance(value, str):
        return AnswerItem(kind, (*place, value, *after))
    return AnswerItem(kind, (*place, as_json(value), *after), well_formed=False)


def event_items(event_type: str, event: Any, task: str) -> Iterator[AnswerItem]:
    """Yield the trigger and the arguments of an event; task: ee, eet or eea."""
    if task == "eet":
        if not is_absent(event):
            yield text_item("trigger", (event_type,), event)
        return
    if not isinstance(event, dict):
        if not is_absent(event):
            kind, place = ("trigger", (event_type,)) if task == "ee" else ("argument", (event_type, ""))
            yield AnswerItem(kind, (*place, as_json(event)), well_formed=False)
        return
    if task == "eea":
        for role, text in role_values(event):
            yield text_item("argument", (event_type, role), text)
        return
    trigger = event.get("trigger")
    if not is_absent(trigger):
        yield text_item("trigger", (event_type,), trigger)
    named = "" if is_absent(trigger) else trigger if isinstance(trigger, str) else as_json(trigger)
    for role, text in role_values(event.get("arguments")):
        yield text_item("argument", (event_type, role), text)
        yield text_item("argument_with_trigger", (event_type, role), text, (named,))


def role_values(arguments: Any) -> Iterator[tuple[str, Any]]:
    """Yield (role, value) for each value that is not absent."""
    if not isinstance(arguments, dict):
        if not is_absent(arguments):
            yield "", [arguments]  # a list is not text, so the item is not well-formed
        return
    for role, value in arguments.items():
        for each in value if isinstance(value, list) else [value]:
            if not is_absent(each):
                yield role, each


def graph_items(entity_type: str, heads: Any) -> Iterator[AnswerItem]:
    """Yield each head as an entity and each of its attribute values as a triple (head, attribute, value)."""
    if not isinstance(heads, dict):
        if not is_absent(heads):
            yield AnswerItem("entity", (entity_type, as_json(heads)), well_formed=False)
        return
    for head, attributes in heads.items():
        yield AnswerItem("entity", (entity_type, head))
        for attribute, value in role_values(attributes):
            yield text_item("triple", (head, attribute), value)
