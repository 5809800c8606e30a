"""Read and check annotated sentences and lists of types.

Annotations are rows (see json_rows) with CrossNER's keys and, for relations, a list of their own; only the list of the
task must be there:
    {"sentence": "Ann Lee was born in Oslo.", "entity_list": [{"name": "Ann Lee", "type": "person"}],
     "relation_list": [{"subject": "Ann Lee", "relation": "born in", "object": "Oslo"}]}
Types are a JSON list, or the two-level form {"entity": {"en": [...], "zh": [...]}, "relation": {"en": [...]}}.
"""

import json
from typing import Any, NamedTuple

from json_rows.row_files import iterate_objects, read_json
from text_language.language_detection import LANGUAGES, language_of

TYPES_FORM = 'a JSON list of types, or {"entity": {"en": [...]}, "relation": {"en": [...]}}'


class Task(NamedTuple):
    """Where a task's items stand in an annotation, under which keys, and which list of types is theirs."""

    items: str
    label: str
    names: tuple[str, ...]
    types: str


TASKS = {
    "ner": Task("entity_list", "type", ("name",), "entity"),
    "re": Task("relation_list", "relation", ("subject", "object"), "relation"),
}


class Item(NamedTuple):
    """An annotated thing: its type or relation, and its name, or its subject and object."""

    label: str
    names: tuple[str, ...]


class Annotation(NamedTuple):
    sentence: str
    language: str
    items: list[Item]


def read_annotations(path: str, task: str, language: str = "auto") -> list[Annotation]:
    """The sentences of a file with their items for `task`, all in `language` or each in its own (auto).

    Raises FileNotFoundError, or ValueError with file and line.
    """
    form = TASKS[task]
    found = []
    for place, entry in iterate_objects(path):
        complaint = complain(entry, form)
        if complaint:
            keys = ", ".join(f'"{key}"' for key in (form.label, *form.names))
            expected = f'{{"sentence", "{form.items}": [{{{keys}}}]}}'
            raise ValueError(f"{place} {complaint}; {expected} is expected for --task {task}")
        items = [Item(item[form.label], tuple(item[key] for key in form.names)) for item in entry[form.items]]
        spoken = language_of(entry["sentence"]) if language == "auto" else language
        found.append(Annotation(entry["sentence"], spoken, items))
    return found


def complain(entry: dict[str, Any], form: Task) -> str:
    """What is wrong with an annotated sentence, or ""."""
    complaint = lacks_text(entry, "sentence")
    if complaint:
        return complaint
    if not isinstance(entry.get(form.items), list):
        return f"has no list under {form.items!r} (keys: {', '.join(entry)})"
    return next(filter(None, (lacks_text(item, form.label, *form.names) for item in entry[form.items])), "")


def lacks_text(entry: Any, *keys: str) -> str:
    """The first of the keys that has no text, as a complaint; "" if all have."""
    if not isinstance(entry, dict):
        return f"has {json.dumps(entry)[:40]}, which is not a JSON object"
    missing = next((key for key in keys if not isinstance(entry.get(key), str) or not entry[key].strip()), None)
    return "" if missing is None else f"has no text under {missing!r} (keys: {', '.join(entry) or 'none'})"


def read_types(path: str, task: str) -> dict[str, list[str]]:
    """Language -> the types to ask for: a plain list for every language, or the two-level form's lists for `task`."""
    known = read_json(path, f"--types takes {TYPES_FORM}")
    kind = TASKS[task].types
    lists = known.get(kind) if isinstance(known, dict) else dict.fromkeys(LANGUAGES, known)
    if not isinstance(lists, dict):
        raise ValueError(f"{path} has no lists by language under {kind!r}; --types takes {TYPES_FORM}")
    for language, types in lists.items():
        if not isinstance(types, list) or not all(isinstance(name, str) and name.strip() for name in types):
            where = f" under {kind!r}, {language!r}" if isinstance(known, dict) else ""
            raise ValueError(f"{path} holds no list of names{where}; --types takes {TYPES_FORM}")
    return {language: list(dict.fromkeys(types)) for language, types in lists.items()}


def types_that_occur(annotations: list[Annotation]) -> dict[str, list[str]]:
    """Language -> the types in its sentences, in the order of their first mention."""
    found: dict[str, dict[str, None]] = {}
    for annotation in annotations:
        found.setdefault(annotation.language, {}).update((item.label, None) for item in annotation.items)
    return {language: list(types) for language, types in found.items()}
