"""Annotated sentences: a text with its entities, relations and events, as every reader of annotations returns them."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

Span = tuple[int, int]  # [start, end) in characters (Unicode code points) of the sentence


class Mention(NamedTuple):
    """A name in a sentence. spans: its fragments, several if it is discontinuous; () if they are not annotated."""

    text: str
    spans: tuple[Span, ...] = ()


class Entity(NamedTuple):
    type: str
    mention: Mention


class Relation(NamedTuple):
    """A triple; the types of subject and object are "" if they are not annotated."""

    label: str
    subject: Mention
    object: Mention
    subject_type: str = ""
    object_type: str = ""

    def types(self, by_name: Mapping[str, str]) -> tuple[str, str]:
        """Return the types of subject and object; types that are not annotated are taken from `by_name`."""
        return (
            self.subject_type or by_name.get(self.subject.text, ""),
            self.object_type or by_name.get(self.object.text, ""),
        )


class Event(NamedTuple):
    """An event. trigger: None if it is not annotated. arguments: (role, mention), a role possibly several times."""

    type: str
    trigger: Mention | None
    arguments: tuple[tuple[str, Mention], ...] = ()


class AnnotatedSentence(NamedTuple):
    """A sentence with its annotations; a list is None if the format or the row does not annotate this kind.

    The text may be blank; check_sentence then returns a problem.
    """

    text: str
    language: str  # "en" or "zh"
    location: str  # "file:line", for messages
    entities: tuple[Entity, ...] | None = None
    relations: tuple[Relation, ...] | None = None
    events: tuple[Event, ...] | None = None
    problems: tuple[str, ...] = ()  # messages about items that the reader could not read; see check_sentence


def types_by_name(entities: Iterable[Entity]) -> dict[str, str]:
    """Return name -> type of a sentence's entities, "" for a name with several types."""
    types: dict[str, str] = {}
    for entity in entities:
        name = entity.mention.text
        types[name] = entity.type if types.get(name, entity.type) == entity.type else ""
    return types
