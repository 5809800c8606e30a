"""Convert the items of /extract responses to answers, and read the places of entities.

The entities of a response have "offsets", all occurrences of the name in the text: each is a mention. The correct
entities of a row, under "gold", and the predicted entities of other systems have "spans", the fragments [start, end) of
one mention, of which a discontinuous mention has several.
"""

import json
from collections import Counter, defaultdict
from typing import Any

from extraction_metrics.item_kinds import AnswerItem

ITEM_KEYS = ("entities", "triples", "events")  # of batch.py with /extract


def extracted_answer(location: str, row: dict[str, Any]) -> str:
    """Convert the items of an /extract response to an answer, JSON of {type or relation: [item]}.

    Raises ValueError if an item does not have the form that /extract returns.
    """
    answer = defaultdict[str, list[Any]](list)
    convert = {"entities": _entity, "triples": _triple, "events": _event}
    for key in ITEM_KEYS:
        for item in row[key] if isinstance(row.get(key), list) else ():
            try:
                label, content = convert[key](item)
            except (TypeError, KeyError, AttributeError):
                fact = f"has an item under {key!r} that /extract does not return"
                raise ValueError(f"{location} {fact}; rerun batch.py") from None
            answer[label].append(content)
    return json.dumps(answer)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _entity(item: Any) -> tuple[str, Any]:
    return _text(item["type"]), _text(item["name"])


def _triple(item: Any) -> tuple[str, Any]:
    return _text(item["relation"]), {end: _text(item[end]["name"]) for end in ("subject", "object")}


def _event(item: Any) -> tuple[str, Any]:
    trigger = item.get("trigger")
    roles = defaultdict[str, list[str]](list)
    for argument in item["arguments"]:
        roles[_text(argument["role"])].append(_text(argument["name"]))
    return _text(item["type"]), {"trigger": "" if trigger is None else _text(trigger["name"]), "arguments": roles}


def annotated_spans(location: str, row: dict[str, Any]) -> Counter[AnswerItem] | None:
    """Return the correct entities of a row as items of kind entity_span, None if they have no places.

    Raises ValueError if the entities under "gold" do not have the form of ie_build.py.
    """
    gold = row.get("gold")
    return entity_spans(location, gold["entities"], "gold") if isinstance(gold, dict) and "entities" in gold else None


def predicted_spans(location: str, row: dict[str, Any]) -> Counter[AnswerItem] | None:
    """Return the predicted entities of a row as items of kind entity_span, None if they have no places.

    A predicted name that does not occur in the text is an item without a place. Raises ValueError if a place is not a
    list of [start, end].
    """
    return entity_spans(location, row["entities"], "entities") if isinstance(row.get("entities"), list) else None


def entity_spans(location: str, entities: Any, key: str) -> Counter[AnswerItem] | None:
    """Return entities as items of kind entity_span, None if not all have places; key: for the error message."""
    items = Counter[AnswerItem]()
    try:
        for entity in entities:
            label = _text(entity["type"])
            if entity.get("spans") is not None:
                places = [span_text(entity["spans"])]
            elif entity.get("offsets") is not None:
                places = [span_text([occurrence]) for occurrence in entity["offsets"]] or [""]
            else:
                return None
            items.update(AnswerItem("entity_span", (label, place)) for place in places)
    except (TypeError, KeyError, AttributeError, ValueError):
        form = 'not of the form {"type", "spans": [[start, end], …]}'
        raise ValueError(f"{location} has entities under {key!r} that are {form}; correct them") from None
    return items


def span_text(spans: Any) -> str:
    """Return the fragments of a mention as text, such as "0:7,9:12".

    Raises TypeError or ValueError if `spans` is not a list of [start, end], or is empty.
    """
    fragments = sorted((start, end) for start, end in spans)
    if not fragments or not all(type(place) is int for fragment in fragments for place in fragment):
        raise TypeError
    return ",".join(f"{start}:{end}" for start, end in fragments)
