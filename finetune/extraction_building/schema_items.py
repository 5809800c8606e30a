"""Read the schema of a task: the types to ask for, with roles, attributes, or types of subject and object.

Schemas by task:
    ner, re, eet  list of names                                  ["person", "place"]
    spo           list of objects, or of texts with two "_"      [{"subject_type", "predicate", "object_type"}]
    ee, eea       object: event type -> roles                    {"layoff": ["company", "time"]}
    kg            object: entity type -> attributes              {"person": ["born in", "alias"]}
A file has such a schema, schemas by kind and language ({"entity": {"en": […], "zh": […]}, "relation": …, "event": …,
"attribute": …}), or IEPile's three lines (types, relations, and an object of types with their roles or attributes).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from annotation_reading.annotated_sentences import AnnotatedSentence, Event, Relation, types_by_name
from json_rows.json_stream import WHITESPACE, InvalidJsonError, TextWindow, encoding_error
from text_language.language_detection import LANGUAGES

EXAMPLES = {
    "ner": '["person", "place"]',
    "re": '["born in", "works for"]',
    "spo": '[{"subject_type": "person", "predicate": "born in", "object_type": "place"}]',
    "ee": '{"layoff": ["company", "time"]}',
    "eet": '["layoff", "merger"]',
    "eea": '{"layoff": ["company", "time"]}',
    "kg": '{"person": ["born in", "alias"]}',
}
TASKS = tuple(EXAMPLES)
KINDS = {
    "ner": "entity", "re": "relation", "spo": "relation", "ee": "event", "eet": "event", "eea": "event",
    "kg": "attribute",
}  # fmt: skip
IEPILE_LINES = {"ner": 0, "re": 1, "spo": 0, "ee": 2, "eet": 0, "eea": 2, "kg": 2}
TYPED_RELATION = ("subject_type", "predicate", "object_type")
WITH_PARTS = ("ee", "eea", "kg")  # tasks whose schema is an object


class SchemaItem(NamedTuple):
    """An entry of a schema. parts: roles (ee, eea), attributes (kg), or types of subject and object (spo)."""

    name: str
    parts: tuple[str, ...] = ()


class Schema:
    """The entries of a schema; the other modules refer to an entry by its number, from 0.

    Attributes:
        items: the entries. labels: their names, and for spo "subject type_predicate_object type".
        sorted_order: the numbers of the entries in the order of their labels.
    """

    def __init__(self, task: str, items: Iterable[SchemaItem]) -> None:
        self.task, self.items = task, tuple(items)
        self.labels = tuple(schema_label(task, item) for item in self.items)
        self.sorted_order = sorted(range(len(self.items)), key=self.labels.__getitem__)
        self._by_label: dict[str, list[int]] = defaultdict(list)
        self._by_name: dict[str, list[int]] = defaultdict(list)
        for number, (label, item) in enumerate(zip(self.labels, self.items, strict=True)):
            self._by_label[label].append(number)
            for name in item.parts if task == "kg" else (item.name,):
                self._by_name[name].append(number)

    def named(self, name: str) -> list[int]:
        """Return the entries with this label or name (kg: entity types with this attribute)."""
        return self._by_label.get(name) or self._by_name.get(name, [])

    def entries_of(self, name: str, subject_type: str = "", object_type: str = "") -> list[int]:
        """Return the entries that an annotated item can belong to. name: its type, relation or attribute.

        subject_type, object_type: types of a triple, or "", which fits every type.
        """
        candidates = self._by_name.get(name, [])
        if self.task == "spo":
            types = (subject_type, object_type)
            fitting = (
                number
                for number in candidates
                if all(not given or given == part for given, part in zip(types, self.items[number].parts, strict=True))
            )
            return list(fitting)
        if self.task == "kg" and subject_type:
            return [number for number in candidates if self.items[number].name == subject_type]
        return candidates


def schema_label(task: str, item: SchemaItem) -> str:
    """Return the text that identifies an entry of a schema."""
    return f"{item.parts[0]}_{item.name}_{item.parts[1]}" if task == "spo" else item.name


def parse_item(task: str, entry: Any) -> SchemaItem | None:
    """Parse an entry of a schema; return None if its form does not fit the task.

    entry: an item of a list, or (key, value) of an object.
    """
    if task == "spo":
        if isinstance(entry, str) and entry.count("_") == 2:  # more underscores would be ambiguous
            entry = dict(zip(TYPED_RELATION, entry.split("_"), strict=True))
        if not isinstance(entry, dict) or set(entry) != set(TYPED_RELATION) or not all(map(is_name, entry.values())):
            return None
        return SchemaItem(entry["predicate"], (entry["subject_type"], entry["object_type"]))
    name, parts = entry if task in WITH_PARTS else (entry, [])
    if not is_name(name) or not isinstance(parts, list) or not all(map(is_name, parts)):
        return None
    return SchemaItem(name, tuple(dict.fromkeys(parts)))


def is_name(name: Any) -> bool:
    """Return whether a value is text with a visible character."""
    return isinstance(name, str) and bool(name.strip())


def parse_schema(task: str, content: Any, place: str) -> Schema:
    """Return a schema from its JSON value; raises ValueError, whose message begins with `place`, if it is not valid."""
    expected = f"--schema takes a file such as {EXAMPLES[task]} for --task {task}"
    if task == "eet" and isinstance(content, dict):
        content = list(content)  # a schema of ee
    if not isinstance(content, dict if task in WITH_PARTS else list):
        names = "object of names and lists" if task in WITH_PARTS else "list of names"
        raise ValueError(f"{place} has no {names}; {expected}")
    items: dict[SchemaItem, None] = {}
    for entry in content.items() if isinstance(content, dict) else content:
        item = parse_item(task, entry)
        if item is None:
            raise ValueError(f"{place} has the entry {entry!r:.60}, which does not fit; {expected}")
        items[item] = None
    return Schema(task, items)


def read_schema(path: str, task: str) -> dict[str, Schema]:
    """Return language -> schema; a schema without languages applies to both.

    Raises FileNotFoundError, or ValueError with the file.
    """
    values = json_values(Path(path), f"--schema takes a file such as {EXAMPLES[task]}")
    content = values[0] if values else None
    if len(values) == 3 and [*map(type, values)] == [list, list, dict]:
        content = values[IEPILE_LINES[task]]
    elif len(values) != 1:
        raise ValueError(
            f"{path} has {len(values)} JSON values; --schema takes one value such as {EXAMPLES[task]}, or the three "
            "lines of an IEPile schema"
        )
    kind = KINDS[task]
    by_kind = isinstance(content, dict) and set(content) <= {*KINDS.values()}
    if isinstance(content, dict) and (by_kind or task not in (*WITH_PARTS, "eet")):
        by_language = content.get(kind)
        if not isinstance(by_language, dict) or not set(by_language) <= set(LANGUAGES):
            raise ValueError(
                f'{path} has no schemas by language under "{kind}"; --schema takes {EXAMPLES[task]}, or '
                f'{{"{kind}": {{"en": {EXAMPLES[task]}}}}}'
            )
        return {
            language: parse_schema(task, schema, f'{path}, "{kind}", "{language}",')
            for language, schema in by_language.items()
        }
    return dict.fromkeys(LANGUAGES, parse_schema(task, content, path))


def json_values(path: Path, remedy: str) -> list[Any]:
    """Return the concatenated JSON values of a file; raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {remedy}")
    values = []
    with path.open("rb") as file:
        window = TextWindow(file, path)
        try:
            while window.skip(WHITESPACE):
                value = window.parse()
                if value.error:
                    raise InvalidJsonError(value.error)
                values.append(value.content)
        except InvalidJsonError as error:
            raise ValueError(f"{path}:{window.line} {encoding_error(window.current_line()) or error}") from None
    return values


class AnnotatedTypes:
    """Collects the annotated types of sentences; they are the schema if none is given."""

    def __init__(self, task: str) -> None:
        self.task = task
        self._parts: dict[SchemaItem, dict[str, None]] = {}

    def add(self, sentence: AnnotatedSentence) -> None:
        """Add the types of a sentence, in the order of their first occurrence."""
        if self.task == "ner":
            items: Sequence[Any] = sentence.entities or ()
            for entity in items:
                self._parts.setdefault(SchemaItem(entity.type), {})
        elif KINDS[self.task] == "event":
            for event in sentence.events or ():
                self._add_event(event)
        else:
            types = types_by_name(sentence.entities or ())
            for relation in sentence.relations or ():
                self._add_relation(relation, types)

    def _add_event(self, event: Event) -> None:
        roles = self._parts.setdefault(SchemaItem(event.type), {})
        if self.task != "eet":
            roles.update(dict.fromkeys(role for role, _ in event.arguments))

    def _add_relation(self, relation: Relation, types: Mapping[str, str]) -> None:
        subject_type, object_type = relation.types(types)
        if self.task == "re":
            self._parts.setdefault(SchemaItem(relation.label), {})
        elif self.task == "kg" and subject_type:
            self._parts.setdefault(SchemaItem(subject_type), {})[relation.label] = None
        elif subject_type and object_type:
            self._parts.setdefault(SchemaItem(relation.label, (subject_type, object_type)), {})

    def schema(self) -> Schema:
        """Return the collected types as a schema."""
        return Schema(
            self.task, (SchemaItem(name, parts or tuple(more)) for (name, parts), more in self._parts.items())
        )
