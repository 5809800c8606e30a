"""The plan of a cleaning run, and datatrove steps that read documents and write rows.

A document is identified by shard and line. Its metadata hold the other fields of its row and its language.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from corpus_building.documents import Batch, Shard, TextSource, UnreadableError, read_shard, text_of
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter
from text_language.language_detection import language_of

from text_cleaning.cleaning_rules import CHINESE_SHARE

SHOWN_CHARACTERS = 200  # recorded characters of a dropped text
MOST_TASKS = 1000  # most tasks of a stage: datatrove opens the signature files of all tasks at once


@dataclass(frozen=True)
class CleaningPlan:
    """A cleaning run: shards in input order, the range [first, last) of shards of each task, and settings."""

    folder: Path  # the folder of intermediate files
    shards: list[Shard]
    tasks: list[tuple[int, int]]
    source: TextSource
    language: str
    on_error: str
    skip: frozenset[str]
    lists: dict[str, list[str]]


def divided(shards: list[Shard], task_bytes: int) -> list[tuple[int, int]]:
    """Return the ranges of shards of at most MOST_TASKS tasks, each of about `task_bytes` of input."""
    wanted = max(task_bytes, sum(shard.size for shard in shards) // (MOST_TASKS // 2))
    tasks, first, size = [], 0, 0
    for number, shard in enumerate(shards):
        if number > first and size + shard.size > wanted:
            tasks.append((first, number))
            first, size = number, 0
        size += shard.size
    return [*tasks, (first, len(shards))]


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AllColumns(TextSource):
    """A text source that reads every column of a .parquet file."""

    path: str = ""

    @cached_property
    def fields(self) -> list[str]:
        """The file's columns."""
        from pyarrow import parquet

        return list(parquet.read_schema(self.path).names)


def row_of(batch: Batch, number: int, source: TextSource) -> tuple[str, dict[str, Any]]:
    """Return the text of a line and the other fields of its row; raises UnreadableError as `text_of` does."""
    line, row = batch.lines[number - batch.first], None
    if isinstance(line, bytes) and line.lstrip()[:1] == b"{":
        with suppress(ValueError):
            row = json.loads(line.decode("utf-8"))
    elif isinstance(line, dict):
        row = line
    if not isinstance(row, dict):  # a line of a .txt file, or a line for which text_of raises
        return text_of(batch, number, source), {}
    text = text_of(replace(batch, first=number, lines=[row]), number, source)
    return text, {key: value for key, value in row.items() if key not in source.fields and key != "text"}


class ReadShards(PipelineStep):
    """Reads the documents of a task's shards; an unreadable line raises an error or is dropped (plan.on_error)."""

    type, name = "READER", "reader"

    def __init__(self, plan: CleaningPlan) -> None:
        super().__init__()
        self.plan = plan
        self.writer = DroppedWriter(plan.folder, self.name, "unreadable")

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of task `rank`; write the numbers of lines and bytes per shard to read/<task>.json."""
        read = {}
        with self.writer:
            for number in range(*self.plan.tasks[rank]):
                counts: Counter[str] = Counter(lines=0, bytes=0)
                for document in self.documents(number, counts):
                    document.metadata["task"] = rank
                    if document.text.strip():
                        yield document
                    else:
                        self.writer.write(document, rank)
                read[number] = counts
        write_json(self.plan.folder / f"read/{rank:05d}.json", read)

    def documents(self, number: int, counts: Counter[str]) -> Iterator[Document]:
        """Yield the documents of a shard; a document to drop has no text and a reason. Counts are added to `counts`."""
        plan, shard = self.plan, self.plan.shards[number]
        try:
            wanted = AllColumns(path=shard.path) if shard.path.endswith(".parquet") else plan.source
            for batch in read_shard(shard, wanted):
                for line in range(batch.first, batch.first + len(batch.lines)):
                    counts["lines"] += 1
                    yield self.document(batch, number, line, counts)
        except UnreadableError as error:
            if plan.on_error == "stop":
                raise
            counts["lines"] += 1  # the rest of a damaged file counts as one line
            yield self.dropped_document(number, counts["lines"], str(error))

    def document(self, batch: Batch, number: int, line: int, counts: Counter[str]) -> Document:
        """Return the document of a line, or a document without text if the line is to be dropped."""
        try:
            with self.track_time():
                text, row = row_of(batch, line, self.plan.source)
        except UnreadableError as error:
            if self.plan.on_error == "stop":
                raise
            return self.dropped_document(number, line, str(error))
        if not text.strip():
            return self.dropped_document(number, line, "no text")
        language = language_of(text, CHINESE_SHARE) if self.plan.language == "auto" else self.plan.language
        size = len(text.encode())
        counts["bytes"] += size
        known = {"row": row, "shard": number, "line": line, "bytes": size, "language": language}
        return Document(text, f"{number}:{line}", metadata=known)

    def dropped_document(self, number: int, line: int, why: str) -> Document:
        """Return a document without text whose metadata hold the reason for dropping it."""
        reason = why if why == "no text" else "unreadable"
        known = {"shard": number, "line": line, "bytes": 0, "language": "", "filter_reason": reason, "error": why}
        return Document("", f"{number}:{line}", metadata=known)


class ReadRows(PipelineStep):
    """Reads the documents of a task that passed the filters, from the files of `PassedWriter`."""

    type, name = "READER", "rows"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of task `rank`."""
        path = self.folder / f"passed/{rank:05d}.jsonl"
        if path.is_file():  # the file does not exist if no document passed
            for line in path.open(encoding="utf-8"):
                with self.track_time():
                    metadata = json.loads(line)
                yield Document(metadata.pop("text"), "", metadata=metadata)


# --- writing ----------------------------------------------------------------------------------------------------------


class JsonRowsWriter(DiskWriter):
    """Writes JSON rows to one file per task; a subclass chooses the fields."""

    default_output_filename = "${rank}.jsonl"
    name = "rows"

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), compression=None, mode="wb")

    def _write(self, document: dict[str, Any], file_handler: Any, _filename: str) -> None:
        try:
            line = json.dumps(document, ensure_ascii=False, default=str).encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair in a field other than the text
            line = json.dumps(document, default=str).encode("ascii")
        file_handler.write(line + b"\n")


class PassedWriter(JsonRowsWriter):
    """Writes text and metadata of documents that passed the filters, for `ReadRows`."""

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        return {"text": document.text} | document.metadata


class KeptWriter(JsonRowsWriter):
    """Writes the result (text and the other fields of the row), and counts per shard to kept/<task>.json."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "result")
        self.folder = folder

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        return {"text": document.text} | document.metadata["row"]

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write the documents and yield them."""
        counts: dict[int, Counter[str]] = {}
        for document in super().run(data, rank, world_size):
            counts.setdefault(document.metadata["shard"], Counter()).update(
                {"documents": 1, "bytes": document.metadata["bytes"], document.metadata["language"]: 1}
            )
            yield document
        write_json(self.folder / f"kept/{rank:05d}.json", counts)


class DroppedWriter(JsonRowsWriter):
    """Writes the documents that a filter dropped, with the reason.

    by: name of the filter. reason: the reason of documents whose metadata have none.
    """

    def __init__(self, folder: Path, by: str, reason: str = "") -> None:
        super().__init__(folder / f"dropped/{by}")
        self.by, self.reason = by, reason

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        known = document.metadata
        record = {name: known[name] for name in ("shard", "line", "bytes", "language")}
        reason = known.get("filter_reason", self.reason)
        return record | {
            "filter": self.by,
            "reason": reason,
            "text": known.get("error") or document.text[:SHOWN_CHARACTERS],
        }


def write_json(path: Path, value: Any) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(value), encoding="utf-8")
    unfinished.replace(path)
