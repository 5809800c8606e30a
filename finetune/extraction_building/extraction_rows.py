"""Convert an annotated sentence to instruction rows, in prose or with the schema as JSON.

A row has the task, the instruction, the correct answer ("output") and the annotated items of the row ("gold"):
    prose        {"task", "instruction": "Which … person, place?", "input": text, "output", "gold"}
    schema_json  {"task", "instruction": '{"instruction": …, "schema": […], "input": text}', "output", "gold"}
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from annotation_reading.annotated_sentences import AnnotatedSentence, Event
from instruction_data.extraction_wording import TaskWording, lists_all_types

from extraction_building.correct_answers import TaskAnswerForm, correct_answer, gold_items
from extraction_building.schema_batches import Batch, BatchSettings, text_batches
from extraction_building.schema_items import TYPED_RELATION, Schema, SchemaItem
from extraction_building.task_items import Item

SEPARATORS = {"en": (", ", "; ", " (", ")", ": "), "zh": ("、", "；", "（", "）", "：")}
AMBIGUOUS = ",，、"  # characters in a name that a reader would take for separators
REQUEST_TASKS = ("ner", "re", "spo", "ee")  # tasks of the server's /extract


class LanguageQuestion(NamedTuple):
    """The schema, wording, batches and orders of the rows in one language."""

    schema: Schema
    wording: TaskWording
    batches: BatchSettings
    orders: list[list[int]]  # each an order of the schema's entries
    descriptions: list[str] | None = None  # of the entries


class BuiltRow(NamedTuple):
    """A row, and the schema entries that it asks for."""

    row: dict[str, Any]
    batch: Batch


class RowWriter:
    """Writes the rows of the sentences in one language."""

    def __init__(self, style: str, language: str, question: LanguageQuestion) -> None:
        self.style, self.language, self.question = style, language, question
        wording = question.wording
        lists_all = lists_all_types(question.schema.task, style, wording.instruction)
        self.form = TaskAnswerForm(wording.shape, lists_all, missing_roles=style == "schema_json")
        self._instructions: dict[Batch, str] = {}
        if style == "prose" and "{schema}" in wording.instruction:
            check_names(question.schema)

    def rows(
        self,
        sentence: AnnotatedSentence,
        items: Mapping[int, Sequence[Item]],
        distinct_items: Mapping[int, Sequence[Item]],
    ) -> Iterator[BuiltRow]:
        """Yield the rows of a sentence: for each order of the types, one row for each batch.

        items: schema entry -> annotated items. distinct_items: the same without repeated names, for the answers.
        """
        question, schema = self.question, self.question.schema
        for number, order in enumerate(question.orders):
            for batch in text_batches(sentence.text, order, {*items}, question.batches):
                answer = correct_answer(schema, batch, distinct_items, self.form)
                row: dict[str, Any] = {
                    "task": schema.task,
                    **self._instruction(sentence.text, batch, items),
                    "output": json.dumps(answer, ensure_ascii=False),
                }
                if len(question.orders) > 1:
                    row["order"] = number
                row["gold"] = gold_items(schema, batch, items)
                yield BuiltRow(row, batch)

    def _instruction(self, text: str, batch: Batch, items: Mapping[int, Sequence[Item]]) -> dict[str, str]:
        if self.style == "schema_json":
            content = {
                "instruction": self.question.wording.instruction,
                "schema": self._schema_json(batch, items),
                "input": text,
            }
            return {"instruction": json.dumps(content, ensure_ascii=False)}
        if batch not in self._instructions:
            if len(self._instructions) >= 1000:  # hard negatives give many different batches
                self._instructions.clear()
            self._instructions[batch] = self._prose(batch)
        return {"instruction": self._instructions[batch], "input": text}

    def _prose(self, batch: Batch) -> str:
        """Return the wording with the types in place of {schema}, and a line for each described type."""
        schema, descriptions = self.question.schema, self.question.descriptions
        phrase = schema_phrase(schema, batch, self.language)
        text = self.question.wording.instruction.replace("{schema}", phrase)  # str.format fails on other braces
        colon = SEPARATORS[self.language][4]
        lines = [f"{schema.items[n].name}{colon}{descriptions[n]}" for n in batch if descriptions and descriptions[n]]
        return "\n".join([text, *lines])

    def _schema_json(self, batch: Batch, items: Mapping[int, Sequence[Item]]) -> list[Any] | dict[str, str]:
        """Return the value of "schema" in an instruction."""
        schema, descriptions = self.question.schema, self.question.descriptions
        if descriptions is not None and schema.task in ("ner", "re", "eet"):
            return {schema.items[number].name: descriptions[number] for number in batch}
        values = []
        for number in batch:
            value = item_json(schema.task, schema.items[number])
            if schema.task == "eea" and self.question.batches.is_training:
                events = (item for item in items.get(number, ()) if isinstance(item, Event))
                triggers = [event.trigger.text for event in events if event.trigger]
                value = {"event_type": value["event_type"], "trigger": triggers, "arguments": value["arguments"]}
            if descriptions is not None and descriptions[number]:
                value["description"] = descriptions[number]
            values.append(value)
        return values


def item_json(task: str, item: SchemaItem) -> Any:
    """Return a schema entry as IEPile writes it in an instruction."""
    match task:
        case "spo":
            return dict(zip(TYPED_RELATION, (item.parts[0], item.name, item.parts[1]), strict=True))
        case "ee":
            return {"event_type": item.name, "trigger": True, "arguments": list(item.parts)}
        case "eea":
            return {"event_type": item.name, "arguments": list(item.parts)}
        case "kg":
            return {"entity_type": item.name, "attributes": list(item.parts)}
    return item.name


def schema_phrase(schema: Schema, batch: Batch, language: str) -> str:
    """Return types as text: "person, place"; with roles or types of subject and object, "layoff (company, time)"."""
    comma, semicolon, opening, closing, _ = SEPARATORS[language]
    with_parts = schema.task in ("ee", "spo")
    phrases = [
        item.name + (opening + comma.join(item.parts) + closing if with_parts and item.parts else "")
        for item in (schema.items[number] for number in batch)
    ]
    return (semicolon if with_parts else comma).join(phrases)


def check_names(schema: Schema) -> None:
    """Raise ValueError if a name has a comma, which separates the names of an instruction in prose."""
    names = (name for item in schema.items for name in (item.name, *item.parts))
    unclear = next((name for name in names if set(name) & set(AMBIGUOUS)), None)
    if unclear is not None:
        raise ValueError(
            f"the type {unclear!r} contains a comma, which separates the types of an instruction; rename it in "
            "--input and --schema, or give --style schema_json"
        )


def extraction_request(built: BuiltRow, sentence: AnnotatedSentence, schema: Schema) -> dict[str, Any]:
    """Return a row as a request body of the server's /extract, with the correct answer under "output"."""
    entries = [schema.items[number] for number in built.batch]
    names: list[Any] | dict[str, Any] = [item_json(schema.task, entry) for entry in entries]
    if schema.task == "ee":
        names = {entry.name: list(entry.parts) for entry in entries}
    request = {
        "task": schema.task,
        "schema": names,
        "text": sentence.text,
        "language": sentence.language,
        "output": built.row["output"],
    }
    return request | ({"order": built.row["order"]} if "order" in built.row else {})
