"""Build an extraction instruction from a task, a schema and a text, and read the model's answer.

Tasks and their schemas:
    ner  entity types            ["person", "place"]
    re   relations               ["born in", "works for"]
    ee   event types and roles   {"layoff": ["company", "time"]}
A checkpoint's extraction.json has the instructions that it was tuned on, which replace the instructions below:
    {"tasks": {"ner": {"en": {"instruction": "Extract the entities: {schema}"}}}}    ({schema} may be absent)
With "style": "schema_json", the model is asked with a JSON object of instruction, schema and text, and has no input.
"""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from json_rows.row_files import read_json
from text_language.language_detection import LANGUAGES

TASKS = ("ner", "re", "ee")
Schema = list[str] | dict[str, list[str]]

WORDING = {
    "en": {
        "ner": "Find the entities of these types in the input: {schema}. Answer with a JSON object that gives for each "
        "type the list of its entities, an empty one where there are none.",
        "re": "Find the relations of these kinds that the input states: {schema}. Answer with a JSON object that gives "
        'for each kind a list of {"subject": …, "object": …}, an empty one where there are none.',
        "ee": "Find the events of these types, with their roles in brackets, that the input reports: {schema}. Answer "
        'with a JSON object that gives for each type a list of {"trigger": …, "arguments": {role: …}}, an empty one '
        "where there are none.",
    },
    "zh": {
        "ner": "请从输入文本中找出下列类型的实体：{schema}。"
        "用一个JSON对象回答：每个类型对应一个实体列表，没有则为空列表。",
        "re": "请从输入文本中找出下列关系：{schema}。用一个JSON对象回答：每种关系对应一个列表，"
        '其中每一项形如{"subject": …, "object": …}，没有则为空列表。',
        "ee": "请从输入文本中找出下列类型的事件（括号内为论元角色）：{schema}。"
        '用一个JSON对象回答：每个类型对应一个列表，其中每一项形如{"trigger": …, "arguments": {角色: …}}，'
        "没有则为空列表。",
    },
}


def extraction_instruction(
    task: str, schema: Schema, language: str = "en", extraction: Mapping[str, Any] | None = None
) -> str:
    """Return the instruction to extract `schema` from an input text, in the checkpoint's wording if it has one.

    extraction: content of the checkpoint's extraction.json. Raises ValueError if the task or language is
    unknown, or if the wording has {schema} and the schema is empty, of the wrong type or has a name with a comma.
    """
    if task not in TASKS or language not in LANGUAGES:
        tasks, languages = ", ".join(TASKS), ", ".join(LANGUAGES)
        raise ValueError(
            f"there is no extraction task {task!r} in {language!r}; the tasks are {tasks}, the languages {languages}"
        )
    wording = checkpoint_wording(extraction or {}, task, language) or WORDING[language][task]
    return wording.replace("{schema}", schema_phrase(schema, task, language)) if "{schema}" in wording else wording


def extraction_question(
    task: str, schema: Schema, text: str, language: str = "en", extraction: Mapping[str, Any] | None = None
) -> tuple[str, str]:
    """Return (instruction, input) to extract `schema` from a text, in the style and wording of the checkpoint.

    Raises the errors of `extraction_instruction`.
    """
    instruction = extraction_instruction(task, schema, language, extraction)
    if checkpoint_entry(extraction or {}, task, language).get("style") != "schema_json":
        return instruction, text
    types: list[Any] = list(schema)
    if isinstance(schema, dict):
        types = [{"event_type": name, "trigger": True, "arguments": roles} for name, roles in schema.items()]
    return json.dumps({"instruction": instruction, "schema": types, "input": text}, ensure_ascii=False), ""


def read_extraction(path: str | Path) -> dict[str, Any]:
    """Return the content of an extraction.json; raises FileNotFoundError, or ValueError if it is malformed."""
    content = read_json(path, "give the extraction.json of a checkpoint")
    try:
        for task, language in product(TASKS, LANGUAGES):
            checkpoint_wording(content, task, language)
    except AttributeError:
        form = '{"tasks": {"ner": {"en": {"instruction": "…"}}}}'
        raise ValueError(f"{path} does not have the form {form}; copy it again") from None
    return content


def checkpoint_wording(extraction: Mapping[str, Any], task: str, language: str) -> str:
    """Return the instruction in extraction.json, or "" if it has none for this task and language."""
    return str(checkpoint_entry(extraction, task, language).get("instruction", ""))


def checkpoint_entry(extraction: Mapping[str, Any], task: str, language: str) -> Mapping[str, Any]:
    """Return the entry of a task and language in extraction.json, {} if it has none."""
    entry: Mapping[str, Any] = extraction.get("tasks", {}).get(task, {}).get(language, {})
    return entry


def schema_phrase(schema: Schema, task: str, language: str) -> str:
    """Return the schema as a phrase: `person, place`, or for events `layoff (company, time); meeting (who)`."""
    if not schema or isinstance(schema, dict) != (task == "ee"):
        example = "layoff: company, time; meeting: who" if task == "ee" else "person, place"
        raise ValueError(f"the task {task} needs a schema such as `{example}`")
    names = (name for each in (schema, *(schema.values() if isinstance(schema, dict) else ())) for name in each)
    if unclear := next((name for name in names if set(name) & set(",，、")), ""):
        raise ValueError(f"the schema's {unclear!r} contains a comma, which separates the names of a schema; rename it")
    comma, semicolon, brackets = (", ", "; ", " ({})") if language == "en" else ("、", "；", "（{}）")
    if isinstance(schema, list):
        return comma.join(schema)
    events = (name + (brackets.format(comma.join(roles)) if roles else "") for name, roles in schema.items())
    return semicolon.join(events)


def parse_schema(text: str, task: str) -> Schema:
    """Read a schema in text form: `person, place`, or for events `layoff: company, time; meeting: who`.

    Chinese punctuation is accepted; a line break has the meaning of a semicolon.
    """
    if task != "ee":
        return parse_names(text)
    events = {}
    for part in re.split(r"[;；\n]", text):
        name, _, roles = part.replace("：", ":").partition(":")
        if name.strip():
            events[name.strip()] = parse_names(roles)
    return events


def schema_text(schema: Schema) -> str:
    """Return the schema in the text form that parse_schema reads."""
    if isinstance(schema, list):
        return ", ".join(schema)
    return "; ".join(f"{name}: {', '.join(roles)}" for name, roles in schema.items())


def parse_names(text: str) -> list[str]:
    return [name.strip() for name in re.split(r"[,，、;；\n]", text) if name.strip()]


def read_answer(text: str) -> dict[str, Any] | None:
    """Return the JSON object in an answer, from the first { to the last }; None if this part is not a JSON object."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def found_items(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (type, item as text) for each item of an answer."""
    for kind, items in answer.items():
        for item in items if isinstance(items, list) else [items]:
            yield kind, item_text(item)


def item_text(item: Any) -> str:
    """Return a text unchanged, a relation as `subject → object`, an event as `trigger (role: value)`, else JSON."""
    if isinstance(item, str):
        return item
    if isinstance(item, dict) and {"subject", "object"} <= item.keys():
        return f"{item['subject']} → {item['object']}"
    if isinstance(item, dict) and isinstance(item.get("arguments"), dict):
        roles = ", ".join(f"{role}: {value}" for role, value in item["arguments"].items())
        return f"{item.get('trigger', '')} ({roles})"
    return json.dumps(item, ensure_ascii=False)
