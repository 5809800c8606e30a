"""The rows of each step: held-out rows, proportions of sources, order of an epoch.

Rows are numbered over all sources, one after another. The order depends on seed and number of the epoch only, so a run
resumes at any step without skipping data.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from instruction_data.tokenized_examples import EncodedRows

SORTED_TOGETHER = 50  # steps whose rows are sorted by length among themselves: enough for little padding


class Rows:
    """The rows of several sources under common numbers.

    Attributes:
        lengths, supervised, sources: (rows,) int64, of each row: tokens, tokens with a label, index of its source.
    """

    def __init__(self, parts: Sequence[EncodedRows]) -> None:
        self.parts = list(parts)
        self.names = [part.name for part in parts]
        sizes = [len(part) for part in parts]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.supervised = np.concatenate([part.supervised for part in parts])
        self.sources = np.repeat(np.arange(len(parts)), sizes)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids (tokens,) and supervised spans (spans, 2) of a row."""
        source = self.sources[row]
        return self.parts[source][int(row - self.offsets[source])]


def held_out(sources: np.ndarray, size: float, seed: int) -> np.ndarray:
    """Numbers of the held-out rows, ascending: `size` rows, or a fraction below 1, of every source in proportion.

    sources: (rows,), the source of each row. Raises ValueError where no row would be left to train on.
    """
    total = len(sources)
    count = round(size * total) if 0 < size < 1 else int(size)
    if count >= total > 0:
        raise ValueError(
            f"--val_set_size {size:g} leaves none of {total} rows to train on; give fewer, or a fraction (0.1)"
        )
    draw = np.random.default_rng([seed, 1])
    shuffled = draw.permutation(total)
    rank = np.empty(total)  # of a row among its source's, between 0 and 1
    for source in np.unique(sources):
        mine = shuffled[sources[shuffled] == source]
        rank[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return np.sort(np.argsort(rank, kind="stable")[:count])


def parse_mix(text: str, names: Sequence[str]) -> dict[str, float]:
    """Proportions `zh=2,en=1`; ValueError where they do not name exactly the sources, each with a positive number."""
    weights = {}
    for word in text.split(","):
        name, _, number = word.strip().partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            raise ValueError(f"--mix {text}: {word!r} is not name=number; for example {names[0]}=2") from None
    if set(weights) != set(names) or min(weights.values()) <= 0 or not np.isfinite(list(weights.values())).all():
        raise ValueError(f"--mix {text} must give each source a number above 0; the sources are {', '.join(names)}")
    return weights


def epoch_sizes(sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """Rows of each source in an epoch: in these proportions, and enough that every row is taken at least once."""
    longest = max(sizes[name] / weights[name] for name in sizes)
    return {name: max(sizes[name], round(longest * weights[name])) for name in sizes}


class Order:
    """Epochs of training rows, and their steps.

    rows: numbers of the rows of each source. takes: rows that an epoch takes of each source; a source with fewer rows
    starts again after all were taken. batch: rows of a step. lengths: (all rows,), for the order by length.
    """

    def __init__(
        self,
        rows: Sequence[np.ndarray],
        takes: Sequence[int],
        batch: int,
        seed: int,
        strategy: str,
        lengths: np.ndarray,
    ) -> None:
        self.rows, self.takes, self.batch, self.seed = list(rows), list(takes), batch, seed
        self.strategy, self.lengths = strategy, lengths
        self.size = sum(takes)
        self.steps = -(-self.size // batch)
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def bring_similar_together(self) -> None:
        """Change the strategy to group_by_length."""
        self.strategy = "group_by_length"
        self.epoch.cache_clear()

    def step(self, number: int) -> np.ndarray:
        """The rows of a step, counted over all epochs; an epoch's last step may have fewer."""
        epoch, place = divmod(number, self.steps)
        return self.epoch(epoch)[place * self.batch : (place + 1) * self.batch]

    def _epoch(self, epoch: int) -> np.ndarray:
        """Row numbers of an epoch in their order, (size,)."""
        taken = [
            self._of_source(index, epoch * take, take) for index, take in enumerate(self.takes)
        ]  # each source continues where the epoch before ended
        if self.strategy == "sequential":
            return np.concatenate(taken)
        draw = np.random.default_rng([self.seed, 2, epoch])
        order = draw.permutation(np.concatenate(taken))
        return order if self.strategy == "random" else self._grouped(order, draw)

    def _of_source(self, index: int, start: int, count: int) -> np.ndarray:
        mine = self.rows[index]
        if not count:
            return mine[:0]
        passes = range(start // len(mine), -(-(start + count) // len(mine)))
        ordered = [
            mine if self.strategy == "sequential" else np.random.default_rng([self.seed, 3, index, p]).permutation(mine)
            for p in passes
        ]
        begin = start - passes[0] * len(mine)
        return np.concatenate(ordered)[begin : begin + count]

    def _grouped(self, order: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Steps of rows of similar lengths, in random order, so that lengths do not drift while training."""
        whole = len(order) // self.batch * self.batch
        near = SORTED_TOGETHER * self.batch
        parts = [order[at : min(at + near, whole)] for at in range(0, whole, near)]
        ordered = [part[np.argsort(self.lengths[part], kind="stable")] for part in parts]
        steps = np.concatenate([order[:0], *ordered]).reshape(-1, self.batch)
        return np.concatenate([draw.permutation(steps).ravel(), order[whole:]])
