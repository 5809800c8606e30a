"""What the answers to all windows of a text say together, with the places in the text.

the route /extract is made of it. Offsets are characters (Unicode code points) of the whole text, looked
for in the windows whose answers have the name. What several windows say is said once, with the places of all of them,
in the order in which things first occur in the text; a name that is not in its window is marked and kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from extraction.extraction_answer import listed
from extraction.extraction_form import Form, Slot
from extraction.extraction_schema import Kind
from extraction.text_offsets import find

NOTHING = ("", "NAN")  # how answers write an argument that there is none of
Span = tuple[int, int]


class Thing(NamedTuple):
    """Something an answer says."""

    key: str  # of the answer
    names: tuple[str, ...]  # an entity; subject and object; an event's trigger, if it has one
    arguments: tuple[tuple[str, str], ...] = ()  # of an event: role and name


def result(
    task: str, text: str, form: Form, kinds: tuple[Kind, ...], answers: Sequence[tuple[Span, Mapping[str, Any]]]
) -> dict[str, Any]:
    """The response's "entities" (ner), "triples" (re, spo) or "events" (ee).

    answers: of each window [start, end) of the text its answer, as extraction_answer.read gives it.
    """
    places: dict[Thing, dict[str, set[Span]]] = {}
    said_by: dict[Thing, int] = {}  # the end of the first window that says it
    for (start, end), answer in answers:
        here: dict[str, list[Span]] = {}
        for thing in things(task, answer, form):
            said_by.setdefault(thing, end)
            known = places.setdefault(thing, {})
            for name in (*thing.names, *(name for _, name in thing.arguments)):
                if name not in here:
                    here[name] = find(name, text, start, end)
                known.setdefault(name, set()).update(here[name])

    def first(thing: Thing) -> int:
        """Where it first occurs; what is nowhere in the text stands behind the rest of its window."""
        return min((start for spans in places[thing].values() for start, _ in spans), default=said_by[thing])

    by_key = form.by_key(kinds)
    ordered = [thing for thing in sorted(places, key=first) if thing.key in by_key]
    plural, described = {"ner": ("entities", entity), "ee": ("events", event)}.get(task, ("triples", triple))
    return {plural: [described(thing, places[thing], by_key[thing.key]) for thing in ordered]}


def things(task: str, answer: Mapping[str, Any], form: Form) -> Iterator[Thing]:
    """What an answer says, in its order."""
    for key, items in answer.items():
        for item in listed(items):
            names = [texts(content(item, slot)) for slot in form.texts()]
            if task == "ee":
                names = [stated for slot in names if (stated := [name for name in slot if name not in NOTHING])]
            by_role = content(item, form.roles())
            roles = by_role.items() if isinstance(by_role, dict) else ()
            arguments = tuple((role, name) for role, held in roles for name in texts(held) if name not in NOTHING)
            for chosen in product(*names):
                yield Thing(key, chosen, arguments)


def content(item: Any, slot: Slot | None) -> Any:
    """What stands in a slot of an item; None where it has no such slot."""
    if slot is None:
        return None
    if not slot.key:
        return item
    return item.get(slot.key) if isinstance(item, dict) else None


def texts(held: Any) -> list[str]:
    return [each for each in listed(held) if isinstance(each, str)]


def named(name: str, places: Mapping[str, set[Span]]) -> dict[str, Any]:
    return {"name": name, "offsets": [list(span) for span in sorted(places[name])], "in_text": bool(places[name])}


def entity(thing: Thing, places: Mapping[str, set[Span]], kinds: list[Kind]) -> dict[str, Any]:
    return {"type": kinds[0].name, **named(thing.names[0], places)}


def triple(thing: Thing, places: Mapping[str, set[Span]], kinds: list[Kind]) -> dict[str, Any]:
    """A triple; its ends have a type where the schema's relations of this name leave only one."""
    subject, object_ = (named(name, places) for name in thing.names)
    for end, types in (
        (subject, {kind.subject_type for kind in kinds}),
        (object_, {kind.object_type for kind in kinds}),
    ):
        if len(types) == 1 and types != {""}:
            end["type"] = next(iter(types))
    return {"subject": subject, "relation": kinds[0].name, "object": object_}


def event(thing: Thing, places: Mapping[str, set[Span]], kinds: list[Kind]) -> dict[str, Any]:
    arguments = [{"role": role, **named(name, places)} for role, name in thing.arguments]
    return {
        "type": kinds[0].name,
        "trigger": named(thing.names[0], places) if thing.names else None,
        "arguments": arguments,
    }
