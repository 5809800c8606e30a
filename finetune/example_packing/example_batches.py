"""Micro batches of a step's rows: packed into lines where attention keeps rows apart, else padded rectangles.

The layout decides the speed of a step only; its rows, and its loss as the mean over their supervised tokens, are the
same. A packed line is rows one after another, without padding or mask, with positions that restart: best-fit decreasing
(Johnson 1973) finds how few lines of `capacity` tokens are enough, then rows are spread evenly over that number of
lines, so that ranks take equally long. Common first tokens of rows may be computed once (shared_prefixes.py). The
output matrix is applied only at positions whose next token has a label: it has 2 % of LLaMA-2 7B's weights and a
quarter of Qwen2.5-0.5B's, and logits are the largest tensor of a step.
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

from example_packing.example_order import Order, Rows
from example_packing.shared_prefixes import Family, families, lines

IGNORED = -100  # the label that torch's cross entropy leaves out


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in bins of at most `capacity`: longest first, each into the fullest bin with room."""
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


def spread(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Indices of `lengths` in `count` bins of about equal sums: the longest first, each into the emptiest (LPT)."""
    bins: list[list[int]] = [[] for _ in range(count)]
    sums = [(0, number) for number in range(count)]
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        total, number = sums[0]
        heapq.heapreplace(sums, (total + lengths[index], number))
        bins[number].append(index)
    return bins


def pack(lengths: Sequence[int], capacity: int, ranks: int) -> list[list[list[int]]]:
    """The micro batches of each rank, indices of `lengths`: equally many, of at most `capacity` tokens each."""
    tight = best_fit_decreasing(lengths, capacity)
    each = -(-len(tight) // ranks)
    even = spread(lengths, each * ranks)
    if max(sum(lengths[index] for index in members) for members in even) > capacity:
        even = tight + [[] for _ in range(each * ranks - len(tight))]
    return [even[rank::ranks] for rank in range(ranks)]


def rectangles(lengths: Sequence[int], micro: int, ranks: int) -> list[list[list[int]]]:
    """The micro batches of each rank, at most `micro` rows of similar length each."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    cut = [order[at : at + micro] for at in range(0, len(order), micro)]
    cut += [[] for _ in range(-len(cut) % ranks)]
    return [cut[rank::ranks] for rank in range(ranks)]


@dataclass
class Layout:
    """How rows become micro batches.

    packed: lines, or padded rectangles. shared: common first tokens of a line's rows are computed once. micro: rows of
    a rectangle. capacity: tokens of a line. supervised_head: apply the output matrix only where the next token has a
    label. pad_id: any id, since padding is known by length. multiple: widths are rounded up to it, for GPUs.
    """

    packed: bool
    micro: int
    capacity: int
    pad_id: int
    shared: bool = False
    supervised_head: bool = True
    multiple: int = 1

    def divide(self, rows: Rows, members: np.ndarray, ranks: int) -> list[list[list[Family]]]:
        """The micro batches of each rank from these rows; equally many for all ranks, the last may be empty."""
        lengths = rows.lengths[members].tolist()
        if self.packed and self.shared:
            taken = [rows[row] for row in members.tolist()]
            limits = [max(0, int(spans[0, 0]) - 1) for _, spans in taken]  # the token before an answer foretells it
            filled = lines(families([ids for ids, _ in taken], limits), lengths, self.capacity, ranks)
            shares = [filled[rank::ranks] for rank in range(ranks)]
        else:
            divided = pack(lengths, self.capacity, ranks) if self.packed else rectangles(lengths, self.micro, ranks)
            shares = [[[Family([row], 0) for row in line] for line in mine] for mine in divided]
        return [[[Family(members[rows].tolist(), prefix) for rows, prefix in line] for line in mine] for mine in shares]

    def batch(self, rows: Rows, line: Sequence[Family], filler: int) -> dict[str, Any]:
        """The tensors of a micro batch; an empty one has the row `filler` without labels, to keep ranks in step.

        input_ids (lines, width); packed: position_ids (1, width) and segments, else attention_mask (lines, width);
        keep (kept,): the columns whose logits are computed; targets (lines, kept): the next id there, or IGNORED;
        sources (lines, kept).
        """
        build = self._line if self.packed else self._rectangle
        batch, labels, sources = build(rows, line or [Family([filler], 0)])
        if not line:
            labels[:] = IGNORED
        next_labels = np.full_like(labels, IGNORED)
        next_labels[:, :-1] = labels[:, 1:]
        keep = (next_labels != IGNORED).any(0).nonzero()[0] if self.supervised_head else np.arange(labels.shape[1])
        if not len(keep):
            keep = np.zeros(1, np.int64)
        tensors = {"keep": keep, "targets": next_labels[:, keep], "sources": sources[:, keep]}
        return batch | {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()}

    def _line(self, rows: Rows, line: Sequence[Family]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Inputs, labels and sources of a line; a segment is a shared prefix, the rest of a row, or a whole row."""
        segments: list[Segment] = []
        parts: list[tuple[np.ndarray, np.ndarray, int, int]] = []  # ids, labels, first position, source
        for members, prefix in line:
            if prefix:
                shared, _ = rows[members[0]]
                segments.append(Segment(prefix, None))
                parts.append((shared[:prefix], np.full(prefix, IGNORED), 0, 0))
            parent = len(segments) - 1 if prefix else None
            for row in members:
                ids, spans = rows[row]
                segments.append(Segment(len(ids) - prefix, parent))
                parts.append((ids[prefix:], labels_of(ids, spans)[prefix:], prefix, int(rows.sources[row])))
        padding = -sum(segment.length for segment in segments) % self.multiple
        if padding:
            segments.append(Segment(padding, None))
            parts.append((np.full(padding, self.pad_id), np.full(padding, IGNORED), 0, 0))
        tensors = {
            "input_ids": np.concatenate([ids for ids, *_ in parts]),
            "position_ids": np.concatenate([np.arange(start, start + len(ids)) for ids, _, start, _ in parts]),
        }
        labels = np.concatenate([labels for _, labels, *_ in parts])
        sources = np.concatenate([np.full(len(ids), source) for ids, *_, source in parts])
        inputs = {key: torch.from_numpy(value.astype(np.int64)[None]) for key, value in tensors.items()}
        return inputs | {"segments": segments}, labels[None], sources[None]

    def _rectangle(self, rows: Rows, line: Sequence[Family]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Inputs, labels and sources of a padded rectangle."""
        members = [row for family in line for row in family.members]
        taken = [rows[row] for row in members]
        width = -(-max(len(ids) for ids, _ in taken) // self.multiple) * self.multiple
        table = np.full((len(taken), width), self.pad_id, np.int64)
        mask, labels = np.zeros_like(table), np.full_like(table, IGNORED)
        for index, (ids, spans) in enumerate(taken):
            table[index, : len(ids)] = ids
            mask[index, : len(ids)] = 1
            labels[index, : len(ids)] = labels_of(ids, spans)
        inputs = {"input_ids": torch.from_numpy(table), "attention_mask": torch.from_numpy(mask)}
        return inputs, labels, np.repeat(rows.sources[members][:, None], width, 1)


def labels_of(ids: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """A row's labels, (tokens,) int64; its first token has none, since no token of the row precedes it."""
    labels = np.full(len(ids), IGNORED, np.int64)
    for first, last in spans.tolist():
        labels[max(first, 1) : last] = ids[max(first, 1) : last]
    return labels


class Steps(Dataset[dict[str, Any]]):
    """Item n is this rank's share of step n: {"micro_batches", "items", "tokens"}.

    items: supervised tokens of the step on all ranks; tokens: all tokens on all ranks. Ranks need not communicate.
    """

    def __init__(self, rows: Rows, order: Order, layout: Layout, rank: int, ranks: int) -> None:
        self.rows, self.order, self.layout, self.rank, self.ranks = rows, order, layout, rank, ranks

    def __getitem__(self, number: int) -> dict[str, Any]:
        return share(self.rows, self.order.step(number), self.layout, self.rank, self.ranks)


def share(rows: Rows, members: np.ndarray, layout: Layout, rank: int, ranks: int) -> dict[str, Any]:
    """A rank's micro batches of these rows, and the tokens of all ranks."""
    mine = layout.divide(rows, members, ranks)[rank]
    return {
        "micro_batches": [layout.batch(rows, line, int(members[0])) for line in mine],
        "items": int(rows.supervised[members].sum()),
        "tokens": int(rows.lengths[members].sum()),
    }
