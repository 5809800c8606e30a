"""The wording of extraction instructions, and extraction.json, which records it for demos and the server.

{"tasks": {"ner": {"en": {"text_characters": 120, "instruction": "… {schema} …", "answer": {...}}}}}
"""

import json
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

from json_rows.row_files import read_json

from instruction_data.annotations import Annotation, missing_text_error

SEPARATORS = {"en": ", ", "zh": "、"}  # between the types in an instruction
AMBIGUOUS = ",，、"  # characters in a type that a reader would take for separators
SHAPES: dict[str, dict[str, list[Any]]] = {
    "ner": {"<type>": ["<name>"]},
    "re": {"<relation>": [{"subject": "<name>", "object": "<name>"}]},
}
WORDING = {
    "ner": {
        "en": "Which entities of the following types does the text name: {schema}? Reply with a JSON object: each type "
        "is a key, its value the list of its entities as the text spells them, [] for none.",
        "zh": "文本中有哪些以下类型的实体：{schema}？以JSON对象作答，类型为键，"
        "值为实体的列表，写法与原文一致，没有则为[]。",
    },
    "re": {
        "en": "Which relations of the following kinds does the text state: {schema}? Reply with a JSON object: each "
        'kind is a key, its value a list of {"subject": …, "object": …} as the text spells them, [] for none.',
        "zh": "文本中陈述了以下哪些关系：{schema}？以JSON对象作答，关系为键，"
        '值为{"subject": …, "object": …}的列表，写法与原文一致，没有则为[]。',
    },
}


class ExtractionQuestion(NamedTuple):
    """The question of one task in one language."""

    wording: str  # with {schema} if it names the types
    instruction: str  # the wording with the types in place of {schema}
    types: list[str]
    text_characters: int  # median length of a sentence


def tasks_of(path: str | Path, content: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the value of "tasks" in the content of an extraction.json: task -> language -> {"instruction", ...}.

    Raises ValueError if the content is invalid; path: the file, for the message.
    """
    tasks = content.get("tasks") if isinstance(content, dict) else None
    if isinstance(tasks, dict) and all(isinstance(languages, dict) for languages in tasks.values()):
        entries = [entry for languages in tasks.values() for entry in languages.values()]
        if not any(missing_text_error(entry, "instruction") for entry in entries):
            return tasks
    expected = '{"tasks": {"ner": {"en": {"instruction": …}}}}'
    raise ValueError(f"{path} is not an extraction.json of the form {expected}; repair it or name another file")


def answer_form(task: str, wording: str) -> dict[str, Any]:
    """Return the description of an answer in extraction.json: its shape, and whether it lists types without items.

    An answer lists types without items only if the wording names the types ({schema}).
    """
    return {"shape": SHAPES[task], "absent": "empty list" if "{schema}" in wording else "left out"}


def check_answer_form(path: str | Path, task: str, language: str, entry: dict[str, Any]) -> None:
    """Raise ValueError if an entry of an extraction.json describes another form of the answer than `answer_form`."""
    form = answer_form(task, entry["instruction"])
    if entry.get("answer", form) != form:
        raise ValueError(
            f'{path} has an "answer" for {task} in {language} that does not fit its instruction; remove it, or set it '
            f"to {json.dumps(form)}"
        )


def read_wording(path: str, task: str) -> dict[str, str]:
    """Return language -> wording of `task` from an extraction.json, or the default wording if `path` is empty.

    Raises FileNotFoundError or ValueError if the file cannot be used, or if it describes answers in another form than
    ie_build.py writes for this wording.
    """
    if not path:
        return WORDING[task]
    entries = tasks_of(path, read_json(path, "--wording takes an extraction.json")).get(task, {})
    for language, entry in entries.items():
        check_answer_form(path, task, language, entry)
    return {language: entry["instruction"] for language, entry in entries.items()}


def make_questions(
    annotations: list[Annotation], task: str, types: dict[str, list[str]] | None, wording: dict[str, str]
) -> dict[str, ExtractionQuestion]:
    """Return language -> question for the annotations.

    types: language -> types to ask for; None: the annotated types, in the order of their first occurrence. wording: the
    result of `read_wording`. Raises ValueError if types or wording are missing for a language, or if the wording names
    the types and one of them contains a comma.
    """
    questions = {}
    for language in sorted({annotation.language for annotation in annotations}):
        members = [annotation for annotation in annotations if annotation.language == language]
        annotated = dict.fromkeys(item.label for annotation in members for item in annotation.items)
        names = list(annotated) if types is None else types.get(language)
        if not names:
            raise ValueError(
                f"no types are known for the sentences in {language}; give a list of types for {language} in --types, "
                "or set --language if this language was detected wrongly"
            )
        if language not in wording:
            raise ValueError(
                f"the wording has no instruction for {task} in {language}; add it to the file, or remove --wording"
            )
        text = wording[language]
        unclear = next((name for name in names if "{schema}" in text and set(name) & set(AMBIGUOUS)), None)
        if unclear is not None:
            raise ValueError(
                f"the type {unclear!r} contains a comma, which separates the types of an instruction; rename it in "
                "--annotations and --types"
            )
        instruction = write_instruction(text, names, language)
        median_length = median_low(len(annotation.sentence) for annotation in members)
        questions[language] = ExtractionQuestion(text, instruction, names, median_length)
    return questions


def write_instruction(wording: str, types: list[str], language: str) -> str:
    """Return the wording with the types in place of {schema}; str.format would fail on other braces in the wording."""
    return wording.replace("{schema}", SEPARATORS[language].join(types))


def updated_extraction(path: Path, task: str, questions: dict[str, ExtractionQuestion]) -> dict[str, Any]:
    """Return the content of the extraction.json at `path`, which may not exist, with this task and its languages.

    A median sentence length that the file already has is kept, since it comes from the training set, and the new
    examples may be a test set. Raises ValueError if the file has another wording or form of the answer for this task.
    """
    content = read_json(path) if path.exists() else {"tasks": {}}
    tasks = tasks_of(path, content)
    languages = dict(tasks.get(task, {}))
    for language, question in questions.items():
        new = {"instruction": question.wording, "answer": answer_form(task, question.wording)}
        old = languages.get(language, {})
        if old.get("instruction", question.wording) != question.wording:
            raise ValueError(
                f"{path} has another instruction for {task} in {language}, and a model is tuned on one wording only; "
                f"use the instruction of the file with --wording {path}, or write --output to another folder"
            )
        if old:
            check_answer_form(path, task, language, old)
        languages[language] = {"text_characters": question.text_characters} | old | new
    return content | {"tasks": tasks | {task: languages}}
