"""Merges the answers to all windows of a text, and adds offsets.

Offsets are characters (Unicode code points) of the whole text; a name is searched in the windows whose answers have it.
An item of several windows is returned once, with the offsets of all of them, in the order in which items first occur in
the text. A name that its windows do not have is kept and marked.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from extraction.extraction_answer import as_list
from extraction.extraction_form import AnswerForm, AnswerSlot
from extraction.extraction_schema import SchemaType
from extraction.text_offsets import find_name

NO_VALUE = ("", "NAN")  # how answers write a missing argument
Span = tuple[int, int]
Offsets = Mapping[str, set[Span]]  # by name


class ExtractedItem(NamedTuple):
    key: str  # of the answer
    names: tuple[str, ...]  # an entity; subject and object; an event's trigger, if it has one
    arguments: tuple[tuple[str, str], ...] = ()  # of an event: role and name


def merge_answers(
    task: str, text: str, form: AnswerForm, types: tuple[SchemaType, ...],
    answers: Sequence[tuple[Span, Mapping[str, Any]]],
) -> dict[str, Any]:  # fmt: skip
    """Return the response's "entities" (ner), "triples" (re, spo) or "events" (ee).

    answers: for each window [start, end) of the text its answer, as parse_answer returns it.
    """
    offsets: dict[ExtractedItem, dict[str, set[Span]]] = {}
    window_end: dict[ExtractedItem, int] = {}  # of the first window with the item
    for (start, end), answer in answers:
        found: dict[str, list[Span]] = {}
        for item in extracted_items(task, answer, form):
            window_end.setdefault(item, end)
            item_offsets = offsets.setdefault(item, {})
            for name in (*item.names, *(name for _, name in item.arguments)):
                if name not in found:
                    found[name] = find_name(name, text, start, end)
                item_offsets.setdefault(name, set()).update(found[name])

    def position(item: ExtractedItem) -> int:
        """Return where an item first occurs; an item that is not in the text comes after the rest of its window."""
        return min((start for spans in offsets[item].values() for start, _ in spans), default=window_end[item])

    by_key = form.types_by_key(types)
    ordered = [item for item in sorted(offsets, key=position) if item.key in by_key]
    field, describe = {"ner": ("entities", entity), "ee": ("events", event)}.get(task, ("triples", triple))
    return {field: [describe(item, offsets[item], by_key[item.key]) for item in ordered]}


def extracted_items(task: str, answer: Mapping[str, Any], form: AnswerForm) -> Iterator[ExtractedItem]:
    """Yield the items of an answer, in its order."""
    for key, items in answer.items():
        for item in as_list(items):
            names = [strings(slot_value(item, slot)) for slot in form.name_slots()]
            if task == "ee":
                names = [present for slot in names if (present := [name for name in slot if name not in NO_VALUE])]
            roles = slot_value(item, form.role_slot())
            pairs = roles.items() if isinstance(roles, dict) else ()
            arguments = tuple((role, name) for role, value in pairs for name in strings(value) if name not in NO_VALUE)
            for chosen in product(*names):
                yield ExtractedItem(key, chosen, arguments)


def slot_value(item: Any, slot: AnswerSlot | None) -> Any:
    """Return the value of a slot of an item, None if it has no such slot."""
    if slot is None:
        return None
    if not slot.key:
        return item
    return item.get(slot.key) if isinstance(item, dict) else None


def strings(value: Any) -> list[str]:
    return [each for each in as_list(value) if isinstance(each, str)]


def named(name: str, offsets: Offsets) -> dict[str, Any]:
    return {"name": name, "offsets": [list(span) for span in sorted(offsets[name])], "in_text": bool(offsets[name])}


def entity(item: ExtractedItem, offsets: Offsets, types: list[SchemaType]) -> dict[str, Any]:
    return {"type": types[0].name, **named(item.names[0], offsets)}


def triple(item: ExtractedItem, offsets: Offsets, types: list[SchemaType]) -> dict[str, Any]:
    """Return a triple; subject and object have a type if all of the schema's relations of this name agree on it."""
    subject, object_ = (named(name, offsets) for name in item.names)
    for end, end_types in (
        (subject, {type_.subject_type for type_ in types}),
        (object_, {type_.object_type for type_ in types}),
    ):
        if len(end_types) == 1 and end_types != {""}:
            end["type"] = next(iter(end_types))
    return {"subject": subject, "relation": types[0].name, "object": object_}


def event(item: ExtractedItem, offsets: Offsets, types: list[SchemaType]) -> dict[str, Any]:
    arguments = [{"role": role, **named(name, offsets)} for role, name in item.arguments]
    return {
        "type": types[0].name,
        "trigger": named(item.names[0], offsets) if item.names else None,
        "arguments": arguments,
    }
