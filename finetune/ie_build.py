"""Build extraction examples {"instruction", "input", "output"} from annotated sentences and a schema of types.

    python finetune/ie_build.py --input ner_data/ai/train.txt --schema ie/types.json --output ie/train.jsonl
    python finetune/ie_build.py --input conll04.train.txt --task re --order_augmentation 4 --output re/train.jsonl
    python finetune/ie_build.py --input iepile/EE/sample.json --schema iepile/EE/schema.json --task ee \\
        --style schema_json --output ee/train.jsonl
    python finetune/ie_build.py --input duie_train.json,duie_more.json --schema duie/schema.json --task spo \\
        --style schema_json --hard_negatives auto --negative_batches 2 --output spo/train.jsonl

Formats of annotations: annotation_reading/annotation_files.py. Schemas: extraction_building/schema_items.py. Without
--schema, the examples ask for the annotated types; otherwise, items of other types are dropped and listed.

In the style prose, a text becomes one example, which asks for all types of its language in a sentence. In the style
schema_json, as in IEPile and OneKE, the instruction is a JSON object {"instruction", "schema", "input"}, and a text
becomes several examples, which ask for a few types each. --hard_negatives puts easily confused types into one example.
With --order_augmentation K, a text becomes K sets of examples, which ask for the types in K random orders and have the
number of their order under "order".

extraction_building/correct_answers.py describes the answers. An answer lists every type that the example names, with an
empty list for a type without items. "gold" has the annotated items of an example with their spans.

Beside the examples are a data card (train.jsonl: train.card.md), and extraction.json, which records the wording, the
shape of the answer, the style, and the median length of a text ("text_characters"): the server divides long text into
windows of whole sentences up to this length.
"""

from command_line.fire_commands import run

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

from extraction_building.annotation_source import AnnotationSource, ProblemList
from extraction_building.data_card import card_lines, percent
from extraction_building.extraction_rows import REQUEST_TASKS, extraction_request
from extraction_building.label_descriptions import read_descriptions
from extraction_building.row_builder import BuildSettings, RowBuilder
from extraction_building.schema_items import read_schema
from instruction_data.extraction_wording import check_same_form, read_wording, updated_extraction
from partial_folders.atomic_outputs import new_file
from partial_folders.output_paths import check_output


def check_outputs(output: str, requests: str, inputs: Sequence[str]) -> tuple[Path, Path]:
    """Return the paths of extraction.json and of the data card beside the output.

    Raises FileNotFoundError or ValueError if the output or the file of --requests cannot be written.
    """
    folder = next(
        (
            name
            for name in inputs
            if Path(name).is_dir() and Path(output).resolve().is_relative_to(Path(name).resolve())
        ),
        "",
    )
    if folder:
        raise ValueError(f"{output} is inside the input folder {folder}; write --output elsewhere")
    extraction, card = Path(output).with_name("extraction.json"), Path(output).with_suffix(".card.md")
    for option, path in ({"output": output} | ({"requests": requests} if requests else {})).items():
        check_output(path, inputs, option)
        if Path(path).resolve() == extraction.resolve():
            raise ValueError(f"{path} is the file that records the wording; give --{option} another name")
    if requests and Path(requests).resolve() == Path(output).resolve():
        raise ValueError(f"--output and --requests are both {output}; give --requests another name")
    check_output(str(card), [*inputs, output, requests], "output")
    return extraction, card


def main(
    input: str,
    output: str,
    schema: str = "",
    task: Literal["ner", "re", "spo", "ee", "eet", "eea", "kg"] = "ner",
    language: Literal["en", "zh", "auto"] = "auto",
    split: Literal["train", "test"] = "train",
    style: Literal["prose", "schema_json"] = "prose",
    schema_batch: int = 0,
    hard_negatives: str = "",
    negative_batches: int | None = None,
    descriptions: str = "",
    wording: str = "",
    format: str = "auto",
    order_augmentation: int = 1,
    seed: int = 0,
    requests: str = "",
    strict: bool = False,
) -> None:
    """Write the examples of annotated sentences to output (JSONL), and extraction.json and a data card beside it.

    Args:
        input: file of annotated sentences, or several, separated by commas.
        output: the file to write.
        schema: JSON file of the types to ask for; default: the annotated types.
        task: ner (entities), re (relations), spo (relations with types of subject and object), ee (events), eet (events
            with triggers only), eea (arguments of known events) or kg (entities with attributes).
        language: en, zh, or auto: zh if a fifth or more of the letters of a text are Chinese characters, else en.
        split: train, or test: examples ask for all types, whatever the text contains; --hard_negatives is refused.
        style: prose, or schema_json: the instruction is a JSON object with the types as a list.
        schema_batch: number of types per example; 0: in prose all, in schema_json 6 (ner), 1 (kg) or 4.
        hard_negatives: auto, or a file of confused types; the types of a text are asked for together with these.
        negative_batches: maximum number of examples with an empty answer for each text; default: all.
        descriptions: JSON file of descriptions of the types, which the instructions then contain.
        wording: an extraction.json whose wording is used instead of the default.
        format: format of `input` (see README.md), or auto: recognised by the content.
        order_augmentation: number of random orders of the types, each with a set of examples; 1: one fixed order.
        seed: seed of the random orders and of the choice of negatives.
        requests: a file for the same examples as request bodies for the server's /extract, with the correct answers.
        strict: stop if an annotation does not fit its text or the schema.
    """
    options = dict(locals())
    source = AnnotationSource(input, format, language)
    files = [*source.files, *(file for file in (schema, wording, descriptions) if file)]
    files += [hard_negatives] if hard_negatives not in ("", "auto") else []
    extraction, card = check_outputs(output, requests, files)
    if requests and task not in REQUEST_TASKS:
        raise ValueError(f"--requests is for /extract, which has the tasks {', '.join(REQUEST_TASKS)}; remove it")
    wordings = read_wording(wording, task, style)
    settings = BuildSettings(
        task, style, split, schema_batch, hard_negatives, negative_batches, order_augmentation, seed,
        read_descriptions(descriptions) if descriptions else None,
    )  # fmt: skip
    schemas = read_schema(schema, task) if schema else None
    builder = RowBuilder(source, schemas, wordings, settings, partial(check_same_form, extraction, task, style))
    with ExitStack() as stack:
        record_file = stack.enter_context(new_file(extraction, replace=True))
        card_file = stack.enter_context(new_file(card, replace=True))
        write_rows(builder, output, requests, stack)
        report_problems(builder.problems, strict)
        record = updated_extraction(extraction, task, style, builder.extraction_entries())
        record_file.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        write_card(card_file, Path(output).name, builder, options, files)
    print_summary(builder, output, extraction, card)


def write_rows(builder: RowBuilder, output: str, requests: str, stack: ExitStack) -> None:
    """Write the rows to the output, and the requests if `requests` is a path; the stack completes the files."""
    with ExitStack() as opened:
        rows_file, requests_file = (
            opened.enter_context(
                stack.enter_context(new_file(path, replace=True)).open("w", encoding="utf-8", newline="\n")
            )
            if path
            else None
            for path in (output, requests)
        )
        for sentence, schema, built in builder.rows():
            if rows_file:
                rows_file.write(json.dumps(built.row, ensure_ascii=False) + "\n")
            if requests_file:
                request = extraction_request(built, sentence, schema)
                requests_file.write(json.dumps(request, ensure_ascii=False) + "\n")


def report_problems(problems: ProblemList, strict: bool) -> None:
    """Print the first problems to stderr; raises ValueError if there are any and `strict` is set."""
    for line in problems.first:
        print(f"notice: {line}", file=sys.stderr)
    if len(problems) > len(problems.first):
        print(f"notice: {len(problems) - len(problems.first)} more", file=sys.stderr)
    if problems and strict:
        raise ValueError(f"{len(problems)} items cannot be used: {problems.summary()}; correct them or remove --strict")


def write_card(path: Path, title: str, builder: RowBuilder, options: dict[str, Any], files: Sequence[str]) -> None:
    """Write the data card."""
    used = {
        name: value
        for name, value in options.items()
        if value != "" and value is not None and value is not False and name != "output"
    }
    used["schema_batch"] = min(builder.settings.batch_size(), *(len(labels) for labels in builder.labels().values()))
    if builder.origins:
        used["hard_negatives"] = "; ".join(f"{language}: {origin}" for language, origin in builder.origins.items())
    with path.open("w", encoding="utf-8", newline="\n") as file:
        problems = builder.problems
        for line in card_lines(
            title, builder.counts, builder.labels(), used, files, problems.summary(), problems.lines()
        ):
            file.write(line + "\n")


def print_summary(builder: RowBuilder, output: str, extraction: Path, card: Path) -> None:
    """Print the counts of a build."""
    counts, settings = builder.counts, builder.settings
    texts = ", ".join(
        f"{language} {counts.texts[language]} (types: {len(labels)})" for language, labels in builder.labels().items()
    )
    empty = percent(counts.empty_rows, counts.rows)
    print(f"{output}: {counts.rows} examples of the task {settings.task}, {empty} with an empty answer")
    print(f"texts: {texts}, {counts.without_items} of them without any item")
    print(f"items: {counts.items} kept, {counts.repeated} repeated in one text, {builder.problems.summary()}")
    if settings.order_augmentation > 1:
        print(f"orders: {settings.order_augmentation} sets of examples, with the types in different orders")
    if inconsistent := builder.source.inconsistent_tags():
        print(f"tags: {inconsistent} are inconsistent with the tag before or after them; spans are as in conlleval")
    print(f"the wording is in {extraction}, the data card in {card}")


if __name__ == "__main__":
    run(main)
