"""Read and check annotated sentences and lists of types.

Annotations are JSON objects of this form; of the two lists, only the list of the requested task is required:
    {"sentence": "Ann Lee was born in Oslo.", "entity_list": [{"name": "Ann Lee", "type": "person"}],
     "relation_list": [{"subject": "Ann Lee", "relation": "born in", "object": "Oslo"}]}
Types are a JSON list, or lists by kind and language: {"entity": {"en": [...], "zh": [...]}, "relation": {"en": [...]}}.
"""

import json
from typing import Any, NamedTuple

from json_rows.row_files import iterate_objects, read_json
from text_language.language_detection import LANGUAGES, language_of

TYPES_FORM = 'a JSON list of types, or {"entity": {"en": [...]}, "relation": {"en": [...]}}'


class AnnotationKeys(NamedTuple):
    """The keys of a task in annotations and in a types file."""

    items: str  # list of items of an annotation
    label: str  # type or relation of an item
    names: tuple[str, ...]  # names in an item
    types: str  # lists of types in a types file


TASKS = {
    "ner": AnnotationKeys("entity_list", "type", ("name",), "entity"),
    "re": AnnotationKeys("relation_list", "relation", ("subject", "object"), "relation"),
}


class AnnotatedItem(NamedTuple):
    """An entity or triple. label: its type or relation; names: (name,) or (subject, object)."""

    label: str
    names: tuple[str, ...]


class Annotation(NamedTuple):
    """A sentence, its language and its entities or triples."""

    sentence: str
    language: str
    items: list[AnnotatedItem]


def read_annotations(path: str, task: str, language: str = "auto") -> list[Annotation]:
    """Return the annotated sentences of a JSON or JSONL file with their items for `task`.

    language: language of the sentences; "auto" detects it for each sentence. Raises FileNotFoundError, or ValueError
    with file and line.
    """
    keys = TASKS[task]
    annotations = []
    for location, entry in iterate_objects(path):
        sentence: Any = entry.get("sentence")
        items: Any = entry.get(keys.items)
        errors = [missing_text_error(entry, "sentence")]
        if isinstance(items, list):
            errors += [missing_text_error(item, keys.label, *keys.names) for item in items]
        else:
            errors.append(f"has no list under {keys.items!r} (keys: {', '.join(entry)})")
        if any(errors):
            names = ", ".join(f'"{key}"' for key in (keys.label, *keys.names))
            expected = f'{{"sentence", "{keys.items}": [{{{names}}}]}}'
            raise ValueError(f"{location} {next(filter(None, errors))}; {expected} is expected for --task {task}")
        annotated = [AnnotatedItem(item[keys.label], tuple(item[key] for key in keys.names)) for item in items]
        annotations.append(Annotation(sentence, language_of(sentence) if language == "auto" else language, annotated))
    return annotations


def missing_text_error(entry: Any, *keys: str) -> str:
    """Return an error message if an entry does not have text under each of the keys, else ""."""
    if not isinstance(entry, dict):
        return f"has {json.dumps(entry)[:40]}, which is not a JSON object"
    missing = next((key for key in keys if not isinstance(entry.get(key), str) or not entry[key].strip()), None)
    return "" if missing is None else f"has no text under {missing!r} (keys: {', '.join(entry) or 'none'})"


def read_types(path: str, task: str) -> dict[str, list[str]]:
    """Return language -> types to ask for; a plain list applies to every language.

    Raises FileNotFoundError or ValueError.
    """
    content = read_json(path, f"--types takes {TYPES_FORM}")
    kind = TASKS[task].types
    by_language = content.get(kind) if isinstance(content, dict) else dict.fromkeys(LANGUAGES, content)
    if not isinstance(by_language, dict):
        raise ValueError(f"{path} has no lists by language under {kind!r}; --types takes {TYPES_FORM}")
    for language, types in by_language.items():
        if not isinstance(types, list) or not all(isinstance(name, str) and name.strip() for name in types):
            where = f" under {kind!r}, {language!r}" if isinstance(content, dict) else ""
            raise ValueError(f"{path} has no list of names{where}; --types takes {TYPES_FORM}")
    return {language: list(dict.fromkeys(types)) for language, types in by_language.items()}
