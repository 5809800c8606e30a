"""The plan of a cleaning run, and datatrove steps that read documents and write rows.

A document is identified by shard and line. Its metadata hold the other fields of its row and its language.
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

SHOWN_CHARACTERS = 200  # recorded characters of a dropped text
MOST_TASKS = 1000  # most tasks of a stage: datatrove opens the signature files of all tasks at once


@dataclass(frozen=True)
class CleaningPlan:
    """A cleaning run: shards in input order, the range [first, last) of shards of each task, and settings."""

    folder: Path  # the folder of intermediate files
    shards: list[Shard]
    tasks: list[tuple[int, int]]
    source: TextSource  # the fields that contain the text
    language: str  # of all documents, or "auto"
    skip: frozenset[str]  # names of filters that are not used
    lists: dict[str, list[str]]  # language -> words of the word lists


def divide_into_tasks(shards: list[Shard], task_bytes: int) -> list[tuple[int, int]]:
    """Return the ranges of shards of at most MOST_TASKS tasks, each of about `task_bytes` of input."""
    wanted = max(task_bytes, sum(shard.size for shard in shards) // (MOST_TASKS // 2))
    tasks, first, size = [], 0, 0
    for number, shard in enumerate(shards):
        if number > first and size + shard.size > wanted:
            tasks.append((first, number))
            first, size = number, 0
        size += shard.size
    return [*tasks, (first, len(shards))]


class ReadShards(PipelineStep):
    """Reads the documents of a task's shards; lines without text go to dropped/reader."""

    type, name = "READER", "reader"

    def __init__(self, plan: CleaningPlan) -> None:
        super().__init__()
        self.plan = plan
        self.writer = DroppedWriter(plan.folder, self.name)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of task `rank`; write lines and bytes per shard to <plan folder>/read/<task>.json."""
        counts = {}
        with self.writer:
            for number in range(*self.plan.tasks[rank]):
                counts[number] = {"lines": 0, "bytes": 0}
                for row in read_documents(self.plan.shards[number], self.plan.source, all_columns=True):
                    document = self.document(row, number, rank)
                    counts[number]["lines"] += 1
                    counts[number]["bytes"] += document.metadata["bytes"]
                    if row.text.strip():
                        yield document
                    else:
                        self.writer.write(document, rank)
        write_json(self.plan.folder / f"read/{rank:05d}.json", counts)

    def document(self, row: TextRow, shard: int, task: int) -> Document:
        """Return the document of a line; it is empty for a line without text, and its metadata give the reason."""
        place = {"shard": shard, "line": row.line, "task": task}
        if not row.text.strip():
            reason = "unreadable" if row.fault else "no text"
            dropped = {"bytes": 0, "language": "", "filter_reason": reason, "fault": row.fault or "no text"}
            return Document("", f"{shard}:{row.line}", metadata=place | dropped)
        plan, text_fields = self.plan, {"text", *self.plan.source.fields}
        language = language_of(row.text, CHINESE_SHARE) if plan.language == "auto" else plan.language
        fields = {key: value for key, value in row.row.items() if key not in text_fields}
        known = {"row": fields, "bytes": len(row.text.encode()), "language": language}
        return Document(row.text, f"{shard}:{row.line}", metadata=place | known)


class ReadPassed(PipelineStep):
    """Reads the documents of a task that passed the filters, from the files of `PassedWriter`."""

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
    """Writes text and metadata of documents that passed the filters, for `ReadPassed`."""

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        return {"text": document.text} | document.metadata


class KeptWriter(JsonRowsWriter):
    """Writes text and other fields of rows to <folder>/result, and counts to <folder>/kept/<task>.json."""

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
    """Writes the documents that a filter dropped, with the reason; `text` of an unreadable line describes the fault.

    default_reason: the reason of documents whose metadata have none.
    """

    def __init__(self, folder: Path, filter_name: str, default_reason: str = "") -> None:
        super().__init__(folder / f"dropped/{filter_name}")
        self.filter_name, self.default_reason = filter_name, default_reason

    def _default_adapter(self, document: Document) -> dict[str, Any]:
        known = document.metadata
        return {name: known[name] for name in ("shard", "line", "bytes", "language")} | {
            "filter": self.filter_name,
            "reason": known.get("filter_reason", self.default_reason),
            "text": known.get("fault") or document.text[:SHOWN_CHARACTERS],
        }


def write_json(path: Path, value: Any) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(value), encoding="utf-8")
    unfinished.replace(path)
