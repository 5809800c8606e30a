"""Build extraction examples {"instruction", "input", "output"} from annotated sentences and a list of types.

    python finetune/ie_build.py --annotations ner_data/ai/train.txt --types ie/types.json --output ie/train.jsonl
    python finetune/ie_build.py --annotations conll04.train.txt --task re --order_augmentation 4 --output re/train.jsonl
    python finetune/ie_build.py --annotations world/train_annotated.jsonl --types world/types.json --task re \\
        --wording world/extraction.json --output re/train.jsonl

Annotations in JSON and lists of types are described in instruction_data/annotations.py, CoNLL columns and CoNLL04 in
instruction_data/column_files.py. Without --types, the examples ask for the annotated types; otherwise, items of other
types are dropped and counted. Every sentence becomes one example, which asks for all types of its language. With
--order_augmentation K, it becomes K examples, which ask for the types in K random orders and have the number of their
order under "order" (instruction_data/type_orders.py).

If the wording names the types ({schema}), an answer lists every type, with an empty list for a type without items:
    {"person": ["Ann Lee"], "place": []}    {"born in": [{"subject": "Ann Lee", "object": "Oslo"}]}
Otherwise it lists only the types that have items. extraction.json beside the examples records the wording, the shape of
the answer, and the median length of a sentence ("text_characters"): the server divides long text into windows of whole
sentences up to this length.
"""

from command_line.fire_commands import run

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from instruction_data.annotation_formats import read_annotation_file
from instruction_data.annotations import Annotation, read_types
from instruction_data.extraction_examples import build_examples, extraction_request
from instruction_data.extraction_wording import (
    ExtractionQuestion,
    make_questions,
    read_wording,
    updated_extraction,
)
from instruction_data.type_orders import reordered_questions
from partial_folders.atomic_outputs import new_file
from partial_folders.output_paths import check_output

Rows = list[dict[str, Any]]


def examples_and_requests(
    annotations: list[Annotation], task: str, orders: list[dict[str, ExtractionQuestion]]
) -> tuple[Rows, Rows, str]:
    """Return the examples of each sentence in each order, the same examples as /extract requests, and counts as text.

    orders: language -> question, for each order. If there are several, rows have the number of their order under
    "order".
    """
    built = [build_examples(annotations, task, questions) for questions in orders]
    examples, requests = [], []
    for index, annotation in enumerate(annotations):
        for order, (questions, (rows, _)) in enumerate(zip(orders, built, strict=True)):
            number = {"order": order} if len(orders) > 1 else {}
            request = extraction_request(annotation, task, questions[annotation.language], rows[index])
            examples.append(rows[index] | number)
            requests.append(request | number)
    return examples, requests, built[0][1]


def check_outputs(output: str, requests: str, inputs: Sequence[str]) -> Path:
    """Return the path of extraction.json beside the output.

    Raises FileNotFoundError or ValueError if the output or the file of --requests cannot be written.
    """
    extraction = Path(output).with_name("extraction.json")
    for option, path in ({"output": output} | ({"requests": requests} if requests else {})).items():
        check_output(path, inputs, option)
        if Path(path).resolve() == extraction.resolve():
            raise ValueError(f"{path} is the file that records the wording; give --{option} another name")
    if requests and Path(requests).resolve() == Path(output).resolve():
        raise ValueError(f"--output and --requests are both {output}; give --requests another name")
    return extraction


def main(
    annotations: str,
    output: str,
    types: str = "",
    task: Literal["ner", "re"] = "ner",
    language: Literal["en", "zh", "auto"] = "auto",
    wording: str = "",
    format: Literal["auto", "json", "conll", "conll04"] = "auto",
    order_augmentation: int = 1,
    seed: int = 0,
    requests: str = "",
) -> None:
    """Write an example for each annotated sentence to output (JSONL), and extraction.json beside it.

    Args:
        annotations: file of annotated sentences; in JSON {"sentence", "entity_list"} or {"sentence", "relation_list"}.
        output: the file to write.
        types: JSON file of the types to ask for: a list, or lists by kind and language; default: the annotated types.
        task: ner (entities) or re (relations).
        language: en, zh, or auto: zh if a fifth or more of the letters of a sentence are Chinese characters, else en.
        wording: an extraction.json whose wording is used instead of the default.
        format: format of `annotations`: json, conll (token and tag in columns), conll04 (with relations), or auto:
            recognised by the content.
        order_augmentation: number of examples for each sentence, each with the types in another random order; 1: the
            given order.
        seed: seed of the random orders.
        requests: a file for the same examples as request bodies of the server's /extract with the correct answer.
    """
    target = Path(output)
    extraction = check_outputs(output, requests, [annotations, types, wording])
    annotated, inconsistent = read_annotation_file(annotations, task, language, format)
    types_by_language = read_types(types, task) if types else None
    questions = make_questions(annotated, task, types_by_language, read_wording(wording, task))
    orders = reordered_questions(questions, task, order_augmentation, seed)
    examples, bodies, counts = examples_and_requests(annotated, task, orders)
    files = {target: json_lines(examples)} | ({Path(requests): json_lines(bodies)} if requests else {})
    with ExitStack() as stack:
        record_file = stack.enter_context(new_file(extraction, replace=True))
        record = updated_extraction(extraction, task, questions)
        for path, text in files.items():
            stack.enter_context(new_file(path, replace=True)).write_text(text, encoding="utf-8")
        record_file.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    languages = ", ".join(f"{language} (types: {len(question.types)})" for language, question in questions.items())
    print(f"{target}: task {task}, instructions in {languages}; their wording is in {extraction}\n{counts}")
    if order_augmentation > 1:
        print(f"orders: {order_augmentation} examples for each sentence, with the types in different orders")
    if inconsistent:
        print(f"tags: {inconsistent} are inconsistent with the tag before or after them; spans are as in conlleval")


def json_lines(rows: Rows) -> str:
    """Return rows as JSONL."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    run(main)
