"""Annotated sentences and lists of types: reading them, checked, whatever form they come in.

ie_build.py is made of it. Annotations are a JSON list or one JSON object a line, with CrossNER's keys
and, for relations, a list of their own; only the list of the task at hand must be there:
    {"sentence": "Ann Lee was born in Oslo.", "entity_list": [{"name": "Ann Lee", "type": "person"}],
     "relation_list": [{"subject": "Ann Lee", "relation": "born in", "object": "Oslo"}]}
Types are a JSON list, or the two-level form {"entity": {"en": [...], "zh": [...]}, "relation": {"en": [...]}}.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from text_language.language_detection import LANGUAGES, language_of

TYPES_FORM = 'a JSON list of types, or {"entity": {"en": [...]}, "relation": {"en": [...]}}'
HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")  # JSON can spell one of a surrogate pair alone, UTF-8 cannot


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


def load_json(path: str | Path, text: str, first_line: int = 1) -> Any:
    """`text`, which begins at `first_line` of the file, as JSON; ValueError with the line where it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}:{line} is not JSON ({error.msg}); repair that line") from None
    except RecursionError:
        raise ValueError(f"{path}:{first_line} is nested too deep; repair that line") from None


def read_text(path: str | Path, option: str, form: str) -> str:
    """A file's text without byte order mark; raises an error that says what `option` takes."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; {option} takes {form}")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it first") from None


def entries(path: str) -> Iterator[tuple[str, Any]]:
    """(place, entry) of a JSON list or a JSONL file; their first character tells them apart."""
    text = read_text(path, "--annotations", "a JSON list or JSONL of annotated sentences")
    if text.lstrip()[:1] == "[":
        yield from ((f"{path}, entry {number}", entry) for number, entry in enumerate(load_json(path, text), 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", load_json(path, line, number)


def read_annotations(path: str, task: str, language: str = "auto") -> list[Annotation]:
    """The sentences of a file with their items for `task`, all in `language` or each in its own (auto).

    Raises FileNotFoundError or ValueError that names the file and the line (for a JSON list: the entry).
    """
    form = TASKS[task]
    found = []
    for place, entry in entries(path):
        complaint = complain(entry, form)
        if complaint:
            keys = ", ".join(f'"{key}"' for key in (form.label, *form.names))
            expected = f'{{"sentence", "{form.items}": [{{{keys}}}]}}'
            raise ValueError(f"{place}: {complaint}; {expected} is expected for --task {task}")
        items = [Item(item[form.label], tuple(item[key] for key in form.names)) for item in entry[form.items]]
        spoken = language_of(entry["sentence"]) if language == "auto" else language
        found.append(Annotation(entry["sentence"], spoken, items))
    if not found:
        raise ValueError(f"{path} holds no annotated sentences; it must be a JSON list or one JSON object a line")
    return found


def complain(entry: Any, form: Task) -> str:
    """What is wrong with an annotated sentence, or nothing."""
    complaint = lacks_text(entry, "sentence")
    if complaint:
        return complaint
    if not isinstance(entry.get(form.items), list):
        return f"no list under {form.items!r} (keys: {', '.join(entry)})"
    return next(filter(None, (lacks_text(item, form.label, *form.names) for item in entry[form.items])), "")


def lacks_text(entry: Any, *keys: str) -> str:
    """The first of the keys that has no usable text, as a complaint; "" if all have."""
    if not isinstance(entry, dict):
        return f"{json.dumps(entry)[:40]} is not a JSON object"
    for key in keys:
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            return f"no text under {key!r} (keys: {', '.join(entry) or 'none'})"
        if HALF_CHARACTER.search(entry[key]):
            return f"half a character (a lone surrogate) under {key!r}"
    return ""


def read_types(path: str, task: str) -> dict[str, list[str]]:
    """Language -> the types to ask for: a plain list for every language, or the two-level form's lists for `task`."""
    known = load_json(path, read_text(path, "--types", TYPES_FORM))
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
