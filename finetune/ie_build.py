"""Build extraction examples {"instruction", "input", "output"} from annotated sentences and a list of types.

    python finetune/ie_build.py --annotations ai/train.json --types ai/class.json --output ie/train.jsonl
    python finetune/ie_build.py --annotations world/train_annotated.jsonl --types world/types.json --task re \\
        --wording world/extraction.json --output re/train.jsonl

instruction_data/annotations.py describes annotations and types. Without --types, the types that occur are used. Items
of other types are dropped and counted. Every sentence becomes one example, which asks for all types of its language.

If the wording names the types ({schema}), an answer lists every type, with an empty list for a type without items:
    {"person": ["Ann Lee"], "place": []}    {"born in": [{"subject": "Ann Lee", "object": "Oslo"}]}
Otherwise it lists only the types that have items. extraction.json beside the examples records the wording, the shape of
the answer, and the usual length of a sentence ("text_characters"), at which a server splits long text.
"""

from command_line.fire_commands import run

import json
from pathlib import Path
from typing import Literal

from instruction_data.annotations import read_annotations, read_types
from instruction_data.extraction_examples import build_examples
from instruction_data.extraction_wording import make_questions, read_wording, updated_extraction
from partial_folders.atomic_outputs import new_file
from partial_folders.output_paths import check_output


def main(
    annotations: str,
    output: str,
    types: str = "",
    task: Literal["ner", "re"] = "ner",
    language: Literal["en", "zh", "auto"] = "auto",
    wording: str = "",
) -> None:
    """Write an example for each annotated sentence to output (JSONL), and extraction.json beside it.

    Args:
        annotations: JSON list or JSONL of {"sentence", "entity_list"} or {"sentence", "relation_list"}.
        output: the file to write.
        types: JSON file of the types to ask for: a list, or lists by kind and language; default: the annotated types.
        task: ner (entities) or re (relations).
        language: en, zh, or auto: zh if a fifth or more of the letters of a sentence are Chinese characters, else en.
        wording: an extraction.json whose wording is used instead of the default.
    """
    target = Path(output)
    extraction = target.with_name("extraction.json")
    check_output(target, [annotations, types, wording])
    if target.name == extraction.name:
        raise ValueError(f"{target} is written beside the examples; give --output another name")
    annotated = read_annotations(annotations, task, language)
    types_by_language = read_types(types, task) if types else None
    questions = make_questions(annotated, task, types_by_language, read_wording(wording, task))
    examples, counts = build_examples(annotated, task, questions)
    lines = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
    with new_file(extraction, replace=True) as record_file, new_file(target, replace=True) as examples_file:
        record = updated_extraction(extraction, task, questions)
        examples_file.write_text(lines, encoding="utf-8")
        record_file.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    languages = ", ".join(f"{language} (types: {len(question.types)})" for language, question in questions.items())
    print(f"{target}: task {task}, instructions in {languages}; their wording is in {extraction}\n{counts}")


if __name__ == "__main__":
    run(main)
