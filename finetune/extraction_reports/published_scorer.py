"""Compute the figures that the published scorer of IEPile (zjunlp/IEPile, ie2instruction/eval_func.py) gives.

A row is {"id", "source", "instruction", "label", "output"}: `output` is the prediction, `label` the correct items of
the whole text as JSON. The rows of a text have equal source and id; their predictions are joined, since each row asks
for a part of the types, and `label` is read from the first row. These properties of the scorer are reproduced:

- A prediction is an error (`错误数`) if it is not JSON or not an object. Values of an unexpected form are dropped.
- Items are compared as a multiset (`normal`) or as a set (`set`) in each text; counts are summed over all texts.
- P and R are rounded to two decimals, and F1 is computed from the rounded values.
- A triple is read from the keys subject and object. The published converter writes head and tail, so a correct answer
  in this form scores 0.
- KG: an answer's item is an entity with its attributes, and a label's item is a triple, so nothing matches.

The scorer stops with an error for SPO (here, SPO is scored as RE), for EET (its reader has another method's name; here,
the reader is used) and for KG in mode `set` (its items cannot be hashed; here, they are compared as in `normal`).
"""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

from extraction_metrics.item_kinds import KINDS_OF_TASK, as_json
from json_rows.row_files import iterate_objects

MODES = ("normal", "set")
ABSENT = "NAN"  # text that stands for an argument without a value
Item = tuple[Hashable, ...]
Items = dict[str, list[Item]]  # prefix of the figures' names ("event_", "argument_" or "") -> items


def comparable(value: Any) -> Hashable:
    """Return a JSON value in a form that can be hashed; equal values stay equal, and no other values become equal."""
    return ("JSON", as_json(value)) if isinstance(value, list | dict) else value


def listed_values(answer: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (key, item) for the items of all lists of an answer; other values are dropped."""
    for key, values in answer.items():
        if isinstance(values, list):
            for value in values:
                yield key, value


def predicted_names(answer: Mapping[str, Any]) -> Items:
    """Return the names or triggers of an answer of NER or EET: (name, type)."""
    return {"": [(name, key) for key, name in listed_values(answer) if isinstance(name, str)]}


def predicted_triples(answer: Mapping[str, Any]) -> Items:
    """Return the triples of an answer of RE or SPO."""
    triples: list[Item] = []
    for key, value in listed_values(answer):
        ends = (value.get("subject", ""), value.get("object", "")) if isinstance(value, dict) else (None, None)
        if all(isinstance(end, str) for end in ends):
            triples.append((ends[0], key, ends[1]))
    return {"": triples}


def argument_items(event_type: str, roles: Any) -> list[Item]:
    """Return the arguments of an event: (event type, text, role)."""
    found: list[Item] = []
    for role, value in roles.items() if isinstance(roles, dict) else ():
        texts = value if isinstance(value, list) else [value]
        found += [(event_type, comparable(text), role) for text in texts if text != ABSENT]
    return found


def predicted_events(answer: Mapping[str, Any]) -> Items:
    """Return the events and arguments of an answer of EE; an event whose trigger is not text is dropped."""
    events: list[Item] = []
    arguments: list[Item] = []
    for key, event in listed_values(answer):
        trigger = event.get("trigger", "") if isinstance(event, dict) else None
        if isinstance(trigger, str):
            events.append((key, trigger))
            arguments += argument_items(key, event.get("arguments", {}))
    return {"event_": events, "argument_": arguments}


def predicted_arguments(answer: Mapping[str, Any]) -> Items:
    """Return the events, without triggers, and the arguments of an answer of EEA."""
    found = [(key, event) for key, event in listed_values(answer) if isinstance(event, dict)]
    arguments = [item for key, event in found for item in argument_items(key, event)]
    return {"event_": [(key, "") for key, _ in found], "argument_": arguments}


def predicted_heads(answer: Mapping[str, Any]) -> Items:
    """Return the heads of an answer of KG with their attributes."""
    heads: list[Item] = []
    for key, entities in answer.items():
        for head, attributes in entities.items() if isinstance(entities, dict) else ():
            if isinstance(attributes, dict):
                heads.append(("head", key, head, comparable(attributes)))
    return {"": heads}


def labelled_names(label: list[dict[str, Any]]) -> Items:
    """Return the correct items of NER."""
    return {"": [(each["entity"], each["entity_type"]) for each in label]}


def labelled_triggers(label: list[dict[str, Any]]) -> Items:
    """Return the correct items of EET."""
    return {"": [(each["event_trigger"], each["event_type"]) for each in label]}


def labelled_triples(label: list[dict[str, Any]]) -> Items:
    """Return the correct items of RE, SPO and KG."""
    return {"": [tuple(comparable(each.get(key, "")) for key in ("head", "relation", "tail")) for each in label]}


def labelled_events(label: list[dict[str, Any]], triggers: bool = True) -> Items:
    """Return the correct items of EE or, without triggers, of EEA."""
    arguments: list[Item] = [
        (event["event_type"], comparable(each["argument"]), each["role"])
        for event in label
        for each in event["arguments"]
    ]
    events: list[Item] = [(event["event_type"], event["event_trigger"] if triggers else "") for event in label]
    return {"event_": events, "argument_": arguments}


Reader = Callable[[Any], Items]
READERS: dict[str, tuple[Reader, Reader]] = {  # task -> (reader of answers, reader of labels)
    "ner": (predicted_names, labelled_names),
    "eet": (predicted_names, labelled_triggers),
    "re": (predicted_triples, labelled_triples),
    "spo": (predicted_triples, labelled_triples),
    "ee": (predicted_events, labelled_events),
    "eea": (predicted_arguments, lambda label: labelled_events(label, triggers=False)),
    "kg": (predicted_heads, labelled_triples),
}


def answer_object(output: str) -> dict[str, Any] | None:
    """Return the JSON object of a prediction, None if it is an error; of equal keys, the last one counts."""
    try:
        found = json.loads(output)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def rounded_percentage(part: int, whole: int) -> float:
    """Return a percentage rounded to two decimals; 0.0 if the divisor is 0."""
    return round(part / whole * 100, 2) if whole else 0.0


def rounded_scores(prefix: str, correct: int, predicted: int, gold: int) -> dict[str, float]:
    """Return P and R in percent, rounded to two decimals, and F1 of the rounded values, also rounded."""
    precision, recall = rounded_percentage(correct, predicted), rounded_percentage(correct, gold)
    total = precision + recall
    f1 = round(2 * precision * recall / total, 2) if total else 0.0
    return {f"{prefix}P": precision, f"{prefix}R": recall, f"{prefix}F1": f1}


def published_scores(rows: Iterable[tuple[str, dict[str, Any]]], mode: str, task: str = "") -> dict[str, Any]:
    """Return {"total": figures} as the published scorer writes them.

    rows: (location, row); a row whose prediction is under "prediction" is also accepted. mode: normal or set. task:
    of all rows; "": the "task" of the first row. Raises ValueError if there are no rows, or if a row does not
    have the published form.
    """
    texts: dict[str, tuple[Items, list[str]]] = {}  # text -> (correct items, predictions)
    for location, row in rows:
        task = task or row_task(location, row)
        key, label, output = row_fields(location, row)
        if key not in texts:
            texts[key] = label_items(location, label, task), []
        texts[key][1].append(output)
    if not texts:
        raise ValueError("there are no rows to score; give a file with rows")
    errors, counts = 0, dict[str, list[int]]()
    for gold, outputs in texts.values():
        predicted: Items = {prefix: [] for prefix in gold}
        for output in outputs:
            answer = answer_object(output)
            errors += answer is None
            for prefix, items in READERS[task][0](answer or {}).items():
                predicted[prefix] += items
        for prefix, items in gold.items():
            found, right = Counter(predicted[prefix]), Counter(items)
            if mode == "set" and task != "kg":
                found, right = Counter(set(found)), Counter(set(right))
            total = counts.setdefault(prefix, [0, 0, 0])
            added = (found & right).total(), found.total(), right.total()
            counts[prefix] = [before + more for before, more in zip(total, added, strict=True)]
    figures: dict[str, Any] = {"总样本数": len(texts), "错误数": errors}
    for prefix, numbers in counts.items():
        figures |= rounded_scores(prefix, *numbers)
    return {"total": figures}


def row_task(location: str, row: dict[str, Any]) -> str:
    """Return the task of a row; raises ValueError if there is none."""
    task = str(row.get("task", "")).lower()
    if task not in KINDS_OF_TASK:
        raise ValueError(f'{location} has no "task"; give --task with one of {", ".join(KINDS_OF_TASK)}')
    return task


def row_fields(location: str, row: dict[str, Any]) -> tuple[str, Any, str]:
    """Return (key of the text, label, prediction) of a row; raises ValueError if one of them is missing."""
    output = row.get("prediction", row.get("output"))
    for name, value, types in (("id", row.get("id"), str | int), ("label", row.get("label"), str | list),
                               ("output", output, str)):  # fmt: skip
        if not isinstance(value, types):
            form = '{"id", "source", "instruction", "label", "output"}'
            raise ValueError(f"{location} has no {name!r}; --parity takes rows of the form {form}")
    return f"{row.get('source', 'None')}{row['id']}", row["label"], str(output)


def label_items(location: str, label: Any, task: str) -> Items:
    """Return the correct items of a row; raises ValueError if the label is not a list of items of the task."""
    try:
        found = json.loads(label) if isinstance(label, str) else label
        items = READERS[task][1](found)
        hash(tuple(item for each in items.values() for item in each))  # TypeError for a list or object as a name
        return items
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        fact = f"has a 'label' that is not a JSON list of items of the task {task.upper()}"
        raise ValueError(f"{location} {fact}; correct it, or give another --task") from None


def score_published_file(path: str, mode: str, task: str = "") -> dict[str, Any]:
    """Return `published_scores` of a file; raises FileNotFoundError, or ValueError with file and line."""
    return published_scores(iterate_objects(path), mode, task)
