"""The stages of cleaning: filter, find duplicates, keep the first document of each set of duplicates, write.

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

from text_cleaning.cleaning_io import CleaningPlan, DroppedWriter, KeptWriter, PassedWriter, ReadPassed, ReadShards
from text_cleaning.cleaning_rules import MINHASH, WORDS, MinhashSignatures, WordListFilter, by_language, normalised

LINES = 256  # lines of a signature file read at a time


def earlier_first(document: Document) -> int:
    """Return a document's priority, higher for earlier tasks.

    Of exact duplicates, datatrove keeps the one with the highest priority, and within a task the first.
    """
    return 65535 - int(document.metadata["task"])


EXACT = ExactDedupConfig(content_getter=normalised, document_priority=earlier_first)


def allow_many_files(data: Any, rank: int, world_size: int) -> Any:
    """Step that raises the limit of open files to the maximum, since there is one signature file per task."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return data


class DocumentPlaces(PipelineStep):
    """Writes the shard and line of each document of a task to places/<task>.npy: (documents, 2) int64."""

    type, name = "DEDUP", "places"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder / "places"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield all documents."""
        places = array("q")
        for document in data:
            places.extend((document.metadata["shard"], document.metadata["line"]))
            yield document
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{rank:05d}.npy", np.array(places, dtype=np.int64).reshape(-1, 2))


class KeepFirst(PipelineStep):
    """Keeps the first document, in input order, of each cluster of near-duplicates.

    datatrove keeps the root of its union-find instead. This step rewrites datatrove's lists of removed documents and
    writes pairs.npy: (removed, 4) int64, task and index of a removed document, task and index of the document kept for
    it.
    """

    type, name = "DEDUP", "keep_first"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Rewrite the lists; runs after MinhashDedupCluster in the same task."""
        nodes = [np.empty((0, 3), dtype=np.int64)]
        for path in sorted((self.folder / "clusters").glob("*.clusters")):
            members = np.fromfile(path, dtype="<u4").reshape(-1, 2).astype(np.int64)  # place, cluster
            nodes.append(np.insert(members, 0, int(path.stem), axis=1))
        every = np.concatenate(nodes)
        _, first, cluster = np.unique(every[:, 2], return_index=True, return_inverse=True)
        kept = every[first[cluster]][:, :2]
        pairs = np.concatenate([every[:, :2], kept], axis=1)[(every[:, :2] != kept).any(axis=1)]
        for path in (self.folder / "clusters").glob("*.remove"):
            path.unlink()
        for task in np.unique(pairs[:, 0]):
            pairs[pairs[:, 0] == task, 1].astype("<u4").tofile(self.folder / f"clusters/{task:06d}.remove")
        np.save(self.folder / "pairs.npy", pairs)


@dataclass(frozen=True)
class CleaningStage:
    """A stage: its steps and its number of tasks."""

    name: str
    steps: list[Any]
    tasks: int


def stages(plan: CleaningPlan) -> list[CleaningStage]:
    """Return the stages of a cleaning run in order, without the report."""
    folder, count = plan.folder, len(plan.tasks)
    exact, minhash = "exact" not in plan.skip, "minhash" not in plan.skip
    finders = min(64, max(1, count // 16))
    names = [] if "quality" in plan.skip else ["gopher_quality", "fineweb_quality", "code_lines"]
    names += [] if "repetition" in plan.skip else ["gopher_repetition"]
    steps: list[Any] = [ReadShards(plan), *(by_language(name, DroppedWriter(folder, name)) for name in names)]
    if "harm" not in plan.skip:
        steps.append(WordListFilter(plan.lists, DroppedWriter(folder, "listed_words")))
    steps.append(PassedWriter(folder / "passed"))
    if exact:
        steps.append(ExactDedupSignature(str(folder / "hashes"), EXACT, finders))
    made = [CleaningStage("filter", steps, count)]

    def read_unique(**record: Any) -> list[Any]:
        known = [ExactDedupFilter(str(folder / "exact"), EXACT, **record)] if exact else []
        return [ReadPassed(folder), *known]

    if exact:
        find = ExactFindDedups(str(folder / "hashes"), str(folder / "exact"), EXACT, lines_to_buffer=LINES)
        made.append(CleaningStage("exact", [allow_many_files, find], finders))
    if minhash:
        signatures, pairs, clusters = (str(folder / name) for name in ("signatures", "matches", "clusters"))
        sign = MinhashSignatures(signatures, MINHASH, WORDS)
        match = MinhashDedupBuckets(signatures, pairs, config=MINHASH, lines_to_buffer=LINES)
        cluster = MinhashDedupCluster(pairs, clusters, MINHASH, save_cluster_id=True, lines_to_buffer=LINES)
        made += [
            CleaningStage("signatures", [*read_unique(), DocumentPlaces(folder), sign], count),
            CleaningStage("matches", [allow_many_files, match], MINHASH.num_buckets),
            CleaningStage("clusters", [allow_many_files, cluster, KeepFirst(folder)], 1),
        ]
    last = read_unique(exclusion_writer=DroppedWriter(folder, "exact", "same_text"))
    if minhash:
        last.append(MinhashDedupFilter(str(folder / "clusters"), DroppedWriter(folder, "minhash", "similar_text")))
    return [*made, CleaningStage("write", [*last, KeptWriter(folder)], count)]
