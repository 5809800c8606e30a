"""Ask for the types of a JSON question in several orders or in parts, and merge the answers to the parts.

A JSON question is an instruction {"instruction", "schema", "input"} as one JSON text (IEPile, OneKE). Its schema is a
list of types, or an object {type: [role or attribute]}.
"""

import json
from collections.abc import Sequence
from typing import Any

from extraction_metrics.answer_items import INVALID, joined, parse_json
from extraction_metrics.scored_files import json_question
from instruction_data.type_orders import random_orders
from json_rows.row_files import Row

from answer_generation.batched_generation import GeneratedAnswer

MAX_ORDERS = 100
NAME_KEYS = ("event_type", "predicate", "entity_type", "relation", "name")  # keys of the name of a type in a schema


def schema_types(schema: Any) -> list[Any]:
    """Return the types of a schema: the items of a list, or the (key, value) pairs of an object, else []."""
    if isinstance(schema, dict):
        return list(schema.items())
    return schema if isinstance(schema, list) else []


def schema_of(types: Sequence[Any], schema: Any) -> Any:
    """Return a schema of the same form as `schema` with these types (from `schema_types`)."""
    return dict(types) if isinstance(schema, dict) else list(types)


def type_key(each: Any) -> str:
    """Return the key that a type of `schema_types` has in answers; "" if it has no name."""
    if isinstance(each, tuple):
        return str(each[0])
    if isinstance(each, dict):
        return next((each[key] for key in NAME_KEYS if isinstance(each.get(key), str)), "")
    return each if isinstance(each, str) else ""


def with_schema(content: dict[str, Any], schema: Any) -> dict[str, Any]:
    """Return a row whose JSON question has another schema."""
    question = json_question(content) | {"schema": schema}
    return content | {"instruction": json.dumps(question, ensure_ascii=False)}


def rows_in_orders(rows: Sequence[Row], orders: int) -> list[Row]:
    """Return each row `orders` times, with its types in random orders and the number of the order under "order".

    Equal schemas have equal orders, which differ from each other if there are enough permutations. Raises ValueError if
    a row is not a JSON question, or has an order already.
    """
    if not 1 <= orders <= MAX_ORDERS:
        raise ValueError(f"--orders {orders} is out of range; give 1 to {MAX_ORDERS}")
    found = []
    for row in rows:
        content = row.content or {}
        question = json_question(content)
        if "order" in content:
            raise ValueError(f'{row.location} has an "order" already; remove --orders, or build the rows in one order')
        if not question:
            raise ValueError(
                f"{row.location} names its types in a sentence, so --orders cannot change their order; build the rows "
                f"with ie_build.py --order_augmentation {orders}"
            )
        types = schema_types(question["schema"])
        numbers = random_orders([str(number) for number in range(len(types))], orders, json.dumps(question["schema"]))
        for order, permutation in enumerate(numbers):
            schema = schema_of([types[int(number)] for number in permutation], question["schema"])
            found.append(row._replace(content=with_schema(content, schema) | {"order": order}))
    return found


def question_parts(content: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """Return the rows that ask for at most `size` types each; the row itself if it is not a JSON question or is short.

    size: 0: no limit.
    """
    question = json_question(content)
    types = schema_types(question.get("schema"))
    if not size or len(types) <= size:
        return [content]
    starts = range(0, len(types), size)
    return [with_schema(content, schema_of(types[at : at + size], question["schema"])) for at in starts]


def merged_answer(content: dict[str, Any], answers: Sequence[GeneratedAnswer]) -> dict[str, Any]:
    """Return "prediction" and "finish_reason" of a row from the answers to its parts.

    The answers to several parts are merged into one JSON object, in the order of the schema; items under equal keys are
    joined. The parts that are not JSON objects are counted under "unparsed_parts", and all texts are kept under
    "part_predictions". The finish reason is the first one that is not "stop".
    """
    if len(answers) == 1:
        return {"prediction": answers[0].text, "finish_reason": answers[0].finish_reason}
    found = dict[str, Any](dict.fromkeys(filter(None, map(type_key, schema_types(json_question(content)["schema"])))))
    keys, unparsed = set[str](), 0
    for answer in answers:
        part = parse_json(answer.text)
        if part is INVALID or not isinstance(part, dict) or not is_writable(part):
            unparsed += 1
            continue
        for key, value in part.items():
            found[key] = joined(found[key], value) if key in keys else value
            keys.add(key)
    merged = json.dumps({key: value for key, value in found.items() if key in keys}, ensure_ascii=False)
    reason = next((answer.finish_reason for answer in answers if answer.finish_reason != "stop"), "stop")
    texts = {"part_predictions": [answer.text for answer in answers]}
    return {
        "prediction": merged,
        "finish_reason": reason,
        **({"unparsed_parts": unparsed} if unparsed else {}),
        **texts,
    }


def is_writable(value: Any) -> bool:
    """Return whether a value can be written as JSON: its lists are not nested too deeply."""
    try:
        json.dumps(value)
    except RecursionError:
        return False
    return True


def parts_of(row: Row, size: int) -> list[Row]:
    """Return the rows that ask for at most `size` types each; see question_parts."""
    return [row._replace(content=part) for part in question_parts(row.content or {}, size)]


def answered_lines(rows: Sequence[Row], answers: Sequence[Sequence[GeneratedAnswer]]) -> str:
    """Return the output as JSONL; answers: those to the parts of each row."""
    lines = []
    for row, parts in zip(rows, answers, strict=True):
        content = (row.content or {}) | merged_answer(row.content or {}, parts)
        line = json.dumps(content, ensure_ascii=False)
        # A half of a surrogate pair can only be written as an escape.
        lines.append(line if line.isascii() or is_unicode(line) else json.dumps(content))
    return "".join(f"{line}\n" for line in lines)


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: it has no halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
