"""Build the micro batches of a step: packed sequences if attention keeps examples apart, else padded batches.

The layout changes the speed of a step only, not its examples or its loss, which is the mean over their supervised
tokens. A packed sequence holds examples one after another, without padding or mask, with positions that restart.
Best-fit decreasing (Johnson 1973) finds how few sequences of `capacity` tokens are enough; the examples are then
distributed evenly over that number, so that ranks take equally long. Common first tokens may be computed once
(shared_prefixes.py).
The output matrix is applied only at positions whose next token has a label: it has 2 % of LLaMA-2 7B's weights and a
quarter of Qwen2.5-0.5B's, and the logits are the largest tensor of a step.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from packed_attention.segment_attention import Segment
from torch.utils.data import Dataset

from example_packing.example_order import EpochOrder, ExampleSources
from example_packing.shared_prefixes import PrefixGroup, group_by_prefix, pack_groups

IGNORED = -100  # the label that torch's cross entropy ignores


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return bins of indices, of at most `capacity` each: longest first, each into the fullest bin with room."""
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        at = bisect_left(rooms, (length, -1))
        room, chosen = rooms.pop(at) if at < len(rooms) else (capacity, len(bins))
        if chosen == len(bins):
            bins.append([])
        bins[chosen].append(index)
        insort(rooms, (room - length, chosen))
    return bins


def balanced_bins(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Return `count` bins of indices of about equal sums: longest first, each into the emptiest bin (LPT)."""
    bins: list[list[int]] = [[] for _ in range(count)]
    sums = [(0, number) for number in range(count)]
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        total, number = sums[0]
        heapq.heapreplace(sums, (total + lengths[index], number))
        bins[number].append(index)
    return bins


def pack(lengths: Sequence[int], capacity: int, ranks: int) -> list[list[list[int]]]:
    """Return the packed sequences of each rank, as indices: equally many, of at most `capacity` tokens each."""
    tight = best_fit_decreasing(lengths, capacity)
    each = -(-len(tight) // ranks)
    even = balanced_bins(lengths, each * ranks)
    if max(sum(lengths[index] for index in members) for members in even) > capacity:
        even = tight + [[] for _ in range(each * ranks - len(tight))]
    return [even[rank::ranks] for rank in range(ranks)]


def group_by_length(lengths: Sequence[int], micro_batch_size: int, ranks: int) -> list[list[list[int]]]:
    """Return the padded micro batches of each rank, as indices: equally many, of examples of similar lengths."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    cut = [order[at : at + micro_batch_size] for at in range(0, len(order), micro_batch_size)]
    cut += [[] for _ in range(-len(cut) % ranks)]
    return [cut[rank::ranks] for rank in range(ranks)]


@dataclass
class BatchLayout:
    """How the examples of a step become micro batches.

    packed: packed sequences instead of padded batches. micro_batch_size: examples of a padded batch. capacity: maximum
    tokens of a packed sequence. share_prefixes: compute common first tokens in a packed sequence once. supervised_head:
    apply the output matrix only where the next token has a label. pad_id: any token id (attention ignores padding).
    multiple: widths are rounded up to a multiple of this number, for GPUs.
    """

    packed: bool
    micro_batch_size: int
    capacity: int
    pad_id: int
    share_prefixes: bool = False
    supervised_head: bool = True
    multiple: int = 1

    def divide(self, examples: ExampleSources, members: np.ndarray, ranks: int) -> list[list[list[PrefixGroup]]]:
        """Return the micro batches of each rank for the examples `members`; equally many, the last may be empty."""
        lengths = examples.lengths[members].tolist()
        if self.packed and self.share_prefixes:
            taken = [examples[index] for index in members.tolist()]
            # The token before an answer predicts the answer's first token, so it is not shared.
            limits = [max(0, int(spans[0, 0]) - 1) for _, spans in taken]
            sequences = pack_groups(group_by_prefix([ids for ids, _ in taken], limits), lengths, self.capacity, ranks)
            shares = [sequences[rank::ranks] for rank in range(ranks)]
        elif self.packed:
            shares = [_without_prefixes(share) for share in pack(lengths, self.capacity, ranks)]
        else:
            shares = [_without_prefixes(share) for share in group_by_length(lengths, self.micro_batch_size, ranks)]
        return [
            [[PrefixGroup(members[group].tolist(), prefix) for group, prefix in micro] for micro in share]
            for share in shares
        ]

    def tensors(self, examples: ExampleSources, micro: Sequence[PrefixGroup], filler: int) -> dict[str, Any]:
        """Return the tensors of a micro batch; if it is empty, those of the example `filler` without labels.

        input_ids (sequences, width); packed: position_ids (1, width) and segments, else attention_mask (sequences,
        width); keep (kept,): columns whose logits are computed; targets (sequences, kept): the next ids or IGNORED;
        sources (sequences, kept).
        """
        build = self._packed_sequence if self.packed else self._padded_batch
        inputs, labels, sources = build(examples, micro or [PrefixGroup([filler], 0)])
        if not micro:
            labels[:] = IGNORED
        next_labels = np.full_like(labels, IGNORED)
        next_labels[:, :-1] = labels[:, 1:]
        keep = (next_labels != IGNORED).any(0).nonzero()[0] if self.supervised_head else np.arange(labels.shape[1])
        if not len(keep):
            keep = np.zeros(1, np.int64)
        outputs = {"keep": keep, "targets": next_labels[:, keep], "sources": sources[:, keep]}
        return inputs | {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in outputs.items()}

    def _packed_sequence(
        self, examples: ExampleSources, micro: Sequence[PrefixGroup]
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Return inputs, labels and sources. Segments: shared prefixes, remainders of examples, whole examples."""
        segments: list[Segment] = []
        parts: list[tuple[np.ndarray, np.ndarray, int, int]] = []  # ids, labels, first position, source
        for members, prefix in micro:
            if prefix:
                shared, _ = examples[members[0]]
                segments.append(Segment(prefix, None))
                parts.append((shared[:prefix], np.full(prefix, IGNORED), 0, 0))
            parent = len(segments) - 1 if prefix else None
            for index in members:
                ids, spans = examples[index]
                segments.append(Segment(len(ids) - prefix, parent))
                parts.append((ids[prefix:], labels_of(ids, spans)[prefix:], prefix, int(examples.sources[index])))
        padding = -sum(segment.length for segment in segments) % self.multiple
        if padding:
            segments.append(Segment(padding, None))
            parts.append((np.full(padding, self.pad_id), np.full(padding, IGNORED), 0, 0))
        columns = {
            "input_ids": np.concatenate([ids for ids, *_ in parts]),
            "position_ids": np.concatenate([np.arange(start, start + len(ids)) for ids, _, start, _ in parts]),
        }
        labels = np.concatenate([labels for _, labels, *_ in parts])
        sources = np.concatenate([np.full(len(ids), source) for ids, *_, source in parts])
        inputs = {key: torch.from_numpy(value.astype(np.int64)[None]) for key, value in columns.items()}
        return inputs | {"segments": segments}, labels[None], sources[None]

    def _padded_batch(
        self, examples: ExampleSources, micro: Sequence[PrefixGroup]
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Return inputs, labels and sources of a batch padded on the right."""
        members = [index for group in micro for index in group.members]
        taken = [examples[index] for index in members]
        width = -(-max(len(ids) for ids, _ in taken) // self.multiple) * self.multiple
        input_ids = np.full((len(taken), width), self.pad_id, np.int64)
        mask, labels = np.zeros_like(input_ids), np.full_like(input_ids, IGNORED)
        for place, (ids, spans) in enumerate(taken):
            input_ids[place, : len(ids)] = ids
            mask[place, : len(ids)] = 1
            labels[place, : len(ids)] = labels_of(ids, spans)
        inputs = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
        return inputs, labels, np.repeat(examples.sources[members][:, None], width, 1)


def _without_prefixes(share: list[list[int]]) -> list[list[PrefixGroup]]:
    return [[PrefixGroup([index], 0) for index in members] for members in share]


def labels_of(ids: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Return the labels of an example, (tokens,) int64; the first token has none, since no token predicts it."""
    labels = np.full(len(ids), IGNORED, np.int64)
    for first, last in spans.tolist():
        labels[max(first, 1) : last] = ids[max(first, 1) : last]
    return labels


class StepDataset(Dataset[dict[str, Any]]):
    """Item n is this rank's share of step n; see `rank_share`. Ranks do not communicate."""

    def __init__(self, examples: ExampleSources, order: EpochOrder, layout: BatchLayout, rank: int, ranks: int) -> None:
        self.examples, self.order, self.layout, self.rank, self.ranks = examples, order, layout, rank, ranks

    def __getitem__(self, number: int) -> dict[str, Any]:
        return rank_share(self.examples, self.order.step(number), self.layout, self.rank, self.ranks)


def rank_share(
    examples: ExampleSources, members: np.ndarray, layout: BatchLayout, rank: int, ranks: int
) -> dict[str, Any]:
    """Return a rank's "micro_batches" of the examples, and "supervised" and "tokens", counted over all ranks."""
    mine = layout.divide(examples, members, ranks)[rank]
    return {
        "micro_batches": [layout.tensors(examples, micro, int(members[0])) for micro in mine],
        "supervised": int(examples.supervised[members].sum()),
        "tokens": int(examples.lengths[members].sum()),
    }
