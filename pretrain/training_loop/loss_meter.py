"""Losses by source, summed on the device and over the ranks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from rank_group.ranks import sum_over_ranks


class MeanLosses(NamedTuple):
    """Mean losses per token, in total and for each source with at least one label. tokens: the number of labels."""

    mean: float
    by_source: dict[str, float]
    tokens: int


class LossMeter:
    """Sums of losses and label counts by source, kept on the device until `take` reads them."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = names
        self.sums = torch.zeros(2, len(names), dtype=torch.float64, device=device)

    def add(
        self, losses: torch.Tensor, tokens: torch.Tensor, sources: torch.Tensor, weight: float | torch.Tensor = 1.0
    ) -> None:
        """Add losses; losses, tokens and sources have the same shape, with one element per token or per sequence.

        losses: loss sums. tokens: label counts. sources: int64, indices into `names`. weight: 0 for a batch that must
        not count.
        """
        values = torch.stack([losses.detach().double().flatten(), tokens.double().flatten()]) * weight
        self.sums.index_add_(1, sources.flatten(), values)

    def tokens(self) -> int:
        """Return the number of labels of all ranks since the last `take`; all ranks call it."""
        return round(sum_over_ranks(self.sums[1].clone()).sum().item())

    def take(self) -> MeanLosses:
        """Return the mean losses of all ranks since the last call, and reset the meter; all ranks call it."""
        losses, counts = sum_over_ranks(self.sums.clone()).tolist()
        self.sums.zero_()
        means = {name: loss / count for name, loss, count in zip(self.names, losses, counts, strict=True) if count}
        return MeanLosses(sum(losses) / max(1, sum(counts)), means, round(sum(counts)))
