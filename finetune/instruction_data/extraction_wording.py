"""Read the wording of extraction instructions, and write extraction.json, which records it for demos and the server.

{"tasks": {"ner": {"en": {"text_characters": 120, "instruction": "… {schema} …", "answer": {...}}}}}

An entry of the style schema_json also has "style": "schema_json"; "schema_batch" is the number of types per row, if it
is limited; "descriptions" are the descriptions of the types, if the instructions give them.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from json_rows.row_files import read_json

from instruction_data.default_wordings import SHAPES, WORDINGS

PLACEHOLDER = re.compile(r"<[^<>]+>")
PAIRS = (("subject", "object"), ("head", "tail"))
SAME_IN_ALL_ROWS = ("style", "schema_batch", "descriptions")  # keys of an entry, and options


class TaskWording(NamedTuple):
    """The wording of a task in one language, and the shape of the answer."""

    instruction: str  # in prose, {schema} stands for the types
    shape: dict[str, Any]


def tasks_of(path: str | Path, content: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the value of "tasks" in the content of an extraction.json: task -> language -> {"instruction", ...}.

    Raises ValueError if the content is invalid; path: the file, for the message.
    """
    tasks = content.get("tasks") if isinstance(content, dict) else None
    if isinstance(tasks, dict) and all(isinstance(languages, dict) for languages in tasks.values()):
        entries = [entry for languages in tasks.values() for entry in languages.values()]
        texts = [entry.get("instruction") if isinstance(entry, dict) else None for entry in entries]
        if all(isinstance(text, str) and text.strip() for text in texts):
            return tasks
    expected = '{"tasks": {"ner": {"en": {"instruction": …}}}}'
    raise ValueError(f"{path} is not an extraction.json of the form {expected}; repair it or name another file")


def lists_all_types(task: str, style: str, instruction: str) -> bool:
    """Return whether an answer lists types without items: if the row names the types, and the task is not kg."""
    return task != "kg" and (style == "schema_json" or "{schema}" in instruction)


def answer_entry(task: str, style: str, wording: TaskWording) -> dict[str, Any]:
    """Return the description of an answer in extraction.json: its shape, and whether it lists types without items."""
    lists_all = lists_all_types(task, style, wording.instruction)
    return {"shape": wording.shape, "absent": "empty list" if lists_all else "left out"}


def is_supported_shape(task: str, shape: Any) -> bool:
    """Return whether ie_build.py writes answers in a shape: the default, whatever the names of its placeholders.

    In re and spo, the key may have more than the relation, and head and tail may replace subject and object.
    """
    if task not in ("re", "spo") or not isinstance(shape, dict) or len(shape) != 1:
        return without_placeholder_names(shape) == without_placeholder_names(SHAPES[task])
    key, items = next(iter(shape.items()))
    pair = items[0] if isinstance(items, list) and len(items) == 1 else None
    has_pair = isinstance(pair, dict) and set(pair) in map(set, PAIRS) and all(map(is_placeholder, pair.values()))
    return has_pair and not set(PLACEHOLDER.findall(key)) <= {"<subject_type>", "<object_type>"}


def without_placeholder_names(shape: Any) -> str:
    """Return a shape as JSON in which all placeholders are <>."""
    return PLACEHOLDER.sub("<>", json.dumps(shape))


def is_placeholder(value: Any) -> bool:
    """Return whether a value is a placeholder such as <name>."""
    return isinstance(value, str) and PLACEHOLDER.fullmatch(value) is not None


def entry_shape(path: str | Path, task: str, language: str, style: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the shape of answers in an entry of an extraction.json, the default if it has none.

    Raises ValueError if ie_build.py does not write answers in this form for the instruction.
    """
    answer = entry.get("answer", {})
    shape: Any = answer.get("shape") if isinstance(answer, dict) else None
    shape = shape if is_supported_shape(task, shape) else SHAPES[task]
    expected = answer_entry(task, style, TaskWording(entry["instruction"], shape))
    if not isinstance(answer, dict) or expected | answer != expected:
        raise ValueError(
            f'{path} has an "answer" for {task} in {language} that does not fit its instruction; remove it, or set it '
            f"to {json.dumps(expected)}"
        )
    return dict(shape)


def read_wording(path: str, task: str, style: str) -> dict[str, TaskWording]:
    """Return language -> wording of a task from an extraction.json, or the default wording if `path` is empty.

    Raises FileNotFoundError or ValueError if the file cannot be used, or if it describes another style or answers in
    another form than ie_build.py writes for this wording.
    """
    if not path:
        if task not in WORDINGS[style]:
            raise ValueError(f"--task {task} has no instructions in prose; give --style schema_json")
        return {language: TaskWording(text, SHAPES[task]) for language, text in WORDINGS[style][task].items()}
    entries = tasks_of(path, read_json(path, "--wording takes an extraction.json")).get(task, {})
    wordings = {}
    for language, entry in entries.items():
        if entry.get("style", style) != style or (style == "prose" and task not in WORDINGS[style]):
            raise ValueError(
                f"{path} has the wording of {task} in {language} for --style {entry.get('style', 'schema_json')}; give "
                "this style"
            )
        shape = entry_shape(path, task, language, style, entry)
        wordings[language] = TaskWording(entry["instruction"], shape)
    return wordings


def recorded_tasks(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return task -> language -> entry of the extraction.json at `path`, which may not exist; raises ValueError."""
    return tasks_of(path, read_json(path)) if path.exists() else {}


def check_same_form(path: Path, task: str, style: str, language: str, new: dict[str, Any]) -> None:
    """Raise ValueError if the extraction.json at `path` has another entry for a task and language than the new rows.

    A model is tuned on one wording, form of the answer, style, batch size and set of descriptions only.
    """
    old = recorded_tasks(path).get(task, {}).get(language)
    if old is None:
        return
    if old["instruction"] != new["instruction"]:
        raise ValueError(
            f"{path} has another instruction for {task} in {language}, and a model is tuned on one wording only; "
            f"use the instruction of the file with --wording {path}, or write --output to another folder"
        )
    for key in SAME_IN_ALL_ROWS:
        if old.get(key) != new.get(key):
            raise ValueError(
                f'{path} has another "{key}" for {task} in {language}, and a model is tuned on one form of '
                f"instructions only; give the same --{key}, or write --output to another folder"
            )
    entry_shape(path, task, language, style, old)
    if old.get("answer", new["answer"]) != new["answer"]:
        raise ValueError(
            f'{path} has another "answer" for {task} in {language}; use that of the file with --wording {path}, or '
            "write --output to another folder"
        )


def updated_extraction(path: Path, task: str, style: str, new_entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the content of the extraction.json at `path`, which may not exist, with new entries for a task.

    new_entries: language -> entry. A median sentence length that the file already has is kept, since it comes from the
    training set, and the new examples may be a test set. Raises ValueError as `check_same_form`.
    """
    tasks = recorded_tasks(path)
    content = read_json(path) if path.exists() else {}
    languages = dict(tasks.get(task, {}))
    for language, new in new_entries.items():
        check_same_form(path, task, style, language, new)
        old = languages.get(language, {})
        kept = {"text_characters": old.get("text_characters", new["text_characters"])}
        languages[language] = kept | old | new | kept
    return content | {"tasks": tasks | {task: languages}}
