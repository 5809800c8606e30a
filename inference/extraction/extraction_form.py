"""The question of an extraction, in the checkpoint's own words, and the form in which it is answered.

the route /extract is made of it. An extraction.json (the checkpoint's goes before the one in this folder)
has for each task and language the wording, the answer with placeholders, <…>, in place of names, and the usual length
of the texts:
    {"tasks": {"ner": {"en": {"instruction": "… {schema} …", "text_characters": 210,
                              "answer": {"shape": {"<type>": ["<name>"]}, "absent": "empty list"}}}}}
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from text_language.language_detection import LANGUAGES, language_of

from extraction.extraction_schema import TASKS, Kind

SEPARATORS = {"en": (", ", "; ", " (", ")"), "zh": ("、", "；", "（", "）")}
PLACEHOLDER = re.compile(r"<[^<>]+>")
ONE_OR_SEVERAL = re.compile(r"<[^<>]+>\|\[<[^<>]+>\]")  # <name>|[<name>]
TYPES = ("<subject_type>", "<object_type>")
SUBJECTS = ("subject", "head")
OURS: dict[str, Any] = json.loads(Path(__file__).with_name("extraction.json").read_text(encoding="utf-8"))


class Slot(NamedTuple):
    """A place for names in an item of an answer."""

    key: str  # "" where the item is nothing but this slot
    holds: str  # "text", "list", or "either": one as text, several as a list
    by_role: bool = False  # an object with such a value for each role


class Form(NamedTuple):
    """How an answer is written: a JSON object with a list of items for each kind."""

    key: str  # of a kind, with its placeholders: <type>
    item: tuple[Slot, ...]  # in the order of their keys
    every: bool  # every kind, in the schema's order, [] where there is nothing; else those with items, in any order

    def texts(self) -> list[Slot]:
        """The slots that are not by role: an entity, a trigger, or subject and object, the subject first."""
        return sorted((slot for slot in self.item if not slot.by_role), key=lambda slot: slot.key not in SUBJECTS)

    def roles(self) -> Slot | None:
        return next((slot for slot in self.item if slot.by_role), None)

    def by_key(self, kinds: tuple[Kind, ...]) -> dict[str, list[Kind]]:
        """The keys of an answer with the kinds that each stands for: several where relations differ in types alone."""
        found: dict[str, list[Kind]] = {}
        for kind in kinds:
            types = dict(zip(TYPES, (kind.subject_type, kind.object_type), strict=True)) if kind.subject_type else {}
            parts = re.split(f"({PLACEHOLDER.pattern})", self.key)  # text and placeholders, in turns
            parts[1::2] = [types.get(placeholder, kind.name) for placeholder in parts[1::2]]
            found.setdefault("".join(parts), []).append(kind)
        return found


class Question(NamedTuple):
    instruction: str
    form: Form
    characters: int | None  # usual length of the texts that the model was tuned on; None: not known


def question(
    task: str, kinds: tuple[Kind, ...], text: str, language: str = "auto", extraction: Mapping[str, Any] | None = None
) -> Question:
    """How to ask for the kinds in a text, and the form of the answer.

    language: en, zh, or auto: the text's. extraction: the checkpoint's extraction.json, whose wording goes first; one
    that has the task in the other language alone is asked in that. Raises ValueError on an unknown language and on a
    wording that check_extraction would refuse.
    """
    if language not in (*LANGUAGES, "auto"):
        raise ValueError(f"there is no language {language!r:.60}; take one of {', '.join(LANGUAGES)}, auto")
    spoken = language_of(text) if language == "auto" else language
    other = LANGUAGES[1 - LANGUAGES.index(spoken)]
    places = [(told, asked) for told in (extraction or {}, OURS) for asked in (spoken, other)]
    told, asked = next((t, a) for t, a in places if a in t.get("tasks", {}).get(task, {}))
    wording = told["tasks"][task][asked]
    form = form_of(task, wording)
    for key, shared in form.by_key(kinds).items():
        if len({kind.name for kind in shared}) > 1:
            raise ValueError(
                f"the schema's {shared[0].name!r} and {shared[-1].name!r} would both be answered as {key!r}"
            )
    # both are data: a format string would trip over the braces that they may hold
    instruction = wording["instruction"].replace("{schema}", say(task, kinds, asked))
    return Question(instruction, form, usual_characters(wording))


def say(task: str, kinds: tuple[Kind, ...], language: str) -> str:
    """The kinds as a phrase: `person, place`; with roles or types `layoff (company, time); meeting (who)`."""
    comma, semicolon, opening, closing = SEPARATORS[language]
    phrases = []
    for kind in kinds:
        within = comma.join(kind.within())
        phrases.append(kind.name + (opening + within + closing if within else ""))
    return (semicolon if task in ("ee", "spo") else comma).join(phrases)


def read_extraction(folder: str) -> dict[str, Any]:
    """The folder's extraction.json, {} without one; ValueError where it is none that can be asked."""
    path = Path(folder, "extraction.json").expanduser()
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it from the checkpoint again, or take it away") from None
    check_extraction(content, str(path))
    return content


def check_extraction(extraction: Mapping[str, Any], place: str) -> None:
    """Raise ValueError where a question of this extraction.json, found at `place`, could not be asked or answered."""
    tasks = extraction.get("tasks", {}) if isinstance(extraction, dict) else None
    if not isinstance(tasks, dict) or not all(isinstance(said, dict) for said in tasks.values()):
        raise ValueError(f'{place} has not the form {{"tasks": {{task: {{language: …}}}}}}; repair it')
    for task in filter(tasks.__contains__, TASKS):
        for language in filter(tasks[task].__contains__, LANGUAGES):
            try:
                form_of(task, tasks[task][language])
                usual_characters(tasks[task][language])
            except ValueError as error:
                raise ValueError(f"{place}, {task}, {language}: {error}") from None


def form_of(task: str, wording: Any) -> Form:
    """The form of the answers to a wording of an extraction.json; where that leaves it open, the task's usual one.

    Raises ValueError where it is none that can be decoded.
    """
    said = wording.get("instruction") if isinstance(wording, dict) else None
    answer = wording.get("answer", {}) if isinstance(wording, dict) else None
    if not isinstance(said, str) or not said.strip() or not isinstance(answer, dict):
        raise ValueError('an object such as {"instruction": "…", "answer": {…}} is expected')
    absent = answer.get("absent", "empty list" if "{schema}" in said else "left out")
    if absent not in ("empty list", "left out"):
        raise ValueError(f'"absent" is {absent!r:.60}; write "empty list" or "left out"')
    usual = OURS["tasks"][task]["en"]["answer"]["shape"]
    shape = answer.get("shape", usual)
    key, items = next(iter(shape.items())) if isinstance(shape, dict) and len(shape) == 1 else ("", [])
    item = slots_of(items[0]) if isinstance(items, list) and len(items) == 1 else ()
    form = Form(key, item, absent == "empty list")
    if not serves(task, form):
        written = json.dumps(shape, ensure_ascii=False)
        raise ValueError(f"the shape {written:.300} is none for {task}; write one such as {json.dumps(usual)}")
    return form


def usual_characters(wording: Mapping[str, Any]) -> int | None:
    """How long texts are, by the wording of an extraction.json; None where it does not say. ValueError on no length."""
    characters = wording.get("text_characters")
    if characters is not None and (type(characters) is not int or characters < 1):
        raise ValueError(f'"text_characters" is {characters!r:.60}; write a number of 1 or more, or take it away')
    return characters


def slots_of(item: Any) -> tuple[Slot, ...]:
    """The slots of an item of a shape."""
    if not isinstance(item, dict):
        return (Slot("", holds(item)),)
    if len(item) == 1 and PLACEHOLDER.fullmatch(next(iter(item))):
        return (Slot("", holds(*item.values()), by_role=True),)
    inner = {key: slots_of(value)[0] if value else Slot("", "") for key, value in item.items()}
    return tuple(Slot(key, "" if slot.key else slot.holds, slot.by_role) for key, slot in inner.items())


def holds(value: Any) -> str:
    """What stands in a slot of which a shape says `value`; "" where that is nothing known."""
    match value:
        case str() if PLACEHOLDER.fullmatch(value):
            return "text"
        case [str(each)] if PLACEHOLDER.fullmatch(each):
            return "list"
        case str() if ONE_OR_SEVERAL.fullmatch(value):
            return "either"
    return ""


def serves(task: str, form: Form) -> bool:
    """Whether answers in this form say what the task asks for, and can be written and read."""
    texts = len(form.texts())
    by_role = len(form.item) - texts
    kinds_of_text = {"ner": (1,), "ee": (0, 1)}.get(task, (2,))
    named = {placeholder for placeholder in PLACEHOLDER.findall(form.key) if placeholder not in TYPES}
    keys = [slot.key for slot in form.item]
    return (
        bool(named and form.item)
        and all(slot.holds for slot in form.item)
        and texts in kinds_of_text
        and by_role <= (task == "ee")
        and (keys == [""] or not any(key == "" or PLACEHOLDER.search(key) for key in keys))
    )
