"""The kinds of items that extraction answers have, and which of them are scored for each task."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

TASKS = ("entity", "triple")  # kinds of items in answers whose task is not known
# Extraction task -> kinds of items that are scored.
KINDS_OF_TASK: Mapping[str, tuple[str, ...]] = {
    "ner": ("entity",),
    "re": ("triple",),
    "spo": ("triple",),
    "kg": ("entity", "triple"),
    "ee": ("trigger", "argument", "argument_with_trigger"),
    "eet": ("trigger",),
    "eea": ("argument",),
}
# All kinds in the order in which scores are shown. An entity_span is an entity with its span in the text.
KINDS = (*TASKS, "entity_span", "trigger", "argument", "argument_with_trigger")


class AnswerItem(NamedTuple):
    """An item of an answer; two items match if they are equal."""

    kind: str  # one of KINDS, or "other"
    # entity: (type, name); triple: (subject, relation, object); entity_span: (type, spans); trigger: (event type,
    # trigger); argument: (event type, role, text); argument_with_trigger: (event type, role, text, trigger)
    content: tuple[str, ...]
    well_formed: bool = True  # False: a value that cannot be an item of this kind; it matches no correct item

    @property
    def label(self) -> str:
        """The type of an entity or trigger, the relation of a triple, or event type and role of an argument."""
        if self.kind.startswith("argument"):
            return ": ".join(self.content[:2])
        return self.content[1 if self.kind == "triple" else 0]

    @property
    def names(self) -> tuple[str, ...]:
        """The parts of the text that the item names: the name of an entity, or subject and object of a triple."""
        if not self.well_formed:
            return ()
        parts = {"entity": slice(1, 2), "triple": slice(0, 3, 2), "trigger": slice(1, 2), "argument": slice(2, 3)}
        return self.content[parts.get(self.kind, slice(0, 0))]


def as_json(value: Any) -> str:
    """Return a value of an answer as JSON; equal values give equal texts."""
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    except RecursionError:  # lists in lists, nearly as deep as json.loads accepts
        return "[…]"
