"""Read the instruction of an extraction task, in the wording that the checkpoint was tuned on, and the answer's form.

Both are read from the checkpoint's extraction.json; the extraction.json in this folder has the defaults. For each task
and language, the file has the instruction, an answer with placeholders <…>, and the usual length of the tuning texts:
    {"tasks": {"ner": {"en": {"instruction": "… {schema} …", "text_characters": 210,
                              "answer": {"shape": {"<type>": ["<name>"]}, "absent": "empty list"}}}}}
With "style": "schema_json", the form of IEPile (https://arxiv.org/abs/2402.14710), the model is asked with a JSON
object of instruction, schema and text. With "prose", the default, the types are in the instruction, in place of
{schema}, and the text is the input. "schema_batch" is the number of types of one question, "descriptions" an object of
descriptions by type, which the questions then contain.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from text_language.language_detection import LANGUAGES, language_of

from extraction.extraction_schema import TASKS, SchemaType

SEPARATORS = {"en": (", ", "; ", " (", ")"), "zh": ("、", "；", "（", "）")}
COLONS = {"en": ": ", "zh": "："}  # between a type and its description
COMMAS = ",，、"  # in a name, a reader would take them for separators
PLACEHOLDER = re.compile(r"<[^<>]+>")
ONE_OR_SEVERAL = re.compile(r"<[^<>]+>\|\[<[^<>]+>\]")  # <name>|[<name>]
TYPES = ("<subject_type>", "<object_type>")
STYLES = ("prose", "schema_json")
SCHEMA_BATCHES = {"ner": 6, "re": 4, "spo": 4, "ee": 4}  # of IEPile: types of one question
SUBJECTS = ("subject", "head")
LANGUAGE_CHARACTERS = 2**16  # detection takes 20 ns per character and holds the GIL
DEFAULTS: dict[str, Any] = json.loads(Path(__file__).with_name("extraction.json").read_text(encoding="utf-8"))


class AnswerSlot(NamedTuple):
    """A part of an answer's item: a name, several names, or names by role."""

    key: str  # the part's key in the item; "" if the item has a single part and no keys
    value_kind: str  # "text", "list", or "either": one name as text, several as a list
    by_role: bool = False  # True: an object of roles, each with a value of this kind


class AnswerForm(NamedTuple):
    """The form of an answer: a JSON object with a list of items for each type."""

    key: str  # the key of a type, with placeholders, such as <type>
    item: tuple[AnswerSlot, ...]  # in the order of the item's keys
    all_types: bool  # True: all types in the schema's order, with [] if empty; False: non-empty types, in any order

    def name_slots(self) -> list[AnswerSlot]:
        """Return the slots of names without a role: the entity, the trigger, or the subject and then the object."""
        return sorted((slot for slot in self.item if not slot.by_role), key=lambda slot: slot.key not in SUBJECTS)

    def types_by_key(self, types: tuple[SchemaType, ...]) -> dict[str, list[SchemaType]]:
        """Return answer key -> types with this key; relations with the same name but other types may share a key."""
        types_of_key: dict[str, list[SchemaType]] = {}
        for type_ in types:
            values = {"<subject_type>": type_.subject_type, "<object_type>": type_.object_type}
            parts = re.split(f"({PLACEHOLDER.pattern})", self.key)  # text and placeholders alternate
            parts[1::2] = [values.get(placeholder) or type_.name for placeholder in parts[1::2]]
            types_of_key.setdefault("".join(parts), []).append(type_)
        return types_of_key


class ExtractionPrompt(NamedTuple):
    """A question for types; a schema that is asked in batches has several."""

    instruction: str
    form: AnswerForm
    types: tuple[SchemaType, ...]
    usual_characters: int | None  # usual length of the tuning texts; None if it is not known
    schema: list[Any] | dict[str, str] | None = (
        None  # the types in the JSON object of the style schema_json; None: prose
    )

    def question(self, text: str) -> tuple[str, str]:
        """Return the instruction and the input of the user's message about a text."""
        if self.schema is None:
            return self.instruction, text
        content = {"instruction": self.instruction, "schema": self.schema, "input": text}
        return json.dumps(content, ensure_ascii=False), ""


def prompts_for_types(
    task: str,
    types: tuple[SchemaType, ...],
    text: str,
    language: str = "auto",
    extraction: Mapping[str, Any] | None = None,
) -> list[ExtractionPrompt]:
    """Return the questions that ask for the types in a text, with the form of their answers.

    language: en, zh, or auto (detected from the first LANGUAGE_CHARACTERS of the text). extraction: content of the
    checkpoint's extraction.json, which takes precedence over the defaults; if it has the task in the other language
    only, that language is used. Raises ValueError for an entry that check_extraction refuses, for two type names with
    the same answer key, and for a name with a comma if the instruction lists the names.
    """
    preferred = language_of(text[:LANGUAGE_CHARACTERS]) if language == "auto" else language
    other = LANGUAGES[1 - LANGUAGES.index(preferred)]
    candidates = [(source, code) for source in (extraction or {}, DEFAULTS) for code in (preferred, other)]
    source, used_language = next(
        (source, code) for source, code in candidates if code in source.get("tasks", {}).get(task, {})
    )
    entry = source["tasks"][task][used_language]
    form = answer_form(task, entry)
    for key, shared in form.types_by_key(types).items():
        if len({type_.name for type_ in shared}) > 1:
            raise ValueError(
                f"the schema's {shared[0].name!r} and {shared[-1].name!r} have the same answer key {key!r}; rename one"
            )
    usual = usual_characters(entry)
    if entry.get("style") == "schema_json":
        batches = schema_batches(types, entry.get("schema_batch", SCHEMA_BATCHES[task]))
        schemas = [json_schema(task, batch, entry.get("descriptions")) for batch in batches]
        return [
            ExtractionPrompt(entry["instruction"], form, batch, usual, schema)
            for batch, schema in zip(batches, schemas, strict=True)
        ]
    names = (name for type_ in types for name in (type_.name, *type_.parts()))
    unclear = next((name for name in names if "{schema}" in entry["instruction"] and set(name) & set(COMMAS)), None)
    if unclear is not None:
        raise ValueError(
            f"the schema's {unclear!r:.60} contains a comma, which separates the names in the instruction; rename it"
        )
    prompts = []
    for batch in schema_batches(types, entry.get("schema_batch", len(types))):
        # replace(), not format(): instruction and type names may contain braces
        instruction = entry["instruction"].replace("{schema}", schema_phrase(task, batch, used_language))
        described = [(type_.name, entry.get("descriptions", {}).get(type_.label())) for type_ in batch]
        lines = [f"{name}{COLONS[used_language]}{text}" for name, text in described if text]
        prompts.append(ExtractionPrompt("\n".join([instruction, *lines]), form, batch, usual))
    return prompts


def schema_batches(types: tuple[SchemaType, ...], size: int) -> list[tuple[SchemaType, ...]]:
    """Split types into batches of `size`; fewer than max(1, size // 2) remaining types join the last batch (IEPile)."""
    starts = list(range(0, len(types), size))
    if len(starts) > 1 and len(types) - starts[-1] < max(1, size // 2):
        starts.pop()
    return [types[start:end] for start, end in zip(starts, [*starts[1:], len(types)], strict=True)]


def json_schema(
    task: str, types: tuple[SchemaType, ...], descriptions: Mapping[str, str] | None
) -> list[Any] | dict[str, str]:
    """Return the schema of a question in JSON; descriptions: type -> text, or None if questions have none."""
    if task not in ("spo", "ee"):
        names = [type_.name for type_ in types]
        return names if descriptions is None else {name: descriptions.get(name, "") for name in names}
    schema: list[Any] = []
    for type_ in types:
        entry: dict[str, Any] = {"event_type": type_.name, "trigger": True, "arguments": list(type_.roles)}
        if task == "spo":
            entry = {"subject_type": type_.subject_type, "predicate": type_.name, "object_type": type_.object_type}
        text = (descriptions or {}).get(type_.label())
        schema.append(entry | ({"description": text} if text else {}))
    return schema


def schema_phrase(task: str, types: tuple[SchemaType, ...], language: str) -> str:
    """Return the types as text: `person, place`; with roles or argument types, `layoff (company, time); meeting (who)`.

    language: en or zh, which determines the punctuation.
    """
    comma, semicolon, opening, closing = SEPARATORS[language]
    phrases = []
    for type_ in types:
        parts = comma.join(type_.parts())
        phrases.append(type_.name + (opening + parts + closing if parts else ""))
    return (semicolon if task in ("ee", "spo") else comma).join(phrases)


def read_extraction(folder: str) -> dict[str, Any]:
    """Return the content of a folder's extraction.json, {} if there is no file; raises ValueError if it is invalid."""
    path = Path(folder, "extraction.json").expanduser()
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it from the checkpoint again, or remove it") from None
    check_extraction(content, str(path))
    return content


def check_extraction(extraction: Mapping[str, Any], place: str) -> None:
    """Raise ValueError if an entry of an extraction.json is invalid; place: the file's path, for the message."""
    tasks = extraction.get("tasks", {}) if isinstance(extraction, dict) else None
    if not isinstance(tasks, dict) or not all(isinstance(entries, dict) for entries in tasks.values()):
        raise ValueError(f'{place} does not have the form {{"tasks": {{task: {{language: …}}}}}}; correct it')
    for task in filter(tasks.__contains__, TASKS):
        for language in filter(tasks[task].__contains__, LANGUAGES):
            try:
                answer_form(task, tasks[task][language])
                usual_characters(tasks[task][language])
            except ValueError as error:
                raise ValueError(f"{place}, {task}, {language}: {error}") from None


def answer_form(task: str, entry: Any) -> AnswerForm:
    """Return the answer form in an entry of an extraction.json; missing parts are replaced by the task's defaults.

    Raises ValueError for an invalid entry, and for a form that the task does not support.
    """
    instruction = entry.get("instruction") if isinstance(entry, dict) else None
    answer = entry.get("answer", {}) if isinstance(entry, dict) else None
    if not isinstance(instruction, str) or not instruction.strip() or not isinstance(answer, dict):
        raise ValueError('an object such as {"instruction": "…", "answer": {…}} is expected')
    style, batch = entry.get("style", "prose"), entry.get("schema_batch", 1)
    if style not in STYLES or type(batch) is not int or batch < 1:
        raise ValueError(
            f'"style" is {style!r:.60} and "schema_batch" {batch!r:.60}; write one of {", ".join(STYLES)}, and a '
            "number of types"
        )
    descriptions = entry.get("descriptions", {})
    if not isinstance(descriptions, dict) or not all(isinstance(text, str) for text in descriptions.values()):
        raise ValueError('"descriptions" is not an object of texts by type; correct or remove it')
    lists_types = style == "schema_json" or "{schema}" in instruction
    absent = answer.get("absent", "empty list" if lists_types else "left out")
    if absent not in ("empty list", "left out"):
        raise ValueError(f'"absent" is {absent!r:.60}; write "empty list" or "left out"')
    default = DEFAULTS["tasks"][task]["en"]["answer"]["shape"]
    shape = answer.get("shape", default)
    key, items = next(iter(shape.items())) if isinstance(shape, dict) and len(shape) == 1 else ("", [])
    item = item_slots(items[0]) if isinstance(items, list) and len(items) == 1 else ()
    form = AnswerForm(key, item, absent == "empty list")
    if not fits_task(task, form):
        given = json.dumps(shape, ensure_ascii=False)
        raise ValueError(
            f"the shape {given:.300} does not fit the task {task}; write one such as {json.dumps(default)}"
        )
    return form


def usual_characters(entry: Mapping[str, Any]) -> int | None:
    """Return an entry's usual text length in characters, None if it has none; raises ValueError if it is invalid."""
    characters = entry.get("text_characters")
    if characters is not None and (type(characters) is not int or characters < 1):
        raise ValueError(f'"text_characters" is {characters!r:.60}; write a number of 1 or more, or remove it')
    return characters


def item_slots(item: Any) -> tuple[AnswerSlot, ...]:
    """Return the slots of an answer's items; item: the item in a shape, with placeholders."""
    if not isinstance(item, dict):
        return (AnswerSlot("", slot_kind(item)),)
    if len(item) == 1 and PLACEHOLDER.fullmatch(next(iter(item))):
        return (AnswerSlot("", slot_kind(*item.values()), by_role=True),)
    inner = {key: item_slots(value)[0] if value else AnswerSlot("", "") for key, value in item.items()}
    return tuple(AnswerSlot(key, "" if slot.key else slot.value_kind, slot.by_role) for key, slot in inner.items())


def slot_kind(value: Any) -> str:
    """Return the AnswerSlot.value_kind of a value in a shape; "" if the value is invalid."""
    match value:
        case str() if PLACEHOLDER.fullmatch(value):
            return "text"
        case [str(each)] if PLACEHOLDER.fullmatch(each):
            return "list"
        case str() if ONE_OR_SEVERAL.fullmatch(value):
            return "either"
    return ""


def fits_task(task: str, form: AnswerForm) -> bool:
    """Return whether a form has the slots that the task needs, and can be used for decoding and parsing."""
    names = len(form.name_slots())
    by_role = len(form.item) - names
    allowed_names = {"ner": (1,), "ee": (0, 1)}.get(task, (2,))
    type_names = {placeholder for placeholder in PLACEHOLDER.findall(form.key) if placeholder not in TYPES}
    keys = [slot.key for slot in form.item]
    return (
        bool(type_names and form.item)
        and all(slot.value_kind for slot in form.item)
        and names in allowed_names
        and by_role <= (task == "ee")
        and (keys == [""] or not any(key == "" or PLACEHOLDER.search(key) for key in keys))
    )
