"""The schema of an extraction: what is asked for, checked.

the route /extract is made of it. By task:
    ner  entity types           ["person", "place"]
    re   relations              ["born in", "works for"]
    spo  relations with types   [{"subject_type": "person", "predicate": "born in", "object_type": "place"}], or
                                ["person_born in_place"] where the names themselves have no underscore
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
MOST_NAMES = 500  # types and roles
LONGEST_NAME = 200  # characters
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, halves of surrogate pairs, line separators


class Kind(NamedTuple):
    """One of the things asked for: an entity type, a relation, an event type."""

    name: str
    subject_type: str = ""  # of a relation, in spo alone
    object_type: str = ""
    roles: tuple[str, ...] = ()  # of an event

    def within(self) -> tuple[str, ...]:
        """The names that belong to this one: its types, or its roles."""
        return tuple(filter(None, (self.subject_type, self.object_type, *self.roles)))


def check_schema(task: str, schema: Any) -> tuple[Kind, ...]:
    """The kinds in a request's schema, in its order; ValueError with one line where it is none for this task."""
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r:.60}; take one of {', '.join(TASKS)}")
    expected = f"the task {task} needs one such as {EXAMPLES[task]}"
    if not isinstance(schema, dict if task == "ee" else list) or not schema:
        raise ValueError(f"the schema is empty or no {'object' if task == 'ee' else 'list'}; {expected}")
    kinds: list[Kind] = []
    names = 0
    for entry in schema.items() if isinstance(schema, dict) else schema:
        kind = as_kind(task, entry)
        if kind is None:
            raise ValueError(f"the schema's {entry!r:.60} is of another form; {expected}")
        names += 1 + len(kind.roles)
        if names > MOST_NAMES:
            raise ValueError(f"the schema has more than {MOST_NAMES} types and roles; ask for them in several goes")
        for name in (kind.name, *kind.within()):
            check_name(name)
        if kind in kinds or len(set(kind.roles)) < len(kind.roles):
            raise ValueError(f"the schema has {kind.name!r:.60}, or a role of it, more than once; name each once")
        kinds.append(kind)
    return tuple(kinds)


def as_kind(task: str, entry: Any) -> Kind | None:
    """An entry of a schema; None where it is of another form than the task's."""
    if task == "spo":
        if isinstance(entry, str) and entry.count("_") == 2:  # more could be cut in several ways
            entry = dict(zip(TYPED_RELATION, entry.split("_"), strict=True))
        if not isinstance(entry, dict) or set(entry) != set(TYPED_RELATION) or not all(map(is_name, entry.values())):
            return None
        return Kind(entry["predicate"], entry["subject_type"], entry["object_type"])
    name, roles = entry if task == "ee" else (entry, [])
    if not is_name(name) or not isinstance(roles, list) or not all(map(is_name, roles)):
        return None
    return Kind(name, roles=tuple(roles))


def is_name(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip())


def check_name(name: str) -> None:
    """Raise ValueError where a type or role is too long, or not a line of whole characters."""
    if len(name) > LONGEST_NAME:
        raise ValueError(f"the schema's {name[:40]!r}… has more than {LONGEST_NAME} characters; shorten it")
    if any(unicodedata.category(character) in UNPRINTABLE for character in name):
        raise ValueError(f"the schema's {name!r:.60} holds a control character or half a character; take it out")
