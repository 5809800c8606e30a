"""JSON schemas of answers, which engines with constrained decoding (vLLM's `structured_outputs`) follow."""

from typing import Any

from extraction_metrics.answer_items import INVALID, parse_json
from extraction_metrics.scored_files import json_question, task_of
from json_rows.row_files import Row

from answer_generation.schema_parts import schema_types, type_key

TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}
TEXT_OR_TEXTS = {"anyOf": [TEXT, TEXTS]}
PAIR_KEYS = ("subject", "object")


def object_of(properties: dict[str, Any], required: bool = True) -> dict[str, Any]:
    """Return the schema of an object with these properties and no others."""
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": list(properties)} if required else {})


def roles_of(each: Any) -> list[str]:
    """Return the roles or attributes of a type of a schema: (type, [role]), or an object with a list of roles."""
    keys = ("arguments", "attributes", "attribute")
    listed = each[1] if isinstance(each, tuple) else next((each[key] for key in keys if key in each), [])
    return [role for role in listed if isinstance(role, str)] if isinstance(listed, list) else []


def answer_schema(task: str, schema: Any) -> dict[str, Any]:
    """Return the JSON schema of the answers to a question.

    task: a key of KINDS_OF_TASK; schema: that of the question. An answer has every type of the schema, and an event has
    every role; in kg, types and attributes may be absent. Raises ValueError if a type has no name.
    """
    properties: dict[str, Any] = {}
    for each in schema_types(schema):
        key = type_key(each)
        if not key or (task in ("ee", "eea", "kg") and isinstance(each, str)):
            raise ValueError(f"has a schema with {str(each)[:60]!r}, which is not a type of the task {task}")
        properties[key] = type_schema(task, each)
    if not properties:
        raise ValueError("has a schema without types")
    return object_of(properties, required=task != "kg")


def type_schema(task: str, each: Any) -> dict[str, Any]:
    """Return the JSON schema of the value of a type in an answer."""
    if task in ("ner", "eet"):
        return TEXTS
    if task in ("re", "spo"):
        return {"type": "array", "items": object_of(dict.fromkeys(PAIR_KEYS, TEXT))}
    roles = object_of(dict.fromkeys(roles_of(each), TEXT_OR_TEXTS), required=task != "kg")
    if task == "kg":
        return {"type": "object", "additionalProperties": roles}
    if task == "eea":
        return {"type": "array", "items": roles}
    has_trigger = not isinstance(each, dict) or bool(each.get("trigger", True))
    event = ({"trigger": TEXT} if has_trigger else {}) | {"arguments": roles}
    return {"type": "array", "items": object_of(event)}


def row_schema(row: Row) -> dict[str, Any]:
    """Return the JSON schema of the answers to a row; raises ValueError if it is not a JSON question with a task."""
    content = row.content or {}
    question, task = json_question(content), task_of(row.location, content)
    if not question or not task:
        missing = 'no "task"' if question else 'no JSON instruction with a "schema"'
        remedy = "build the rows with ie_build.py --style schema_json"
        raise ValueError(f"{row.location} has {missing}, which --grammar needs; {remedy}")
    try:
        return answer_schema(task, question["schema"])
    except ValueError as error:
        raise ValueError(f"{row.location} {error}; correct it, or remove --grammar") from None


def follows(text: str, schema: dict[str, Any]) -> bool:
    """Return whether an answer follows one of the schemas of this file."""
    found = parse_json(text)
    return found is not INVALID and fits(found, schema)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Return whether a JSON value follows a schema of this file."""
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    if schema["type"] == "string":
        return isinstance(value, str)
    if schema["type"] == "array":
        return isinstance(value, list) and all(fits(each, schema["items"]) for each in value)
    if not isinstance(value, dict) or not set(schema.get("required", ())) <= set(value):
        return False
    properties, other = schema.get("properties", {}), schema["additionalProperties"]
    return all(
        fits(each, properties[key]) if key in properties else bool(other) and fits(each, other)
        for key, each in value.items()
    )
