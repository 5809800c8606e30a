"""Read the rows of IEPile's test sets: the correct items of the whole text are a JSON list under "label".

    {"id", "task", "source", "instruction": '{"instruction", "schema", "input"}', "label": '[{"entity", …}, …]'}

In a file of predictions of the published code, the prediction is under "output". A row asks for a part of the types;
its correct answer has only these types.
"""

import json
from typing import Any

from extraction_metrics.answer_items import INVALID, parse_json

LABEL_KEYS = {"ner": ("entity_type", "entity"), "eet": ("event_type", "event_trigger")}
Items = list[dict[str, Any]]


def is_labelled(row: dict[str, Any], has_prediction: bool) -> bool:
    """Return whether the correct answer of a row is under "label".

    has_prediction: whether the prediction has a key of its own; then "output", if there is one, is the correct answer.
    """
    label = row.get("label")
    return isinstance(label, str | list) and not (has_prediction and isinstance(row.get("output"), str))


def labelled_answer(location: str, row: dict[str, Any], question: dict[str, Any], task: str) -> str:
    """Return the correct answer of a row as JSON, in the form of its task.

    question: the JSON object of the instruction. Raises ValueError if the label or the schema does not have the form of
    the task, or if the task is not known.
    """
    label = parse_json(row["label"]) if isinstance(row["label"], str) else row["label"]
    try:
        if not task or label is INVALID:
            raise ValueError
        return json.dumps(read_label(label, question["schema"], task), ensure_ascii=False)
    except (ValueError, TypeError, KeyError, AttributeError):
        fact = (
            f"has a 'label' or a schema that is not of the form of task {task}"
            if task
            else "has a 'label', but no task"
        )
        raise ValueError(f"{location} {fact}; correct the row, or give --task") from None


def read_label(label: Items, schema: Any, task: str) -> dict[str, Any]:
    """Return the correct answer to a schema; raises KeyError, TypeError or AttributeError for another form."""
    if task in LABEL_KEYS:
        kind, name = LABEL_KEYS[task]
        return {each: [item[name] for item in label if item[kind] == each] for each in schema}
    if task in ("re", "spo"):
        names = [each if isinstance(each, str) else each["predicate"] for each in schema]
        return {
            each: [{"subject": item["head"], "object": item["tail"]} for item in label if item["relation"] == each]
            for each in names
        }
    if task == "kg":
        return labelled_graph(label, [(each["entity_type"], roles_of(each)) for each in schema])
    answer: dict[str, Any] = {}
    for each in schema:
        events = [event for event in label if event["event_type"] == each["event_type"]]
        answer[each["event_type"]] = [labelled_event(event, roles_of(each), task) for event in events]
    return answer


def roles_of(each: dict[str, Any]) -> list[str]:
    """Return the roles or attributes of a type of a schema."""
    return [str(role) for key in ("arguments", "attributes", "attribute") for role in each.get(key, ())]


def labelled_event(event: dict[str, Any], roles: list[str], task: str) -> dict[str, Any]:
    """Return an event in the form of the task ee or eea, with the arguments of these roles."""
    arguments: dict[str, list[Any]] = {role: [] for role in roles}
    for argument in event["arguments"]:
        if argument["role"] in arguments:
            arguments[argument["role"]].append(argument["argument"])
    return {"trigger": event["event_trigger"], "arguments": arguments} if task == "ee" else arguments


def labelled_graph(label: Items, types: list[tuple[str, list[str]]]) -> dict[str, Any]:
    """Return a knowledge graph.

    types: (entity type, attributes). A label has no types of heads, so a head gets the first type with the attribute.
    """
    answer: dict[str, dict[str, dict[str, list[Any]]]] = {}
    for item in label:
        found = next((name for name, attributes in types if item["relation"] in attributes), None)
        if found is not None:
            answer.setdefault(found, {}).setdefault(item["head"], {}).setdefault(item["relation"], []).append(
                item["tail"]
            )
    return answer
