"""Datasets and batches of packed sequences; with --no_packing, a sequence is one padded sample.

Packed samples do not attend to each other: positions restart at each sample, and no attention mask is passed (see
packed_attention/). The first token of a sample has no label, since no token of the sample precedes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from corpus_files.corpus import Corpus
from packed_attention.segment_attention import Segment

from sequence_packing.packed_sequences import PackedSequences
from sequence_packing.sampler import SequenceOrder

IGNORED = -100  # the label of a position without loss


class PackedSequence(NamedTuple):
    """A sequence as an item of a dataset."""

    samples: list[np.ndarray]  # ids of each sample, (tokens,) uint16 or int32
    group: int  # index of the source group


@dataclass(frozen=True)
class SourceGroups:
    """The groups that source weights name: each source, or all sources of a type together."""

    names: list[str]
    ranges: list[list[tuple[int, int]]]  # for each group, ranges [start, end) of sequence indices
    by_type: bool  # whether a group has all sources of a type

    @classmethod
    def of_split(cls, packed: PackedSequences, split: str, by_type: bool = False) -> "SourceGroups":
        """Return the groups of the training sequences (split "train") or of the held-out ones ("held_out")."""
        found: dict[str, list[tuple[int, int]]] = {}
        for source in packed.sources:
            first, last = source[split]
            found.setdefault(str(source["type"]) if by_type else source["name"], []).append((first, last))
        return cls(list(found), list(found.values()), by_type)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of sequences of each group."""
        return {
            name: sum(last - first for first, last in ranges)
            for name, ranges in zip(self.names, self.ranges, strict=True)
        }

    def sequence_index(self, group: int, index: int) -> int:
        """Return the index of a sequence among all packed sequences. index: its index within the group."""
        for first, last in self.ranges[group]:
            if index < last - first:
                return first + index
            index -= last - first
        raise IndexError(f"source {self.names[group]} has no sequence with this index")


class TrainingSequences(torch.utils.data.Dataset[PackedSequence]):
    """Training dataset: item i is the sequence at global index i of the order. length: number of items in the run."""

    def __init__(
        self, corpus: Corpus, packed: PackedSequences, groups: SourceGroups, order: SequenceOrder, length: int
    ) -> None:
        self.corpus, self.packed, self.groups = corpus, packed, groups
        self.order, self.length = order, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> PackedSequence:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[PackedSequence]:
        """Return several items; PyTorch's data loader calls it for all items of a batch."""
        groups, within_group = self.order.locate(np.asarray(indices, dtype=np.int64))
        return [
            _read_sequence(self.corpus, self.packed, self.groups.sequence_index(group, index), group)
            for group, index in zip(groups.tolist(), within_group.tolist(), strict=True)
        ]


class HeldOutSequences(torch.utils.data.Dataset[PackedSequence]):
    """Evaluation dataset: the held-out sequences, group by group."""

    def __init__(self, corpus: Corpus, packed: PackedSequences, groups: SourceGroups) -> None:
        self.corpus, self.packed = corpus, packed
        self.indices = [
            (index, group)
            for group, ranges in enumerate(groups.ranges)
            for first, last in ranges
            for index in range(first, last)
        ]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> PackedSequence:
        return _read_sequence(self.corpus, self.packed, *self.indices[number])


def _read_sequence(corpus: Corpus, packed: PackedSequences, index: int, group: int) -> PackedSequence:
    return PackedSequence([corpus[sample] for sample in packed[index]], group)


@dataclass(frozen=True)
class RankBatchSampler:
    """Batch sampler of one rank: yields micro batches as lists of global sequence indices.

    From `first` on, the indices are divided into groups of `ranks` micro batches; rank r takes the r-th of each group.
    """

    first: int  # the global index at which the run starts or resumes
    count: int  # micro batches of this rank
    micro_batch: int  # sequences of a micro batch
    rank: int
    ranks: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.count):
            begin = self.first + (number * self.ranks + self.rank) * self.micro_batch
            yield list(range(begin, begin + self.micro_batch))


@dataclass(frozen=True)
class Collator:
    """Makes a batch of sequences: input_ids and labels, (sequences, tokens) int64, and sources, (sequences,) int64.

    Packed batches also have position_ids, (sequences, tokens) int64, and segments: the samples and the padding of each
    sequence. Other batches have attention_mask, (sequences, tokens) int64, and are padded to their longest sample.
    """

    block_size: int  # tokens of a packed sequence
    pad_id: int  # id of padding, which has no label; a token of a sample that has this id keeps its label
    packed: bool = True

    def __call__(self, sequences: list[PackedSequence]) -> dict[str, Any]:
        lengths = [[len(sample) for sample in sequence.samples] for sequence in sequences]
        width = self.block_size if self.packed else max(map(sum, lengths))
        input_ids = np.full((len(sequences), width), self.pad_id, dtype=np.int64)
        labels = np.full((len(sequences), width), IGNORED, dtype=np.int64)
        positions = np.empty((len(sequences), width), dtype=np.int64)
        for number, sequence in enumerate(sequences):
            at = 0
            for sample in sequence.samples:
                end = at + len(sample)
                input_ids[number, at:end] = sample
                labels[number, at + 1 : end] = sample[1:]
                positions[number, at:end] = np.arange(end - at)
                at = end
            positions[number, at:] = np.arange(width - at)
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels),
            "sources": torch.tensor([sequence.group for sequence in sequences]),
        }  # fmt: skip
        if not self.packed:
            filled = torch.tensor([[sum(each)] for each in lengths])
            return batch | {"attention_mask": (torch.arange(width) < filled).long()}
        segments = [[*each, width - sum(each)] if sum(each) < width else each for each in lengths]
        batch["segments"] = [[Segment(length) for length in each] for each in segments]
        return batch | {"position_ids": torch.from_numpy(positions)}
