"""Check the schema of an extraction request. Schemas by task:

ner  entity types           ["person", "place"]
re   relations              ["born in", "works for"]
spo  relations with types   [{"subject_type": "person", "predicate": "born in", "object_type": "place"}], or
                            ["person_born in_place"] if no name contains an underscore
ee   event types and roles  {"layoff": ["company", "time"]}
"""

import unicodedata
from typing import Any, NamedTuple

EXAMPLES = {
    "ner": '["person", "place"]',
    "re": '["born in", "works for"]',
    "spo": '[{"subject_type": "person", "predicate": "born in", "object_type": "place"}]',
    "ee": '{"layoff": ["company", "time"]}',
}
TASKS = tuple(EXAMPLES)
TYPED_RELATION = ("subject_type", "predicate", "object_type")
MAX_NAMES = 500  # types and roles of a schema
MAX_NAME_CHARACTERS = 200
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, half surrogate pairs, line separators


class SchemaType(NamedTuple):
    """One entry of a schema: an entity type, a relation or an event type."""

    name: str
    subject_type: str = ""  # of a relation in spo
    object_type: str = ""
    roles: tuple[str, ...] = ()  # of an event

    def label(self) -> str:
        """Return the name under which extraction.json has a description: in spo with the types, a_b_c."""
        return "_".join((self.subject_type, self.name, self.object_type)) if self.subject_type else self.name

    def parts(self) -> tuple[str, ...]:
        """Return the subject and object types of a relation, or the roles of an event."""
        return tuple(filter(None, (self.subject_type, self.object_type, *self.roles)))


def check_schema(task: str, schema: Any) -> tuple[SchemaType, ...]:
    """Return the types of a schema, in its order; raises ValueError if it is not valid for the task."""
    expected = f"the task {task} needs a schema such as {EXAMPLES[task]}"
    if not isinstance(schema, dict if task == "ee" else list) or not schema:
        raise ValueError(f"the schema is empty or not {'an object' if task == 'ee' else 'a list'}; {expected}")
    types: list[SchemaType] = []
    names = 0
    for entry in schema.items() if isinstance(schema, dict) else schema:
        type_ = parse_entry(task, entry)
        if type_ is None:
            raise ValueError(f"the schema's entry {entry!r:.60} does not fit the task; {expected}")
        names += 1 + len(type_.roles)
        if names > MAX_NAMES:
            raise ValueError(f"the schema has more than {MAX_NAMES} types and roles; split it over several requests")
        for name in (type_.name, *type_.parts()):
            if len(name) > MAX_NAME_CHARACTERS:
                raise ValueError(
                    f"the schema's {name[:40]!r}… has more than {MAX_NAME_CHARACTERS} characters; shorten it"
                )
            if any(unicodedata.category(character) in UNPRINTABLE for character in name):
                raise ValueError(
                    f"the schema's {name!r:.60} has a control character or half a surrogate pair; remove it"
                )
        if type_ in types or len(set(type_.roles)) < len(type_.roles):
            raise ValueError(f"the schema repeats {type_.name!r:.60} or one of its roles; give each name once")
        types.append(type_)
    return tuple(types)


def parse_entry(task: str, entry: Any) -> SchemaType | None:
    """Parse an entry of a schema; return None if its form does not fit the task."""
    if task == "spo":
        if isinstance(entry, str) and entry.count("_") == 2:  # more underscores would be ambiguous
            entry = dict(zip(TYPED_RELATION, entry.split("_"), strict=True))
        if not isinstance(entry, dict) or set(entry) != set(TYPED_RELATION) or not all(map(is_name, entry.values())):
            return None
        return SchemaType(entry["predicate"], entry["subject_type"], entry["object_type"])
    name, roles = entry if task == "ee" else (entry, [])
    if not is_name(name) or not isinstance(roles, list) or not all(map(is_name, roles)):
        return None
    return SchemaType(name, roles=tuple(roles))


def is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip())
