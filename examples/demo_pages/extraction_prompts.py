"""Build extraction instructions from a task, a schema and a text, and read the model's answers.

The tasks and their schemas:
    ner  entity types            ["person", "place"]
    re   relations               ["born in", "works for"]
    ee   event types and roles   {"layoff": ["company", "time"]}
A checkpoint that was tuned to extract says in extraction.json how it was asked; its wording goes before ours:
    {"tasks": {"ner": {"en": {"instruction": "Extract the entities: {schema}"}}}}    ({schema} may be absent)
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

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


def build(
    task: str, schema: Schema, text: str, language: str = "en", extraction: Mapping[str, Any] | None = None
) -> tuple[str, str]:
    """The (instruction, input) that asks for `schema` in `text`, in the checkpoint's own wording where it has one.

    extraction: the checkpoint's extraction.json. Raises ValueError on an unknown task or language and on a schema that
    the wording needs but that is empty or of the wrong shape.
    """
    if task not in TASKS or language not in LANGUAGES:
        raise ValueError(f"no extraction task {task!r} in {language!r}; tasks: {', '.join(TASKS)}, languages: en, zh")
    wording = own_wording(extraction or {}, task, language) or WORDING[language][task]
    if "{schema}" in wording:
        wording = wording.replace("{schema}", say(schema, task, language))
    return wording, text


def own_wording(extraction: Mapping[str, Any], task: str, language: str) -> str:
    """The wording in extraction.json, "" where it has none for this task and language."""
    said = extraction.get("tasks", {}).get(task, {}).get(language, {})
    return str(said.get("instruction", ""))


def say(schema: Schema, task: str, language: str) -> str:
    """The schema as a phrase: `person, place`, or for events `layoff (company, time); meeting (who)`."""
    if not schema or isinstance(schema, dict) != (task == "ee"):
        example = "layoff: company, time; meeting: who" if task == "ee" else "person, place"
        raise ValueError(f"the task {task} needs a schema such as `{example}`")
    comma, semicolon, brackets = (", ", "; ", " ({})") if language == "en" else ("、", "；", "（{}）")
    if isinstance(schema, list):
        return comma.join(schema)
    events = (name + (brackets.format(comma.join(roles)) if roles else "") for name, roles in schema.items())
    return semicolon.join(events)


def parse_schema(text: str, task: str) -> Schema:
    """A schema as people type it: `person, place`; for events `layoff: company, time; meeting: who`.

    Chinese punctuation does as well, and a new line separates like a semicolon.
    """
    if task != "ee":
        return names(text)
    events = {}
    for part in re.split(r"[;；\n]", text):
        name, _, roles = part.replace("：", ":").partition(":")
        if name.strip():
            events[name.strip()] = names(roles)
    return events


def typed(schema: Schema) -> str:
    """The schema as people type it; parse_schema's inverse."""
    if isinstance(schema, list):
        return ", ".join(schema)
    return "; ".join(f"{name}: {', '.join(roles)}" for name, roles in schema.items())


def names(text: str) -> list[str]:
    return [name.strip() for name in re.split(r"[,，、;；\n]", text) if name.strip()]


# --- answers ----------------------------------------------------------------------------------------------------------


def read_answer(text: str) -> dict[str, Any] | None:
    """The JSON object that the answer holds, None where there is none that parses."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def rows(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was found, one (kind, what) each: entities as they are, relations as `subject → object`, events with roles.

    Parts of another shape than the ones above are shown as JSON.
    """
    for kind, items in answer.items():
        for item in items if isinstance(items, list) else [items]:
            yield kind, show(item)


def show(item: Any) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, dict) and {"subject", "object"} <= item.keys():
        return f"{item['subject']} → {item['object']}"
    if isinstance(item, dict) and isinstance(item.get("arguments"), dict):
        roles = ", ".join(f"{role}: {value}" for role, value in item["arguments"].items())
        return f"{item.get('trigger', '')} ({roles})"
    return json.dumps(item, ensure_ascii=False)
