"""A step's rows to micro batches: packed without padding where attention keeps rows apart, else padded rectangles.

A step learns from the same rows either way, and its loss is the mean over their supervised tokens; how they are laid
out changes its speed alone. Packed, rows stand one after another in a single line: best-fit decreasing (Johnson 1973)
says how few lines of `capacity` tokens hold them, then they are spread evenly over that many. Positions restart with
every row, and there is no mask. What rows begin with in common may stand there once (shared_prefixes.py). The output
matrix is applied only where a token is foretold that has a label.

instruction_trainer.py takes its batches from here.
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

    packed: one line of rows each, or padded rectangles. shared: what rows of a line begin with in common stands there
    once. micro: rows of a rectangle. capacity: tokens of a line. supervised_head: let the output matrix see only
    positions that foretell a label. pad_id: any id, since padding is known by length. multiple: of which widths are
    made up, for GPUs' sake.
    """

    packed: bool
    micro: int
    capacity: int
    pad_id: int
    shared: bool = False
    supervised_head: bool = True
    multiple: int = 1

    def divide(self, rows: Rows, members: np.ndarray, ranks: int) -> list[list[list[Family]]]:
        """For each rank its micro batches of these rows; every rank has as many, the last may be empty."""
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
        """The tensors of a micro batch; of an empty one those of the row `filler`, of which nothing counts.

        input_ids (lines, width); packed: position_ids (1, width) and segments, else attention_mask (lines, width);
        keep (kept,): the columns whose logits are wanted; targets (lines, kept): the ids foretold there or IGNORED;
        sources (lines, kept).
        """
        build = self._line if self.packed else self._rectangle
        batch, labels, sources = build(rows, line or [Family([filler], 0)])
        if not line:
            labels[:] = IGNORED
        foretold = np.full_like(labels, IGNORED)
        foretold[:, :-1] = labels[:, 1:]
        keep = (foretold != IGNORED).any(0).nonzero()[0] if self.supervised_head else np.arange(labels.shape[1])
        if not len(keep):
            keep = np.zeros(1, np.int64)
        tensors = {"keep": keep, "targets": foretold[:, keep], "sources": sources[:, keep]}
        return batch | {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()}

    def _line(self, rows: Rows, line: Sequence[Family]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Inputs, labels and sources of one line; a segment is a shared prefix, the rest of a row, or a whole row."""
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
        """Inputs, labels and sources, a row a line."""
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
    """A row's labels, (tokens,) int64; its first token has none, since nothing of its own stands before it."""
    labels = np.full(len(ids), IGNORED, np.int64)
    for first, last in spans.tolist():
        labels[max(first, 1) : last] = ids[max(first, 1) : last]
    return labels


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
    mine = layout.divide(rows, members, ranks)[rank]
    return {
        "micro_batches": [layout.batch(rows, line, int(members[0])) for line in mine],
        "items": int(rows.supervised[members].sum()),
        "tokens": int(rows.lengths[members].sum()),
    }
