"""Stages of cleaning: filter documents, find duplicates, keep the first of each set of duplicates, write the result.

The number of tasks depends only on the input, not on the number of workers.
"""

import resource
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
)
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig

from text_cleaning.cleaning_io import CleaningPlan, DroppedWriter, KeptWriter, PassedReader, PassedWriter, ShardReader
from text_cleaning.cleaning_rules import (
    FILTERS,
    MINHASH,
    WORD_TOKENIZER,
    MinhashSignatures,
    make_per_language_filter,
    normalised_text,
)
from text_cleaning.harm_filter import HarmFilter

BUFFERED_LINES = 256  # lines of a signature file that are read at a time


def task_priority(document: Document) -> int:
    """Return the priority of a document, which is higher in earlier tasks.

    Of exact duplicates, datatrove keeps the document with the highest priority, and of equal priorities the first one.
    """
    return 65535 - int(document.metadata["task"])


EXACT_DEDUP = ExactDedupConfig(content_getter=normalised_text, document_priority=task_priority)


def allow_many_files(data: Any, rank: int, world_size: int) -> Any:
    """Raise the limit of open files to its maximum, since there is one signature file per task; a step of a stage."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))
    return data


class DocumentLocationsWriter(PipelineStep):
    """Writes the shard and line of each document of a task to locations/<task>.npy: (documents, 2) int64."""

    type, name = "DEDUP", "locations"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder / "locations"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield all documents."""
        locations = array("q")
        for document in data:
            locations.extend((document.metadata["shard"], document.metadata["line"]))
            yield document
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{rank:05d}.npy", np.array(locations, dtype=np.int64).reshape(-1, 2))


class KeepFirstDuplicate(PipelineStep):
    """Keeps the first document, in input order, of each cluster of near-duplicates.

    datatrove keeps the root of its union-find instead. This step rewrites datatrove's lists of removed documents and
    writes pairs.npy, (removed, 4) int64: task and index of each removed document, and task and index of the document
    that is kept instead.
    """

    type, name = "DEDUP", "keep_first"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Rewrite the lists; runs after MinhashDedupCluster in the same task."""
        parts = [np.empty((0, 3), dtype=np.int64)]
        for path in sorted((self.folder / "clusters").glob("*.clusters")):
            members = np.fromfile(path, dtype="<u4").reshape(-1, 2).astype(np.int64)  # index in the task, cluster
            parts.append(np.insert(members, 0, int(path.stem), axis=1))
        documents = np.concatenate(parts)  # (documents, 3): task, index in the task, cluster
        _, first, cluster = np.unique(documents[:, 2], return_index=True, return_inverse=True)
        kept = documents[first[cluster]][:, :2]
        pairs = np.concatenate([documents[:, :2], kept], axis=1)[(documents[:, :2] != kept).any(axis=1)]
        for path in (self.folder / "clusters").glob("*.remove"):
            path.unlink()
        for task in np.unique(pairs[:, 0]):
            pairs[pairs[:, 0] == task, 1].astype("<u4").tofile(self.folder / f"clusters/{task:06d}.remove")
        np.save(self.folder / "pairs.npy", pairs)


@dataclass(frozen=True)
class CleaningStage:
    """A stage of a cleaning run: its steps, which each of its tasks runs in order."""

    name: str
    steps: list[Any]
    tasks: int


def stages(plan: CleaningPlan) -> list[CleaningStage]:
    """Return the stages of a cleaning run in order, without the report."""
    folder, count = plan.folder, len(plan.tasks)
    exact, minhash = "exact" not in plan.skip, "minhash" not in plan.skip
    exact_tasks = min(64, max(1, count // 16))  # each finds the duplicates in a range of the hashes
    steps: list[Any] = [ShardReader(plan)]
    steps += [make_per_language_filter(name, DroppedWriter(folder, name)) for name in FILTERS if name not in plan.skip]
    if "harm" not in plan.skip:
        steps.append(HarmFilter(plan.word_lists, DroppedWriter(folder, "harm")))
    steps.append(PassedWriter(folder / "passed"))
    hashes, duplicates = str(folder / "hashes"), str(folder / "exact")
    if exact:
        steps.append(ExactDedupSignature(hashes, EXACT_DEDUP, exact_tasks))
    result = [CleaningStage("filter", steps, count)]

    def read_without_exact_duplicates(**options: Any) -> list[Any]:
        return [PassedReader(folder), *([ExactDedupFilter(duplicates, EXACT_DEDUP, **options)] if exact else [])]

    if exact:
        find = ExactFindDedups(hashes, duplicates, EXACT_DEDUP, lines_to_buffer=BUFFERED_LINES)
        result.append(CleaningStage("exact", [allow_many_files, find], exact_tasks))
    if minhash:
        signatures, pairs, clusters = (str(folder / name) for name in ("signatures", "matches", "clusters"))
        sign = MinhashSignatures(signatures, MINHASH, WORD_TOKENIZER)
        match = MinhashDedupBuckets(signatures, pairs, config=MINHASH, lines_to_buffer=BUFFERED_LINES)
        cluster = MinhashDedupCluster(pairs, clusters, MINHASH, save_cluster_id=True, lines_to_buffer=BUFFERED_LINES)
        locations = DocumentLocationsWriter(folder)
        result += [
            CleaningStage("signatures", [*read_without_exact_duplicates(), locations, sign], count),
            CleaningStage("matches", [allow_many_files, match], MINHASH.num_buckets),
            CleaningStage("clusters", [allow_many_files, cluster, KeepFirstDuplicate(folder)], 1),
        ]
    steps = read_without_exact_duplicates(exclusion_writer=DroppedWriter(folder, "exact", "same_text"))
    if minhash:
        steps.append(MinhashDedupFilter(str(folder / "clusters"), DroppedWriter(folder, "minhash", "similar_text")))
    return [*result, CleaningStage("write", [*steps, KeptWriter(folder)], count)]
