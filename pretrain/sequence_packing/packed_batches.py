"""Batches of rows: the samples of a row packed one after another, or one padded sample a row.

Positions restart with every sample and no attention mask is passed, which keeps samples apart (packed_attention/). The
first token of a sample has no label, since no token of the sample precedes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from corpus_files.corpus import Corpus
from packed_attention.segment_attention import Segment

from sequence_packing.packed_rows import Rows
from sequence_packing.sampler import Schedule

IGNORED = -100  # the label of a position without loss


class Row(NamedTuple):
    """A row: ids of each sample, (tokens,) uint16 or int32, and the index of the stream that they come from."""

    samples: list[np.ndarray]
    source: int


@dataclass(frozen=True)
class Streams:
    """The streams that proportions refer to: sources by name, or all sources of a type together.

    names: of the streams. ranges: the spans of rows [from, to) of each. by_type: whether streams are types.
    """

    names: list[str]
    ranges: list[list[tuple[int, int]]]
    by_type: bool

    @classmethod
    def of(cls, rows: Rows, kind: str, by_type: bool = False) -> "Streams":
        """The streams of a corpus's rows; kind: "rows" (to train on) or "held_out"."""
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
        """The number of a row, from its place in the stream."""
        for first, last in self.ranges[stream]:
            if place < last - first:
                return first + place
            place -= last - first
        raise IndexError(f"stream {self.names[stream]} has no row at this place")


class ScheduledRows(torch.utils.data.Dataset[Row]):
    """Trainer's dataset: item g is the row that the schedule has at global row index g; length: rows of the run."""

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
    """Rows to tensors: input_ids and labels, (rows, tokens) int64, sources, (rows,) int64; and

    packed: position_ids, (rows, tokens) int64, and segments, lists of each row: its samples and its padding.
    Not packed: attention_mask, (rows, tokens) int64.
    block_size: tokens of a packed row. pad_id: fills a row up; padding has no label, whatever token it is.
    """

    block_size: int
    pad_id: int
    packed: bool = True

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
        segments = [[*each, width - sum(each)] if sum(each) < width else each for each in lengths]
        batch["segments"] = [[Segment(length) for length in each] for each in segments]
        return batch | {"position_ids": torch.from_numpy(positions)}
