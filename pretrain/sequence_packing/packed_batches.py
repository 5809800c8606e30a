"""Rows of the corpus as batches: samples that share a row and never see one another, or one sample a row, padded.

Positions begin at 0 with every sample and no attention mask is passed: from that, and with no cache, transformers
keeps samples apart. FlashAttention finds that out only in batches of one row, so it is told where samples begin. The
first token of a sample has no label, since nothing of its own stands before it.

`pretrain/train.py` is the command line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from corpus_files.corpus import Corpus

from sequence_packing import packed_attention
from sequence_packing.packed_rows import Rows
from sequence_packing.sampler import Schedule

IGNORED = -100  # the label of a position without loss


class Row(NamedTuple):
    """What shares a row: ids of each sample, (tokens,) uint16 or int32, and the number of the source they are from."""

    samples: list[np.ndarray]
    source: int


@dataclass(frozen=True)
class Streams:
    """What the proportions speak of: sources by name, or all sources of a type together.

    names: their keys. ranges: of each, the spans of rows [from, to) that it has. by_type: which of the two.
    """

    names: list[str]
    ranges: list[list[tuple[int, int]]]
    by_type: bool

    @classmethod
    def of(cls, rows: Rows, kind: str, by_type: bool = False) -> "Streams":
        """Those of a corpus's rows; kind: "rows" (to train on) or "held_out"."""
        found: dict[str, list[tuple[int, int]]] = {}
        for source in rows.sources:
            first, last = source[kind]
            found.setdefault(str(source["type"]) if by_type else source["name"], []).append((first, last))
        return cls(list(found), list(found.values()), by_type)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each."""
        return {
            name: sum(last - first for first, last in ranges)
            for name, ranges in zip(self.names, self.ranges, strict=True)
        }

    def row(self, stream: int, place: int) -> int:
        """The number of a stream's row."""
        for first, last in self.ranges[stream]:
            if place < last - first:
                return first + place
            place -= last - first
        raise IndexError(f"stream {self.names[stream]} has no such row")


class ScheduledRows(torch.utils.data.Dataset[Row]):
    """Trainer's dataset: item g is the row that the schedule has at g, of so many that the run takes."""

    def __init__(self, corpus: Corpus, rows: Rows, streams: Streams, schedule: Schedule, length: int) -> None:
        self.corpus, self.rows, self.streams, self.schedule, self.length = corpus, rows, streams, schedule, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        streams, places = self.schedule.at(np.asarray(indices, dtype=np.int64))
        return [
            Row([self.corpus[sample] for sample in self.rows[self.streams.row(stream, place)]], stream)
            for stream, place in zip(streams.tolist(), places.tolist(), strict=True)
        ]


class HeldOutRows(torch.utils.data.Dataset[Row]):
    """The rows that are never trained on, source after source."""

    def __init__(self, corpus: Corpus, rows: Rows, streams: Streams) -> None:
        self.corpus, self.rows = corpus, rows
        self.numbers = [
            (row, stream)
            for stream, ranges in enumerate(streams.ranges)
            for first, last in ranges
            for row in range(first, last)
        ]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Row:
        row, stream = self.numbers[index]
        return Row([self.corpus[sample] for sample in self.rows[row]], stream)


@dataclass(frozen=True)
class RankBatches:
    """The micro batches of one rank, as Trainer's batch sampler: lists of global row indices.

    Of each `rows x ranks` rows in turn, rank r takes the r-th run of `rows`.
    """

    first: int
    count: int
    rows: int
    rank: int
    ranks: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.count):
            begin = self.first + (number * self.ranks + self.rank) * self.rows
            yield list(range(begin, begin + self.rows))


@dataclass(frozen=True)
class Collator:
    """Rows to tensors, each (rows, tokens) int64 but for sources, (rows,): input_ids, labels, sources; and

    packed: position_ids, and what the attention backend must be told. Else: attention_mask.
    block_size: tokens of a packed row. pad_id: what fills a row up; it has no label, whatever token it is.
    backend: one of FlashAttention's gets cu_seq_lens_q and _k, (samples + 1,) int32, where samples begin in the rows
    put one after another, and the longest as max_length_q and _k; sdpa_by_sample gets sample_lengths, lists.
    """

    block_size: int
    pad_id: int
    packed: bool = True
    backend: str = "sdpa"

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        lengths = [[len(sample) for sample in row.samples] for row in rows]
        width = self.block_size if self.packed else max(map(sum, lengths))
        input_ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
        positions = np.empty((len(rows), width), dtype=np.int64)
        for number, row in enumerate(rows):
            at = 0
            for sample in row.samples:
                end = at + len(sample)
                input_ids[number, at:end] = sample
                labels[number, at + 1 : end] = sample[1:]
                positions[number, at:end] = np.arange(end - at)
                at = end
            positions[number, at:] = np.arange(width - at)
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels),
            "sources": torch.tensor([row.source for row in rows]),
        }  # fmt: skip
        if not self.packed:
            filled = torch.tensor([[sum(each)] for each in lengths])
            return batch | {"attention_mask": (torch.arange(width) < filled).long()}
        batch["position_ids"] = torch.from_numpy(positions)
        if self.backend == packed_attention.NAME:
            batch["sample_lengths"] = [[*each, width - sum(each)] if sum(each) < width else each for each in lengths]
        elif "flash" in self.backend:
            begins = np.flatnonzero(positions.reshape(-1) == 0)
            ends = torch.from_numpy(np.append(begins, positions.size).astype(np.int32))
            longest = int(positions.max()) + 1
            batch |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        return batch
