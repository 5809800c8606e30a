"""Choose the examples of each step: held-out examples, proportions of sources, order within an epoch.

Examples are numbered over all sources, one source after another. The order depends only on the seed and the number of
the epoch, so a run can resume at any step without reading the data of earlier steps.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from instruction_data.tokenized_examples import CachedExamples


class ExampleSources:
    """The examples of several sources, numbered one source after another.

    Attributes:
        lengths, supervised: (examples,) int64, tokens of each example, and tokens with a label.
        sources: (examples,) int64, index of the source of each example.
    """

    def __init__(self, parts: Sequence[CachedExamples]) -> None:
        self.parts = list(parts)
        self.names = [part.name for part in parts]
        sizes = [len(part) for part in parts]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.supervised = np.concatenate([part.supervised for part in parts])
        self.sources = np.repeat(np.arange(len(parts)), sizes)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (tokens,) and supervised spans (spans, 2) of an example."""
        source = self.sources[index]
        return self.parts[source][int(index - self.offsets[source])]


def held_out_indices(sources: np.ndarray, size: float, seed: int) -> np.ndarray:
    """Return the sorted indices of the held-out examples, drawn from each source in proportion to its size.

    sources: (examples,), the source of each example. size: a number of examples, or a fraction below 1. Raises
    ValueError if no example would remain for training, or if a size above 0 holds out no example.
    """
    total = len(sources)
    count = round(size * total) if 0 < size < 1 else int(size)
    if size and not count:
        raise ValueError(
            f"--val_set_size {size:g} holds out no example of {total}; give a number of examples, or a larger fraction"
        )
    if count >= total > 0:
        raise ValueError(
            f"--val_set_size {size:g} leaves no training example of {total}; give a smaller number, or a fraction (0.1)"
        )
    shuffled = np.random.default_rng([seed, 1]).permutation(total)
    position = np.empty(total)  # of an example within its shuffled source, 0 to 1
    for source in np.unique(sources):
        members = shuffled[sources[shuffled] == source]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(np.argsort(position, kind="stable")[:count])


def parse_mix(text: str, names: Sequence[str]) -> dict[str, float]:
    """Parse proportions such as `zh=2,en=1`; raises ValueError unless exactly the sources have a number above 0."""
    weights = {}
    for word in text.split(","):
        name, _, number = word.strip().partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            raise ValueError(f"--mix {text}: {word!r} is not name=number; write, for example, {names[0]}=2") from None
    if set(weights) != set(names) or min(weights.values()) <= 0 or not np.isfinite(list(weights.values())).all():
        raise ValueError(f"--mix {text} must give each source a number above 0; the sources are {', '.join(names)}")
    return weights


def epoch_sizes(sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """Return the examples per epoch of each source: in proportion to `weights`, and no fewer than the source has.

    sizes: the number of examples of each source.
    """
    scale = max(sizes[name] / weights[name] for name in sizes)
    return {name: max(sizes[name], round(scale * weights[name])) for name in sizes}


class EpochOrder:
    """The order of the training examples in each epoch, divided into steps.

    Args:
        by_source: indices of the examples of each source.
        per_epoch: examples of each source in an epoch; a source with fewer examples starts again after its last one.
        batch_size: examples per step.
        shuffle: draw a random order; else the examples keep the order of their files.
    """

    def __init__(
        self, by_source: Sequence[np.ndarray], per_epoch: Sequence[int], batch_size: int, seed: int, shuffle: bool
    ) -> None:
        self.by_source, self.per_epoch, self.batch_size = by_source, per_epoch, batch_size
        self.seed, self.shuffle = seed, shuffle
        self.steps = -(-sum(per_epoch) // batch_size)
        self._cached: dict[int, np.ndarray] = {}  # the most recently used epoch

    def step(self, number: int) -> np.ndarray:
        """Return the example indices of a step; the last step of an epoch may have fewer than batch_size.

        number: index of the step, counted over all epochs.
        """
        epoch, step = divmod(number, self.steps)
        return self.epoch(epoch)[step * self.batch_size : (step + 1) * self.batch_size]

    def epoch(self, number: int) -> np.ndarray:
        """Return the example indices of an epoch, in order."""
        if number not in self._cached:
            # Each source continues where the previous epoch ended.
            parts = [self._source_examples(i, number * count, count) for i, count in enumerate(self.per_epoch)]
            self._cached = {number: self._shuffled(np.concatenate(parts), 2, number)}
        return self._cached[number]

    def _shuffled(self, members: np.ndarray, *key: int) -> np.ndarray:
        return np.random.default_rng([self.seed, *key]).permutation(members) if self.shuffle else members

    def _source_examples(self, source: int, start: int, count: int) -> np.ndarray:
        """Return the indices of `count` examples of a source; start: the number of its examples used before."""
        members = self.by_source[source]
        if not count:
            return members[:0]
        passes = range(start // len(members), -(-(start + count) // len(members)))
        begin = start - passes[0] * len(members)
        ordered = [self._shuffled(members, 3, source, number) for number in passes]
        return np.concatenate(ordered)[begin : begin + count]
