"""Read the files of annotated sentences, and collect the items that cannot be used."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from annotation_reading.annotated_sentences import AnnotatedSentence
from annotation_reading.annotation_checks import check_sentence
from annotation_reading.annotation_files import inconsistent_tags, read_annotation_files
from tqdm import tqdm

from extraction_building.hard_negatives import RelationTypes
from extraction_building.schema_items import AnnotatedTypes, Schema
from extraction_building.task_items import annotated_items

SHOWN_PROBLEMS = 20  # on the screen; the data card lists all
BUFFERED = 1 << 20  # bytes of problem lines in memory; more are in a temporary file


class AnnotationSource:
    """The files of --input.

    first_problem: line about the first item that does not fit its text, among the sentences read so far; "" if none.
    """

    def __init__(self, given: str, format: str, language: str) -> None:
        """given: files separated by commas; raises ValueError if there is none."""
        files = [given] if Path(given).exists() else [part.strip() for part in given.split(",") if part.strip()]
        if not files:
            raise ValueError("--input names no file; give a file of annotated sentences, or several with commas")
        self.files, self.format, self.language = files, format, language
        self.first_problem = ""

    def sentences(self, description: str) -> Iterator[tuple[AnnotatedSentence, list[str]]]:
        """Yield the sentences of all files without bad items, with a line for each bad item; shows a progress bar.

        Raises FileNotFoundError, or ValueError with file and line.
        """
        with tqdm(desc=description, unit=" texts", delay=2, disable=None) as bar:
            for file in self.files:
                for sentence in read_annotation_files(file, self.format, self.language):
                    checked, problems = check_sentence(sentence)
                    self.first_problem = self.first_problem or next(iter(problems), "")
                    yield checked, problems
                    bar.update()

    def inconsistent_tags(self) -> int:
        """Return the number of inconsistent tags of all CoNLL files."""
        return sum(inconsistent_tags(file, self.format) for file in self.files)

    def survey(self, task: str) -> tuple[dict[str, Schema], RelationTypes]:
        """Read all sentences; return language -> the annotated types, and the types of subjects and objects.

        Raises the errors of `sentences`, and ValueError if a sentence does not have the annotations of the task.
        """
        types: dict[str, AnnotatedTypes] = {}
        relation_types = RelationTypes()
        for sentence, _ in self.sentences("reading types"):
            if not sentence.text.strip():
                continue
            annotated_items(sentence, task)
            types.setdefault(sentence.language, AnnotatedTypes(task)).add(sentence)
            relation_types.add(sentence)
        return {language: found.schema() for language, found in types.items()}, relation_types


class ProblemList:
    """Lines about items that do not fit their text or the schema; many lines are kept in a temporary file.

    Attributes:
        bad: number of items that do not fit their text. unknown_types: type -> number of items that do not fit the
        schema. first: the first SHOWN_PROBLEMS lines.
    """

    def __init__(self) -> None:
        self.bad = 0
        self.unknown_types: Counter[str] = Counter()
        self.first: list[str] = []
        self._file = tempfile.SpooledTemporaryFile(BUFFERED, "w+", encoding="utf-8")  # noqa: SIM115 (kept open)

    def __len__(self) -> int:
        return self.bad + self.unknown_types.total()

    def add(self, line: str, unknown_type: str | None = None) -> None:
        """Add an item. unknown_type: its type if it does not fit the schema; None if it does not fit its text."""
        if unknown_type is None:
            self.bad += 1
        else:
            self.unknown_types[unknown_type] += 1
        line = " ".join(line.split())
        if len(self.first) < SHOWN_PROBLEMS:
            self.first.append(line)
        self._file.write(line + "\n")

    def lines(self) -> Iterator[str]:
        """Yield all lines."""
        self._file.seek(0)
        for line in self._file:
            yield line.rstrip("\n")

    def summary(self) -> str:
        """Return the counts as text."""
        types = f" ({most_common(self.unknown_types)})" if self.unknown_types else ""
        return f"{self.bad} not in the text as annotated, {self.unknown_types.total()} not in the schema{types}"


def most_common(counts: Counter[str], shown: int = 4) -> str:
    """Return the largest counts as text: "person 12, place 3, …"."""
    text = ", ".join(f"{name} {count}" for name, count in counts.most_common(shown))
    return text + (", …" if len(counts) > shown else "")
