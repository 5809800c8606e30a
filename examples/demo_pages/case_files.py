"""Read files of cases (the suites in examples/cases, or the user's own), and write the file of answers.

A case is {"instruction", "input"}, {"text"} to continue, or {"task", "schema", "text"} to extract; it may have a
"group" (its title) and a "decoding" of its own. A file holds cases as JSON or JSONL rows, or one suite:
{"source": "…", "decoding": {…}, "cases": [{…}]}.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from json_rows.row_files import iterate_objects
from partial_folders import output_paths
from partial_folders.atomic_outputs import new_file
from text_language.language_detection import language_of

from demo_pages.extraction_prompts import extraction_question
from demo_pages.text_generation import resolve_decoding

FORMS = '{"instruction", "input"}, {"text"} or {"task", "schema", "text"}'

Case = dict[str, Any]


class Suite(NamedTuple):
    """Cases and their decoding settings."""

    cases: list[Case]
    places: list[str]  # of each case, for error messages: "mine.jsonl:3"
    decoding: dict[str, Any]
    source: str  # place of the published answers, "" if there are none


def read_cases(name: str) -> Suite:
    """Return the suite examples/cases/<name>.json."""
    return read_suite(Path(__file__).parent.parent / "cases" / f"{name}.json")


def read_suite(path: str | Path, decoding: Mapping[str, Any] | None = None) -> Suite:
    """Return the suite in a file. decoding: default settings, over which the settings in the file take precedence.

    Raises FileNotFoundError, or ValueError with the place of the first invalid case or decoding.
    """
    rows = list(iterate_objects(path))
    head: dict[str, Any] = rows[0][1] if len(rows) == 1 and "cases" in rows[0][1] else {}
    if head:
        if not isinstance(head["cases"], list) or not head["cases"]:
            raise ValueError(f"{rows[0][0]} has cases that are not a list of at least one case; a case is {FORMS}")
        rows = [(f"{path}, case {number}", case) for number, case in enumerate(head["cases"], 1)]
    for place, case in [(str(path), head), *rows]:
        if error := decoding_error(case) or ("" if case is head else case_error(case)):
            raise ValueError(f"{place} {error}")
    settings = {**(decoding or {}), **head.get("decoding", {})}
    return Suite([case for _, case in rows], [place for place, _ in rows], settings, head.get("source", ""))


def decoding_error(case: Any) -> str:
    """Return why the "decoding" of a case or a suite cannot be used, or ""."""
    settings = case.get("decoding", {}) if isinstance(case, dict) else {}
    if not isinstance(settings, dict):
        return 'has a decoding that is not an object such as {"num_beams": 4}'
    try:
        resolve_decoding(settings, {})
    except ValueError as error:
        return f"has a decoding that cannot be used: {error}"
    return ""


def case_error(case: Any) -> str:
    """Return why an object is not a case, or ""."""
    if not isinstance(case, dict):
        return f"is not a JSON object; a case is {FORMS}"
    if "schema" in case and "task" not in case:
        return 'has a schema but no task; add "task": "ner", "re" or "ee"'
    needed = "instruction" if "instruction" in case and "task" not in case else "text"
    text = case.get(needed)
    if not isinstance(text, str) or not text.strip():
        return f"has no text under {needed!r} (keys: {', '.join(map(str, case)) or 'none'}); a case is {FORMS}"
    if not isinstance(case.get("input") or "", str):
        return "has an input that is not text"
    schema = case.get("schema", [])
    lists = schema.values() if isinstance(schema, dict) else [schema]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        return 'has a schema that is not a list of types or, for events, {"type": ["role", …]}'
    return ""


def case_text(case: Case, extraction: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Return (text or instruction, input, whether it is an instruction).

    extraction: the model's extraction.json. Raises ValueError if task, schema and language do not fit together.
    """
    if "task" in case:
        language = case.get("language") or language_of(case["text"])
        return *extraction_question(case["task"], case.get("schema", []), case["text"], language, extraction), True
    if "instruction" in case:
        return case["instruction"], case.get("input") or "", True
    return case["text"], "", False


def case_title(case: Case) -> str:
    """Return the title of a case: its group, else its task and language, else its form."""
    if "group" in case or "task" not in case:
        return str(case.get("group") or ("instruction" if "instruction" in case else "text"))
    return f"{case['task']} ({case.get('language') or language_of(case['text'])})"


def check_output(path: str) -> None:
    """Raise ValueError, FileNotFoundError or FileExistsError if a file of answers cannot be created.

    Called before a model is loaded. path: "" if no file was requested.
    """
    if not path:
        return
    if Path(path).exists():
        raise FileExistsError(f"{path} exists; choose another --output, or remove it")
    output_paths.check_output(path, [])


@contextmanager
def answers_file(path: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that writes one JSON line; the file appears at `path` once all lines are written.

    An exception in the context removes the unfinished file. Without a path, nothing is written.
    """
    if not path:
        yield lambda row: None
        return
    with new_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        yield lambda row: print(json.dumps(row, ensure_ascii=False), file=file, flush=True)
