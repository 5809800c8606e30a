"""Parse the answers of all windows of a text, merge them, and add the offsets of names in the text.

Offsets count characters (Unicode code points) of the whole text. A name is searched for only in the windows whose
answers contain it; a name that does not occur in them is kept with "in_text": false. An item from several windows is
returned once, with the offsets from all of them. Items are sorted by their first occurrence in the text.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import regex

from extraction.extraction_form import AnswerForm, AnswerSlot
from extraction.extraction_schema import SchemaType

# Scripts without spaces between words, or (Hangul) with suffixes attached to names: a word may end anywhere.
UNSPACED = "".join(
    rf"\p{{{script}}}" for script in ("Thai", "Lao", "Myanmar", "Khmer", "Han", "Hiragana", "Katakana", "Hangul")
)
LETTER = rf"[[\p{{Alnum}}\p{{M}}_]--[{UNSPACED}\u3005-\u3007\u30fc]]"
WITHIN_WORD = regex.compile(rf"(?V1)(?<={LETTER})(?={LETTER})")  # between two letters of a script with spaces
BRACKETS_AND_STRINGS = re.compile(r'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)  # '"' alone: unclosed string
CLOSERS = {"{": "}", "[": "]"}
NO_VALUE = ("", "NAN")  # names that stand for a missing trigger or argument in answers
Span = tuple[int, int]
Offsets = Mapping[str, set[Span]]  # name -> spans


class ExtractedItem(NamedTuple):
    """An item of an answer: an entity, a triple or an event."""

    key: str  # key in the answer, which identifies the item's type
    names: tuple[str, ...]  # an entity; subject and object; an event's trigger, if it has one
    arguments: tuple[tuple[str, str], ...] = ()  # (role, name) of an event's arguments


def parse_partial_answer(text: str) -> tuple[dict[str, Any], bool]:
    """Return (the answer as a dict, whether the answer is complete).

    A truncated answer is kept up to its last complete item. The values of a repeated key are joined into one list. A
    text that is not a JSON object gives ({}, False).
    """
    for candidate, complete in ((text, True), (complete_prefix(text), False)):
        try:
            answer = json.loads(candidate, object_pairs_hook=join_repeated_keys)
        except (ValueError, RecursionError):
            continue
        if isinstance(answer, dict):
            return answer, complete
    return {}, False


def join_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of the pairs; the values of a repeated key are joined into one list."""
    joined: dict[str, Any] = {}
    for key, value in pairs:
        joined[key] = [*as_list(joined[key]), *as_list(value)] if key in joined else value
    return joined


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def complete_prefix(text: str) -> str:
    """Return the longest prefix of a truncated answer that ends at an item boundary, with its brackets closed.

    An item boundary is the position after the answer's or a list's opening bracket, after an item, or after a list.
    """
    opened: list[str] = []
    prefix = "{}"
    for token in BRACKETS_AND_STRINGS.finditer(text):
        if token[0] in CLOSERS:
            opened.append(token[0])
        elif token[0] in CLOSERS.values():
            opened = opened[:-1]
        elif token[0] == '"':
            break
        if opened == ["{", "["] or (opened == ["{"] and token[0][0] != '"'):
            prefix = text[: token.end()] + "".join(CLOSERS[bracket] for bracket in reversed(opened))
    return prefix


def merge_answers(
    task: str, text: str, form: AnswerForm, types: tuple[SchemaType, ...],
    answers: Sequence[tuple[Span, Mapping[str, Any]]],
) -> dict[str, Any]:  # fmt: skip
    """Return the response's "entities" (ner), "triples" (re, spo) or "events" (ee).

    answers: (window [start, end) in characters, answer from parse_partial_answer) for each window.
    """
    offsets: dict[ExtractedItem, dict[str, set[Span]]] = {}
    window_end: dict[ExtractedItem, int] = {}  # end of the first window with the item
    for (start, end), answer in answers:
        found: dict[str, list[Span]] = {}
        for item in extracted_items(task, answer, form):
            window_end.setdefault(item, end)
            item_offsets = offsets.setdefault(item, {})
            for name in (*item.names, *(name for _, name in item.arguments)):
                if name not in found:
                    found[name] = find_name(name, text, start, end)
                item_offsets.setdefault(name, set()).update(found[name])

    def position(item: ExtractedItem) -> int:
        """Return the offset of an item's first occurrence; the end of its first window if it is not in the text."""
        return min((start for spans in offsets[item].values() for start, _ in spans), default=window_end[item])

    by_key = form.types_by_key(types)
    ordered = [item for item in sorted(offsets, key=position) if item.key in by_key]
    field, describe = {"ner": ("entities", describe_entity), "ee": ("events", describe_event)}.get(
        task, ("triples", describe_triple)
    )
    return {field: [describe(item, offsets[item], by_key[item.key]) for item in ordered]}


def extracted_items(task: str, answer: Mapping[str, Any], form: AnswerForm) -> Iterator[ExtractedItem]:
    """Yield the items of an answer in the answer's order."""
    for key, items in answer.items():
        for item in as_list(items):
            names = [strings(slot_value(item, slot)) for slot in form.name_slots()]
            if task == "ee":
                names = [present for slot in names if (present := [name for name in slot if name not in NO_VALUE])]
            roles = slot_value(item, next((slot for slot in form.item if slot.by_role), None))
            pairs = roles.items() if isinstance(roles, dict) else ()
            arguments = tuple((role, name) for role, value in pairs for name in strings(value) if name not in NO_VALUE)
            for chosen in product(*names):
                yield ExtractedItem(key, chosen, arguments)


def slot_value(item: Any, slot: AnswerSlot | None) -> Any:
    """Return an item's value for a slot, None if the slot or the value is missing."""
    if slot is None:
        return None
    if not slot.key:
        return item
    return item.get(slot.key) if isinstance(item, dict) else None


def strings(value: Any) -> list[str]:
    return [each for each in as_list(value) if isinstance(each, str)]


def name_with_offsets(name: str, offsets: Offsets) -> dict[str, Any]:
    return {"name": name, "offsets": [list(span) for span in sorted(offsets[name])], "in_text": bool(offsets[name])}


def describe_entity(item: ExtractedItem, offsets: Offsets, types: list[SchemaType]) -> dict[str, Any]:
    return {"type": types[0].name, **name_with_offsets(item.names[0], offsets)}


def describe_triple(item: ExtractedItem, offsets: Offsets, types: list[SchemaType]) -> dict[str, Any]:
    """Return a triple; its subject or object has a "type" only if all relations of this name in the schema agree."""
    subject, object_ = (name_with_offsets(name, offsets) for name in item.names)
    for end, end_types in (
        (subject, {type_.subject_type for type_ in types}),
        (object_, {type_.object_type for type_ in types}),
    ):
        if len(end_types) == 1 and end_types != {""}:
            end["type"] = next(iter(end_types))
    return {"subject": subject, "relation": types[0].name, "object": object_}


def describe_event(item: ExtractedItem, offsets: Offsets, types: list[SchemaType]) -> dict[str, Any]:
    arguments = [{"role": role, **name_with_offsets(name, offsets)} for role, name in item.arguments]
    return {
        "type": types[0].name,
        "trigger": name_with_offsets(item.names[0], offsets) if item.names else None,
        "arguments": arguments,
    }


def find_name(name: str, text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Return all spans [first, last) of a name in text[start:end], as offsets in `text`, in order, without overlaps.

    Any white space in the text matches white space in the name. Occurrences within words are returned only if the name
    does not occur as whole words.
    """
    words = name.split()
    if not words:
        return []
    pattern, window = re.compile(r"\s++".join(map(re.escape, words))), text[start:end]
    spans = list(occurrences(pattern, window, True)) or list(occurrences(pattern, window, False))
    return [(start + first, start + last) for first, last in spans]


def occurrences(pattern: re.Pattern[str], text: str, whole_words: bool) -> Iterator[tuple[int, int]]:
    """Yield the spans [first, last) of a pattern; whole_words: only spans that begin and end at word boundaries."""
    at = 0
    while match := pattern.search(text, at):
        first, last = match.span()
        if whole_words and (WITHIN_WORD.match(text, first) or WITHIN_WORD.match(text, last)):
            at = first + 1
            while WITHIN_WORD.match(text, at):
                at += 1
        else:
            yield first, last
            at = last
