"""Annotations and a list of types to extraction rows: {"instruction", "input", "output"} with a JSON answer.

    python finetune/ie_build.py --annotations ai/train.json --types ai/class.json --output ie/train.jsonl
    python finetune/ie_build.py --annotations world/train_annotated.jsonl --types world/types.json --task re \
        --wording world/extraction.json --output re/train.jsonl

Annotations are CrossNER's (a JSON list, or JSONL) and the same with relations; annotations.py says more. Types are a
JSON list, or {"entity": {"en": [...], "zh": [...]}, "relation": {...}}, or else those that occur; what is of another
type is dropped and counted. Every sentence becomes one row, which asks for all types of its language.

A wording that names the types ({schema}) gets an answer with a list for each of them, empty where there is nothing:
    {"person": ["Ann Lee"], "place": []}    {"born in": [{"subject": "Ann Lee", "object": "Oslo"}]}
and a wording that does not, one with the types that occur. Wording and shape of the answer are written to
extraction.json beside the rows, for tuning to carry along, and the usual length of the sentences ("text_characters"),
by which a server cuts long text; tasks and languages that stand there already stay.
"""

from command_line.fire_commands import run

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any, NamedTuple

from instruction_data.annotations import (
    TASKS,
    Annotation,
    Item,
    lacks_text,
    read_annotations,
    read_types,
    types_that_occur,
)
from json_rows.row_files import read_json
from text_language.language_detection import LANGUAGES
from tqdm import tqdm

COMMAS = {"en": ", ", "zh": "、"}  # what stands between the types in an instruction
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


class Question(NamedTuple):
    """What is asked of every sentence of a language."""

    wording: str  # with {schema}, where it names the types
    instruction: str  # with the types in its place
    types: list[str]
    absent: str  # types of which there is nothing: "empty list" or "left out"


@dataclass
class Report:
    """What became of sentences and items, for the lines printed at the end."""

    rows: Counter[str] = field(default_factory=Counter)  # by language
    without_items: int = 0
    kept: int = 0
    not_in_sentence: int = 0  # kept all the same: what is right is for annotators to say
    other_types: Counter[str] = field(default_factory=Counter)  # dropped, by type
    repeated: int = 0  # dropped: the same thing once more in one sentence


# --- questions --------------------------------------------------------------------------------------------------------


def tasks_of(path: str | Path, content: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """What an extraction.json has under "tasks": task -> language -> {"instruction": text, …}; ValueError if not."""
    tasks = content.get("tasks") if isinstance(content, dict) else None
    if isinstance(tasks, dict) and all(isinstance(languages, dict) for languages in tasks.values()):
        asked = [said for languages in tasks.values() for said in languages.values()]
        if not any(lacks_text(said, "instruction") for said in asked):
            return tasks
    expected = '{"tasks": {"ner": {"en": {"instruction": …}}}}'
    raise ValueError(f"{path} is no extraction.json, which has the form {expected}; repair it or name another file")


def answer_form(task: str, absent: str) -> dict[str, Any]:
    """An answer with placeholders, and what it does with types of which there is nothing."""
    return {"shape": SHAPES[task], "absent": absent}


def read_wording(path: str, task: str) -> dict[str, str]:
    """Language -> the instruction of `task` in an extraction.json; without a path our own.

    Raises ValueError where the file describes answers of another form than they would have here.
    """
    if not path:
        return WORDING[task]
    told = tasks_of(path, read_json(path, "--wording takes an extraction.json")).get(task, {})
    for language, said in told.items():
        form = answer_form(task, absent_of(said["instruction"]))
        if said.get("answer", form) != form:
            raise ValueError(
                f"{path} wants another answer for {task} in {language} than this wording gets; "
                f"leave its answer out, or make it {json.dumps(form)}"
            )
    return {language: said["instruction"] for language, said in told.items()}


def absent_of(wording: str) -> str:
    """What an answer does with types of which there is nothing: it can list them only if it was told them."""
    return "empty list" if "{schema}" in wording else "left out"


def questions_of(
    annotations: list[Annotation], task: str, types: dict[str, list[str]], wording: dict[str, str]
) -> dict[str, Question]:
    """The question for each language of the annotations; ValueError where its types or its wording are missing."""
    found = {}
    for language in sorted({annotation.language for annotation in annotations}):
        if not types.get(language):
            raise ValueError(f"no types are known for the sentences in {language}; give --types with a list for them")
        if language not in wording:
            raise ValueError(
                f"the wording has no instruction for {task} in {language}; add it to the file, or leave --wording out"
            )
        said = wording[language]
        # both are data: a format string would trip over the braces that they may hold
        instruction = said.replace("{schema}", COMMAS[language].join(types[language]))
        found[language] = Question(said, instruction, types[language], absent_of(said))
    return found


# --- rows -------------------------------------------------------------------------------------------------------------


def answer(annotation: Annotation, task: str, question: Question, report: Report) -> dict[str, list[Any]]:
    """The right answer: type -> names, or subjects with objects, in the annotation's order and each once."""
    keys = TASKS[task].names
    found: dict[str, list[Any]] = {name: [] for name in question.types} if question.absent == "empty list" else {}
    seen: set[Item] = set()
    for item in annotation.items:
        if item.label not in question.types:
            report.other_types[item.label] += 1
        elif item in seen:
            report.repeated += 1
        else:
            seen.add(item)
            report.not_in_sentence += any(name not in annotation.sentence for name in item.names)
            value = item.names[0] if len(keys) == 1 else dict(zip(keys, item.names, strict=True))
            found.setdefault(item.label, []).append(value)
    report.kept += len(seen)
    report.without_items += not seen
    return found


def build(
    annotations: list[Annotation], task: str, questions: dict[str, Question]
) -> tuple[list[dict[str, str]], Report]:
    """A row for each annotated sentence, in their order, and what became of the items.

    Raises ValueError if there are items, but none of a type that is asked for.
    """
    report = Report()
    rows = []
    for annotation in tqdm(annotations, desc="building", unit="row", delay=2, disable=None):
        question = questions[annotation.language]
        output = json.dumps(answer(annotation, task, question, report), ensure_ascii=False)
        rows.append({"instruction": question.instruction, "input": annotation.sentence, "output": output})
        report.rows[annotation.language] += 1
    if report.other_types and not report.kept:
        asked = sorted({name for question in questions.values() for name in question.types})
        raise ValueError(
            f"no item is of a type that is asked for ({', '.join(asked[:3])}, …): they are {most(report.other_types)}; "
            "give the --types of these annotations, in their language"
        )
    return rows, report


def most(counts: Counter[str], shown: int = 4) -> str:
    """The most frequent of the counts as a phrase."""
    phrase = ", ".join(f"{name} {count}" for name, count in counts.most_common(shown))
    return phrase + (", …" if len(counts) > shown else "")


def summary(report: Report) -> str:
    """The report as lines for a terminal."""
    shares = ", ".join(f"{count / report.rows.total():.1%} {language}" for language, count in report.rows.most_common())
    others = f" ({most(report.other_types)})" if report.other_types else ""
    return (
        f"rows: {report.rows.total()} ({shares}), {report.without_items} of them without any item\n"
        f"items: {report.kept} kept, {report.not_in_sentence} of them not in the sentence as written\n"
        f"dropped: {report.other_types.total()} of a type that is not in the list{others}, "
        f"{report.repeated} repeated in one sentence"
    )


# --- files ------------------------------------------------------------------------------------------------------------


def usual_lengths(annotations: list[Annotation]) -> dict[str, int]:
    """By language, how many characters a sentence usually has: the median."""
    lengths: dict[str, list[int]] = {}
    for annotation in annotations:
        lengths.setdefault(annotation.language, []).append(len(annotation.sentence))
    return {language: median_low(found) for language, found in lengths.items()}


def extraction(path: Path, task: str, questions: dict[str, Question], lengths: dict[str, int]) -> dict[str, Any]:
    """What is to stand in the extraction.json at `path`: what does already, with this task and its languages added.

    lengths: of the sentences, by language; one that stands there stays, so that rows for a test do not change those of
    the training. Raises ValueError where the file asks this task otherwise.
    """
    content = read_json(path) if path.exists() else {"tasks": {}}
    tasks = tasks_of(path, content)
    languages = dict(tasks.get(task, {}))
    for language, question in questions.items():
        new = {"instruction": question.wording, "answer": answer_form(task, question.absent)}
        old = languages.get(language, {})
        for key in new:
            if old.get(key, new[key]) != new[key]:
                raise ValueError(
                    f"{path} has another {key} for {task} in {language}, and a model is asked in one way only; "
                    f"ask as it does with --wording {path}, or name another folder's file as --output"
                )
        languages[language] = {"text_characters": lengths[language]} | old | new
    return content | {"tasks": tasks | {task: languages}}


def check_target(target: Path, sources: list[str]) -> None:
    """Raises an error where the rows cannot be written, or would be over one of the sources."""
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} does not exist; make it before --output {target} is written")
    taken = {Path(source).resolve() for source in sources if source}
    if target.is_dir() or target.name == "extraction.json" or target.resolve() in taken:
        raise ValueError(f"{target} is a folder, extraction.json or a file that is read; give --output another name")


def write_whole(files: dict[Path, str]) -> None:
    """Write all of the files or none: under other names first, renamed once the last one is complete."""
    scratch = {path: path.with_name(f"{path.name}.partial") for path in files}
    try:
        for path, text in files.items():
            scratch[path].write_text(text, encoding="utf-8")
        for path, partial in scratch.items():
            partial.replace(path)
    finally:
        for partial in scratch.values():
            partial.unlink(missing_ok=True)


def main(
    annotations: str,
    output: str,
    types: str = "",
    task: str = "ner",
    language: str = "auto",
    wording: str = "",
) -> None:
    """Write a row for each annotated sentence to output (JSONL), and extraction.json beside it.

    Args:
        annotations: JSON list or JSONL of {"sentence", "entity_list"} or {"sentence", "relation_list"}.
        output: the file to write.
        types: JSON list of the types to ask for, or lists by kind and language; without it those that occur.
        task: ner (entities) or re (relations).
        language: en, zh, or auto: zh for a sentence with a fifth or more Chinese characters, else en.
        wording: an extraction.json to ask as it does, instead of our own wording.
    """
    for option, value, choices in (("task", task, tuple(TASKS)), ("language", language, (*LANGUAGES, "auto"))):
        if value not in choices:
            raise ValueError(f"there is no --{option} {value}; take one of {', '.join(choices)}")
    target = Path(output)
    beside = target.with_name("extraction.json")
    check_target(target, [annotations, types, wording])
    annotated = read_annotations(annotations, task, language)
    known = read_types(types, task) if types else types_that_occur(annotated)
    questions = questions_of(annotated, task, known, read_wording(wording, task))
    told = extraction(beside, task, questions, usual_lengths(annotated))
    rows, report = build(annotated, task, questions)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole({target: lines, beside: json.dumps(told, ensure_ascii=False, indent=2) + "\n"})
    asked = ", ".join(f"{language} (types: {len(question.types)})" for language, question in questions.items())
    print(f"{target}: {task} asked in {asked}; wording in {beside}\n{summary(report)}")


if __name__ == "__main__":
    run(main)
