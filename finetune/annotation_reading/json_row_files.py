"""Read files with one JSON object per text, and this project's own form of annotations:

    {"sentence": "Ann Lee was born in Oslo.",
     "entity_list": [{"name": "Ann Lee", "type": "person", "spans": [[0, 7]]}],
     "relation_list": [{"subject": "Ann Lee", "relation": "born in", "object": "Oslo"}],
     "event_list": [{"type": "birth", "trigger": "born", "arguments": [{"role": "place", "name": "Oslo"}]}]}

At least one of the lists is required. Optional keys are spans (the fragments [start, end) of one mention, in
characters), subject_spans, object_spans and trigger_spans, subject_type and object_type, and an event's trigger.
CrossNER's JSON files have this form with an entity_list without spans.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from json_rows.row_files import iterate_objects
from text_language.language_detection import language_of

from annotation_reading.annotated_sentences import AnnotatedSentence, Entity, Event, Mention, Relation, Span

JsonObject = dict[str, Any]
RowReader = Callable[[JsonObject], AnnotatedSentence]


class RowError(ValueError):
    """A row does not have the expected form; `read_rows` adds file and line to the message."""


def read_rows(path: Path, language: str, read: RowReader, form: str) -> Iterator[AnnotatedSentence]:
    """Yield the sentences of a file or folder of rows (json_rows/row_files.py), each read by `read`.

    form: the form of a row, for error messages. Raises FileNotFoundError, or ValueError with file and line.
    """
    for location, row in iterate_objects(path):
        try:
            sentence = read(row)
        except RowError as error:
            raise ValueError(f"{location} {error}; {form} is expected") from None
        yield sentence._replace(
            language=language_of(sentence.text) if language == "auto" else language,
            location=location,
            problems=tuple(f"{location} {problem}" for problem in sentence.problems),
        )


def sentence_of(
    text: str,
    entities: list[Entity] | None = None,
    relations: list[Relation] | None = None,
    events: list[Event] | None = None,
    problems: list[str] | tuple[str, ...] = (),
) -> AnnotatedSentence:
    """Return a sentence whose language and location `read_rows` sets."""
    return AnnotatedSentence(
        text,
        language="",
        location="",
        entities=None if entities is None else tuple(entities),
        relations=None if relations is None else tuple(relations),
        events=None if events is None else tuple(events),
        problems=tuple(problems),
    )


def text_at(row: JsonObject, *keys: str) -> str:
    """Return the text under the first of the keys that the row has; raises RowError if there is none."""
    return string_at(row, next((key for key in keys if key in row), keys[0]))


def string_at(item: JsonObject, key: str, default: str | None = None) -> str:
    """Return the string under a key; a default replaces an absent or null value. Raises RowError for other values."""
    value = item.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise RowError(f"has no text under {key!r} (keys: {key_names(item)})")
    return value


def key_names(item: JsonObject) -> str:
    """Return the keys of an object for a message."""
    names = " ".join(", ".join(list(map(str, item))[:20]).split())
    return names[:200] or "none"


def list_at(item: JsonObject, key: str) -> list[Any]:
    """Return the list under a key; raises RowError."""
    value = item.get(key)
    if not isinstance(value, list):
        raise RowError(f"has no list under {key!r} (keys: {key_names(item)})")
    return value


def objects_at(item: JsonObject, key: str) -> list[JsonObject]:
    """Return the list of objects under a key; raises RowError."""
    values = list_at(item, key)
    for value in values:
        if not isinstance(value, dict):
            raise RowError(f"has {str(value)[:40]!r} under {key!r}, which is not a JSON object")
    return values


def is_offset(value: object) -> bool:
    """Return whether a value is an integer (true and false are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def span_of(start: object, end: object) -> Span:
    """Return a span; raises RowError if start or end is not an integer. Whether it is in the text is checked later."""
    if is_offset(start) and is_offset(end):
        return (start, end)  # type: ignore[return-value]  # is_offset
    raise RowError(f"has the span [{repr(start)[:20]}, {repr(end)[:20]}], which is not a pair of integers")


def spans_at(item: JsonObject, key: str) -> tuple[Span, ...]:
    """Return the list of [start, end] under a key, () if it is absent or null; raises RowError."""
    if item.get(key) is None:
        return ()
    pairs = list_at(item, key)
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise RowError(f"has {str(pairs)[:40]!r} under {key!r}, which is not a list of [start, end]")
    return tuple(span_of(*pair) for pair in pairs)


OWN_FORM = (
    '{"sentence", "entity_list": [{"name", "type"}], "relation_list": [{"subject", "relation", "object"}], '
    '"event_list": [{"type", "trigger", "arguments": [{"role", "name"}]}]} with at least one of the lists'
)
OWN_LISTS = ("entity_list", "relation_list", "event_list")


def read_own_row(row: JsonObject) -> AnnotatedSentence:
    """Return the sentence of a row in the project's own form; raises RowError."""
    text = text_at(row, "sentence")
    if all(row.get(key) is None for key in OWN_LISTS):
        raise RowError(f"has no list under {', '.join(map(repr, OWN_LISTS))} (keys: {key_names(row)})")
    entities, relations, events = (None if row.get(key) is None else objects_at(row, key) for key in OWN_LISTS)
    return sentence_of(
        text,
        None if entities is None else [own_entity(item) for item in entities],
        None if relations is None else [own_relation(item) for item in relations],
        None if events is None else [own_event(item) for item in events],
    )


def own_entity(item: JsonObject) -> Entity:
    """Return an entity of an entity_list."""
    return Entity(string_at(item, "type"), Mention(string_at(item, "name"), spans_at(item, "spans")))


def own_relation(item: JsonObject) -> Relation:
    """Return a triple of a relation_list."""
    subject, target = (Mention(string_at(item, key), spans_at(item, f"{key}_spans")) for key in ("subject", "object"))
    types = (string_at(item, f"{key}_type", "") for key in ("subject", "object"))
    return Relation(string_at(item, "relation"), subject, target, *types)


def own_event(item: JsonObject) -> Event:
    """Return an event of an event_list; an empty trigger is read as not annotated."""
    trigger = string_at(item, "trigger", "")
    arguments = objects_at(item, "arguments") if item.get("arguments") is not None else []
    return Event(
        string_at(item, "type"),
        Mention(trigger, spans_at(item, "trigger_spans")) if trigger else None,
        tuple(
            (string_at(argument, "role"), Mention(string_at(argument, "name"), spans_at(argument, "spans")))
            for argument in arguments
        ),
    )
