"""Build the rows of all sentences for one task: schema, wording, batches and orders of each language."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from annotation_reading.annotated_sentences import AnnotatedSentence
from instruction_data.extraction_wording import TaskWording, answer_entry
from instruction_data.type_orders import check_order_count

from extraction_building.annotation_source import AnnotationSource, ProblemList, most_common
from extraction_building.correct_answers import distinct
from extraction_building.data_card import BuildCounts, percentile
from extraction_building.extraction_rows import BuiltRow, LanguageQuestion, RowWriter
from extraction_building.hard_negatives import (
    HardNegatives,
    RelationTypes,
    automatic_hard_negatives,
    read_hard_negatives,
)
from extraction_building.label_descriptions import entry_descriptions
from extraction_building.schema_batches import BATCH_SIZES, BatchSettings, schema_orders
from extraction_building.schema_items import KINDS, Schema
from extraction_building.task_items import LISTS, assign_items

ALL_TYPES = 1 << 30  # a batch size


class BuildSettings(NamedTuple):
    """The options of a build that determine its rows. schema_batch 0: all types in prose, else BATCH_SIZES."""

    task: str
    style: str
    split: str
    schema_batch: int = 0
    hard_negatives: str = ""
    negative_batches: int | None = None
    order_augmentation: int = 1
    seed: int = 0
    descriptions: dict[str, Any] | None = None

    def batch_size(self) -> int:
        """Return the number of types per row."""
        return self.schema_batch or (ALL_TYPES if self.style == "prose" else BATCH_SIZES[self.task])


class RowBuilder:
    """Builds rows, counts them, and collects the items that cannot be used.

    schemas: by language; None: the annotated types, for which the source is read once more. wordings: by language.
    check_entry: function of a language and its entry of extraction.json, which raises ValueError if the rows cannot be
    written; it is called before the first row of the language.
    """

    def __init__(
        self,
        source: AnnotationSource,
        schemas: dict[str, Schema] | None,
        wordings: dict[str, TaskWording],
        settings: BuildSettings,
        check_entry: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> None:
        check_settings(settings)
        self.source, self.wordings, self.settings = source, wordings, settings
        self.check_entry = check_entry
        self.counts, self.problems = BuildCounts(), ProblemList()
        self.writers: dict[str, RowWriter] = {}
        self.origins: dict[str, str] = {}  # language -> origin of the hard negatives
        self._schemas, self._relation_types = schemas or {}, RelationTypes()
        self._schemas_are_annotated = schemas is None
        if schemas is None or (settings.hard_negatives == "auto" and settings.task == "re"):
            found, self._relation_types = source.survey(settings.task)
            self._schemas = schemas or found

    def rows(self) -> Iterator[tuple[AnnotatedSentence, Schema, BuiltRow]]:
        """Yield the rows of all sentences.

        Sentences with a blank text are skipped; they are among the problems. Raises ValueError for malformed input, for
        a language without types or wording, if all texts are blank, and if no item has a type of the schema.
        """
        for sentence, problems in self.source.sentences("building"):
            for problem in problems:
                self.problems.add(problem)
            if not sentence.text.strip():
                continue
            writer = self.writer(sentence.language, sentence.location)
            schema = writer.question.schema
            items, misfits = assign_items(sentence, schema)
            for label, line in misfits:
                self.problems.add(line, label)
            rows = 0
            distinct_items = {entry: distinct(found) for entry, found in items.items()}
            for built in writer.rows(sentence, items, distinct_items):
                self.counts.add_row(sentence.language, built.row, built.batch, items)
                yield sentence, schema, built
                rows += 1
            numbers = (sum(map(len, found.values())) for found in (items, distinct_items))
            self.counts.add_text(sentence.language, sentence.text, rows, *numbers)
        if not self.counts.texts:
            raise ValueError(f"all texts of --input are blank; the first: {self.source.first_problem}")
        if self.problems.unknown_types and not self.counts.items:
            labels = [label for writer in self.writers.values() for label in writer.question.schema.labels]
            raise ValueError(
                f"no item has a requested type ({', '.join(labels[:3])}, …); the annotated types with their counts are "
                f"{most_common(self.problems.unknown_types)}; give the --schema of these annotations, in their language"
            )

    def writer(self, language: str, location: str) -> RowWriter:
        """Return the writer of a language; location: of its first sentence, "file:line".

        Raises ValueError if the language has no types or no wording.
        """
        if language not in self.writers:
            writer = RowWriter(self.settings.style, language, self._question(language, location))
            if self.check_entry is not None:
                self.check_entry(language, self._entry(writer))
            self.writers[language] = writer
        return self.writers[language]

    def labels(self) -> dict[str, tuple[str, ...]]:
        """Return language -> labels of its schema, for the languages of the rows so far."""
        return {language: writer.question.schema.labels for language, writer in sorted(self.writers.items())}

    def _question(self, language: str, location: str) -> LanguageQuestion:
        settings, schema, wording = self.settings, self._schemas.get(language), self.wordings.get(language)
        if schema is None or not schema.items:
            problem = self.source.first_problem
            fact = f", which have no usable {LISTS[KINDS[settings.task]]}" if self._schemas_are_annotated else ""
            raise ValueError(
                f"{location}: no types are known for the sentences in {language}{fact}; give a list of types for "
                f"{language} in --schema, or set --language if this language was detected wrongly"
                + (f"; the first item that cannot be used: {problem}" if problem else "")
            )
        if wording is None:
            raise ValueError(
                f"the wording has no instruction for {settings.task} in {language}; add it to the file, or remove "
                "--wording"
            )
        divides = settings.batch_size() < len(schema.items) or settings.order_augmentation > 1
        if settings.style == "prose" and divides and "{schema}" not in wording.instruction:
            raise ValueError(
                f"the wording for {settings.task} in {language} does not name the types ({{schema}}), so they have no "
                "order and no batches; remove --order_augmentation and --schema_batch, or --wording"
            )
        hard = self._hard_negatives(schema)
        if hard.origin:
            self.origins[language] = hard.origin
        is_training = settings.split == "train"
        batches = BatchSettings(
            settings.batch_size(), is_training, settings.task == "eea", hard.entries, settings.negative_batches,
            settings.seed,
        )  # fmt: skip
        orders = schema_orders(
            schema, language, settings.order_augmentation, settings.seed,
            sort=is_training and settings.style == "schema_json",
        )  # fmt: skip
        given = settings.descriptions
        descriptions = None if given is None else entry_descriptions(schema, given, language)
        return LanguageQuestion(schema, wording, batches, orders, descriptions)

    def _hard_negatives(self, schema: Schema) -> HardNegatives:
        match self.settings.hard_negatives:
            case "":
                return HardNegatives({}, "")
            case "auto":
                return automatic_hard_negatives(schema, self._relation_types)
            case file:
                return read_hard_negatives(file, schema)

    def extraction_entries(self) -> dict[str, dict[str, Any]]:
        """Return language -> entry of extraction.json; to be called after all rows are built."""
        return {
            language: {"text_characters": percentile(self.counts.text_lengths[language], 50)} | self._entry(writer)
            for language, writer in sorted(self.writers.items())
        }

    def _entry(self, writer: RowWriter) -> dict[str, Any]:
        """Return the entry of extraction.json for a language, without the key text_characters."""
        settings, question = self.settings, writer.question
        entry: dict[str, Any] = {
            "instruction": question.wording.instruction,
            "answer": answer_entry(settings.task, settings.style, question.wording),
        }
        if settings.style == "schema_json":
            entry["style"] = settings.style
        if settings.batch_size() < ALL_TYPES:
            entry["schema_batch"] = settings.batch_size()
        if question.descriptions is not None:
            described = zip(question.schema.labels, question.descriptions, strict=True)
            entry["descriptions"] = {label: text for label, text in described if text}
        return entry


def check_settings(settings: BuildSettings) -> None:
    """Raise ValueError for options that are out of range or contradict each other."""
    check_order_count(settings.order_augmentation)
    if settings.schema_batch < 0:
        raise ValueError(
            f"--schema_batch {settings.schema_batch} is out of range; give 1 or more, or 0 for the default"
        )
    if settings.negative_batches is not None and settings.negative_batches < 0:
        raise ValueError(f"--negative_batches {settings.negative_batches} is out of range; give 0 or more")
    for option, is_given in (
        ("hard_negatives", bool(settings.hard_negatives)),
        ("negative_batches", settings.negative_batches is not None),
    ):
        if is_given and settings.split == "test":
            raise ValueError(f"--{option} is for training, and --split test asks for all types; remove one of them")
        if is_given and settings.task == "eea":
            raise ValueError(f"--{option} does not apply to eea, which asks for the types in the text only; remove it")
        if is_given and settings.style == "prose" and not settings.schema_batch:
            raise ValueError(
                f"--{option} needs batches, and in prose an instruction asks for all types; give --schema_batch or "
                "--style schema_json"
            )
