"""A step's rows to micro batches: packed without padding where attention keeps rows apart, else padded rectangles.

A step learns from the same rows either way, and its loss is the mean over their supervised tokens; how they are laid
out changes its speed alone. Packed, rows stand one after another in a single line: best-fit decreasing (Johnson 1973)
says how few lines of `capacity` tokens hold them, then they are spread evenly over that many. Positions restart with
every row, and there is no mask. The output matrix is applied only where a token is foretold that has a label.

Not a script: instruction_trainer.py takes its batches from here.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from row_order import Order, Rows
from torch.utils.data import Dataset

IGNORED = -100  # the label that torch's cross entropy leaves out


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in bins of at most `capacity`, the longest first, each where it leaves the least room."""
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
    """For each rank its micro batches, as indices of `lengths`: as many for all, of at most `capacity` tokens."""
    tight = best_fit_decreasing(lengths, capacity)
    each = -(-len(tight) // ranks)
    even = spread(lengths, each * ranks)
    if max(sum(lengths[index] for index in members) for members in even) > capacity:
        even = tight + [[] for _ in range(each * ranks - len(tight))]
    return [even[rank::ranks] for rank in range(ranks)]


def rectangles(lengths: Sequence[int], micro: int, ranks: int) -> list[list[list[int]]]:
    """For each rank its micro batches of at most `micro` rows, rows of similar length together."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    cut = [order[at : at + micro] for at in range(0, len(order), micro)]
    cut += [[] for _ in range(-len(cut) % ranks)]
    return [cut[rank::ranks] for rank in range(ranks)]


@dataclass
class Layout:
    """How rows become micro batches.

    packed: one line of rows each, or padded rectangles. micro: rows of a rectangle. capacity: tokens of a line.
    supervised_head: let the output matrix see only positions that foretell a label. pad_id: any id, since padding is
    known by length. multiple: of which widths are made up, for GPUs' sake.
    """

    packed: bool
    micro: int
    capacity: int
    pad_id: int
    supervised_head: bool = True
    multiple: int = 1

    def divide(self, lengths: Sequence[int], ranks: int) -> list[list[list[int]]]:
        """For each rank its micro batches, as indices of `lengths`; every rank has as many, the last may be empty."""
        return pack(lengths, self.capacity, ranks) if self.packed else rectangles(lengths, self.micro, ranks)

    def batch(self, rows: Rows, members: Sequence[int], filler: int) -> dict[str, Any]:
        """The tensors of a micro batch; without members those of the row `filler`, of which nothing counts.

        input_ids (lines, width); packed: position_ids (1, width) and row_lengths, else attention_mask (lines, width);
        keep (kept,): the columns whose logits are wanted; targets (lines, kept): the ids foretold there or IGNORED;
        sources (lines, kept).
        """
        taken = [rows[row] for row in members or [filler]]
        numbers = rows.sources[list(members or [filler])]
        build = self._line if self.packed else self._rectangle
        batch, labels = build([ids for ids, _ in taken], [spans for _, spans in taken])
        if not members:
            labels[:] = IGNORED
        foretold = np.full_like(labels, IGNORED)
        foretold[:, :-1] = labels[:, 1:]
        keep = (foretold != IGNORED).any(0).nonzero()[0] if self.supervised_head else np.arange(labels.shape[1])
        if not len(keep):
            keep = np.zeros(1, np.int64)
        if self.packed:
            of_column = np.repeat(numbers, batch["row_lengths"][: len(numbers)])
            sources = np.append(of_column, np.zeros(labels.shape[1] - len(of_column), np.int64))[None, keep]
        else:
            sources = np.repeat(numbers[:, None], len(keep), 1)
        tensors = {"keep": keep, "targets": foretold[:, keep], "sources": sources}
        return batch | {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()}

    def _line(self, ids: list[np.ndarray], spans: list[np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
        lengths = [len(row) for row in ids]
        padding = -sum(lengths) % self.multiple  # a last row of its own
        lengths += [padding] if padding else []
        starts = np.cumsum([0, *lengths])
        line = np.full((1, starts[-1]), self.pad_id, np.int64)
        labels = np.full_like(line, IGNORED)
        for start, row, supervised in zip(starts, ids, spans, strict=False):
            line[0, start : start + len(row)] = row
            for first, last in supervised.tolist():
                labels[0, start + max(first, 1) : start + last] = row[max(first, 1) : last]
        positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        tensors = {"input_ids": torch.from_numpy(line), "position_ids": torch.from_numpy(positions[None])}
        return tensors | {"row_lengths": lengths}, labels

    def _rectangle(self, ids: list[np.ndarray], spans: list[np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
        width = -(-max(map(len, ids)) // self.multiple) * self.multiple
        lines = np.full((len(ids), width), self.pad_id, np.int64)
        mask = np.zeros_like(lines)
        labels = np.full_like(lines, IGNORED)
        for index, (row, supervised) in enumerate(zip(ids, spans, strict=True)):
            lines[index, : len(row)] = row
            mask[index, : len(row)] = 1
            for first, last in supervised.tolist():
                labels[index, max(first, 1) : last] = row[max(first, 1) : last]
        return {"input_ids": torch.from_numpy(lines), "attention_mask": torch.from_numpy(mask)}, labels


class Steps(Dataset[dict[str, Any]]):
    """Item n is what this rank does in step n: {"micro_batches", "items", "tokens"}.

    items: supervised tokens of the step on all ranks, tokens: all of them; no rank needs to ask another.
    """

    def __init__(self, rows: Rows, order: Order, layout: Layout, rank: int, ranks: int) -> None:
        self.rows, self.order, self.layout, self.rank, self.ranks = rows, order, layout, rank, ranks

    def __getitem__(self, number: int) -> dict[str, Any]:
        return share(self.rows, self.order.step(number), self.layout, self.rank, self.ranks)


def share(rows: Rows, members: np.ndarray, layout: Layout, rank: int, ranks: int) -> dict[str, Any]:
    """A rank's micro batches of these rows, and the tokens of all ranks."""
    lengths = rows.lengths[members].tolist()
    mine = layout.divide(lengths, ranks)[rank]
    return {
        "micro_batches": [layout.batch(rows, members[index].tolist(), int(members[0])) for index in mine],
        "items": int(rows.supervised[members].sum()),
        "tokens": sum(lengths),
    }
