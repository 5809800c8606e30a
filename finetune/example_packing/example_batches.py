"""Build the micro batches of a step: packed sequences if the attention keeps examples apart, else single examples.

The layout affects only the speed of a step. The loss of a step is the mean over the supervised tokens of its examples
in every layout. A packed sequence has examples one after another, without padding between them, and the positions
restart at 0 in each example. Shared prefixes may be computed once (shared_prefixes.py). The output matrix is applied
only at positions whose next token has a label: it has 2 % of LLaMA-2 7B's weights and a quarter of Qwen2.5-0.5B's, and
the logits are the largest tensor of a step.
"""

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


@dataclass
class BatchLayout:
    """Divides the examples of a step into micro batches, and builds the tensors of a micro batch."""

    packed: bool  # several examples per sequence, else one
    capacity: int  # maximum tokens of a packed sequence
    pad_id: int  # any token id
    share_prefixes: bool = False  # compute the shared prefixes in a packed sequence once
    multiple: int = 1  # pad sequences at the end to a multiple of this length; padding has no labels

    def divide(self, examples: ExampleSources, members: np.ndarray, ranks: int) -> list[list[list[PrefixGroup]]]:
        """Divide the examples `members` into micro batches; return the micro batches of each rank as lists of groups.

        All ranks have the same number of micro batches; the last one of a rank may be empty.
        """
        groups = [PrefixGroup(members.tolist(), 0)]
        if self.packed and self.share_prefixes:
            encoded = [examples[index] for index in members.tolist()]
            # The token before an answer predicts the answer's first token, so it is not shared.
            limits = [max(0, int(spans[0, 0]) - 1) for _, spans in encoded]
            runs = group_by_prefix([ids for ids, _ in encoded], limits)
            groups = [PrefixGroup(members[run].tolist(), prefix) for run, prefix in runs]
        sequences = pack_groups(groups, examples.lengths, self.capacity if self.packed else 0, ranks)
        return [sequences[rank::ranks] for rank in range(ranks)]

    def tensors(self, examples: ExampleSources, micro: Sequence[PrefixGroup], filler: int) -> dict[str, Any]:
        """Return the tensors of a micro batch; an empty one has the example `filler`, without labels.

        input_ids, position_ids: (1, tokens). segments: shared prefixes, remainders of examples, whole examples,
        padding. keep: (kept,), the positions whose next token has a label. targets: (1, kept), these labels. sources:
        (1, kept), the source of each label's example. Without any label, keep is [0], and the target is IGNORED.
        """
        segments: list[Segment] = []
        parts: list[tuple[np.ndarray, np.ndarray, int, int]] = []  # ids, labels, first position, source
        for members, prefix in micro or [PrefixGroup([filler], 0)]:
            if prefix:
                shared, _ = examples[members[0]]
                segments.append(Segment(prefix))
                parts.append((shared[:prefix], np.full(prefix, IGNORED), 0, 0))
            parent = len(segments) - 1 if prefix else None
            for index in members:
                ids, spans = examples[index]
                segments.append(Segment(len(ids) - prefix, parent))
                parts.append((ids[prefix:], labels_of(ids, spans)[prefix:], prefix, int(examples.sources[index])))
        padding = -sum(segment.length for segment in segments) % self.multiple
        if padding:
            segments.append(Segment(padding))
            parts.append((np.full(padding, self.pad_id), np.full(padding, IGNORED), 0, 0))
        labels = np.concatenate([labels for _, labels, *_ in parts])
        if not micro:
            labels[:] = IGNORED
        keep = np.flatnonzero(labels[1:] != IGNORED)
        keep = keep if len(keep) else np.zeros(1, np.int64)
        arrays = {
            "input_ids": np.concatenate([ids for ids, *_ in parts]),
            "position_ids": np.concatenate([np.arange(start, start + len(ids)) for ids, _, start, _ in parts]),
            "targets": labels[keep + 1],
            "sources": np.concatenate([np.full(len(ids), source) for ids, *_, source in parts])[keep],
        }
        tensors = {key: torch.from_numpy(value.astype(np.int64)[None]) for key, value in arrays.items()}
        return tensors | {"keep": torch.from_numpy(keep), "segments": segments}


def labels_of(ids: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Return the labels of an example, (tokens,) int64; the first token has none, since no token predicts it."""
    labels = np.full(len(ids), IGNORED, np.int64)
    for first, last in spans.tolist():
        labels[max(first, 1) : last] = ids[max(first, 1) : last]
    return labels


class StepDataset(Dataset[dict[str, Any]]):
    """Item n is this rank's share of step n; see `rank_share`. The ranks need not communicate."""

    def __init__(self, examples: ExampleSources, order: EpochOrder, layout: BatchLayout, rank: int, ranks: int) -> None:
        self.examples, self.order, self.layout, self.rank, self.ranks = examples, order, layout, rank, ranks

    def __getitem__(self, number: int) -> dict[str, Any]:
        return rank_share(self.examples, self.order.step(number), self.layout, self.rank, self.ranks)


def rank_share(
    examples: ExampleSources, members: np.ndarray, layout: BatchLayout, rank: int, ranks: int
) -> dict[str, Any]:
    """Return {"micro_batches", "supervised", "tokens"} of a step: this rank's micro batches, and counts over all ranks.

    members: indices of the examples of all ranks. supervised: tokens with a label.
    """
    mine = layout.divide(examples, members, ranks)[rank]
    return {
        "micro_batches": [layout.tensors(examples, micro, int(members[0])) for micro in mine],
        "supervised": int(examples.supervised[members].sum()),
        "tokens": int(examples.lengths[members].sum()),
    }
