"""The plan of a cleaning run, and the datatrove steps that read documents and write rows.

A document is identified by its shard and line. Its metadata contain its language and the other fields of its row.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus_building.documents import Shard, TextRow, TextSource, read_documents
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter
from text_language.language_detection import language_of

from text_cleaning.cleaning_rules import CHINESE_SHARE

SHOWN_CHARACTERS = 200  # characters of a dropped text that are recorded
MAX_TASKS = 1000  # per stage, since datatrove opens the signature files of all tasks at once


@dataclass(frozen=True)
class CleaningPlan:
    """The input, tasks and settings of a cleaning run."""

    folder: Path  # the folder of intermediate files
    shards: list[Shard]  # in input order
    tasks: list[tuple[int, int]]  # the range [first, end) of shards of each task
    source: TextSource  # the fields that contain the text
    language: str  # language of all documents, or "auto"
    skip: frozenset[str]  # names of filters that are not used
    word_lists: dict[str, list[str]]  # language -> harmful phrases


def divide_into_tasks(shards: list[Shard], task_bytes: int) -> list[tuple[int, int]]:
    """Divide shards into at most MAX_TASKS tasks of about `task_bytes`; return the range of shards of each task."""
    limit = max(task_bytes, sum(shard.size for shard in shards) // (MAX_TASKS // 2))
    tasks, first, size = [], 0, 0
    for number, shard in enumerate(shards):
        if number > first and size + shard.size > limit:
            tasks.append((first, number))
            first, size = number, 0
        size += shard.size
    return [*tasks, (first, len(shards))]


class ShardReader(PipelineStep):
    """Reads the documents of a task's shards; records lines without readable text in dropped/reader."""

    type, name = "READER", "reader"

    def __init__(self, plan: CleaningPlan) -> None:
        super().__init__()
        self.plan = plan
        self.writer = DroppedWriter(plan.folder, self.name)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of task `rank`; write line and byte counts by shard to <folder>/read/<task>.json."""
        counts = {}
        with self.writer:
            for number in range(*self.plan.tasks[rank]):
                counts[number] = {"lines": 0, "bytes": 0}
                for row in read_documents(self.plan.shards[number], self.plan.source, all_columns=True):
                    document = self.make_document(row, number, rank)
                    counts[number]["lines"] += 1
                    counts[number]["bytes"] += document.metadata["bytes"]
                    if row.text.strip():
                        yield document
                    else:
                        self.writer.write(document, rank)
        write_json(self.plan.folder / f"read/{rank:05d}.json", counts)

    def make_document(self, row: TextRow, shard: int, task: int) -> Document:
        """Return the document of a row; without text in the row, it is empty, with the reason in its metadata."""
        location = {"shard": shard, "line": row.line, "task": task}
        if not row.text.strip():
            reason = "unreadable" if row.error else "no text"
            dropped = {"bytes": 0, "language": "", "filter_reason": reason, "error": row.error or "no text"}
            return Document("", f"{shard}:{row.line}", metadata=location | dropped)
        plan, text_fields = self.plan, {"text", *self.plan.source.fields}
        language = language_of(row.text, CHINESE_SHARE) if plan.language == "auto" else plan.language
        other_fields = {key: value for key, value in row.content.items() if key not in text_fields}
        metadata = {"other_fields": other_fields, "bytes": len(row.text.encode()), "language": language}
        return Document(row.text, f"{shard}:{row.line}", metadata=location | metadata)


class PassedReader(PipelineStep):
    """Reads the documents of a task that passed the filters; `PassedWriter` wrote them."""

    type, name = "READER", "passed"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of task `rank`."""
        path = self.folder / f"passed/{rank:05d}.jsonl"
        if path.is_file():  # the file does not exist if no document passed
            for line in path.open(encoding="utf-8"):
                metadata = json.loads(line)
                yield Document(metadata.pop("text"), "", metadata=metadata)


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
    """Writes text and metadata of the documents that passed the filters; `PassedReader` reads them."""

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        return {"text": document.text} | document.metadata


class KeptWriter(JsonRowsWriter):
    """Writes the rows of kept documents to <folder>/result, and their counts to <folder>/kept/<task>.json."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "result")
        self.folder = folder

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        return {"text": document.text} | document.metadata["other_fields"]

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
    """Writes a record of each document that a filter dropped; for an unreadable line, `text` is the error message.

    default_reason: the reason for documents whose metadata do not contain a reason.
    """

    def __init__(self, folder: Path, filter_name: str, default_reason: str = "") -> None:
        super().__init__(folder / f"dropped/{filter_name}")
        self.filter_name, self.default_reason = filter_name, default_reason

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        metadata = document.metadata
        return {name: metadata[name] for name in ("shard", "line", "bytes", "language")} | {
            "filter": self.filter_name,
            "reason": metadata.get("filter_reason", self.default_reason),
            "text": metadata.get("error") or document.text[:SHOWN_CHARACTERS],
        }


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(path)
