"""example_order.py: held-out examples, proportions, and an order that depends only on seed and epoch."""

import pickle

import numpy as np
import pytest
from example_packing.example_order import EpochOrder, epoch_sizes, held_out_indices, parse_mix


def order(sizes: list[int], per_epoch: list[int], shuffle: bool = True, seed: int = 5) -> EpochOrder:
    starts = np.cumsum([0, *sizes])
    by_source = [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=False)]
    return EpochOrder(by_source, per_epoch, 8, seed, shuffle)


@pytest.mark.parametrize("shuffle", [True, False])
def test_epoch_has_every_example_once(shuffle: bool) -> None:
    made = order([1000, 3], [1000, 3], shuffle)
    for epoch in range(2):
        assert sorted(made.epoch(epoch).tolist()) == list(range(1003))
    assert (made.epoch(0).tolist() == made.epoch(1).tolist()) != shuffle
    # The last step of an epoch is shorter.
    assert [len(made.step(number)) for number in (0, made.steps - 1, made.steps)] == [8, 3, 8]
    assert np.concatenate([made.step(number) for number in range(made.steps)]).tolist() == made.epoch(0).tolist()


def test_order_depends_only_on_seed_and_epoch() -> None:
    one, other = order([50, 20], [50, 40]), pickle.loads(pickle.dumps(order([50, 20], [50, 40])))
    assert one.step(30).tolist() == other.step(30).tolist()
    assert order([50, 20], [50, 40], seed=6).step(0).tolist() != one.step(0).tolist()


def test_mix_keeps_proportions_and_repeats_examples_evenly() -> None:
    assert epoch_sizes({"zh": 100, "en": 300}, {"zh": 2, "en": 1}) == {"zh": 600, "en": 300}
    assert epoch_sizes({"zh": 100, "en": 30}, {"zh": 1, "en": 1}) == {"zh": 100, "en": 100}
    made = order([10, 40], [25, 40])
    seen = np.concatenate([made.epoch(epoch) for epoch in range(2)])
    counts = np.bincount(seen)
    assert counts[:10].tolist() == [5] * 10  # 2 x 25 examples are five passes over ten
    assert counts[10:].tolist() == [2] * 40
    first = made.epoch(0)
    assert set(np.bincount(first[first < 10]).tolist()) == {2, 3}


def test_held_out_examples_are_proportional_and_reproducible() -> None:
    sources = np.repeat([0, 1], [90, 10])
    held_out = held_out_indices(sources, 0.1, seed=3)
    assert np.bincount(sources[held_out]).tolist() == [9, 1]
    assert held_out_indices(sources, 20, seed=3).tolist() == held_out_indices(sources, 20, seed=3).tolist()
    assert len(held_out_indices(sources, 0, seed=3)) == 0
    with pytest.raises(ValueError, match="2000 leaves no training example of 100"):
        held_out_indices(sources, 2000, seed=3)
    with pytest.raises(ValueError, match=r"--val_set_size 0\.01 holds out no example of 24; give a number of examples"):
        held_out_indices(sources[:24], 0.01, seed=3)


@pytest.mark.parametrize("text", ["zh=2", "zh=2,fr=1,en=1", "zh=2,en=0", "zh=2,en", "zh=2,en=nan"])
def test_mix_must_give_every_source_a_positive_number(text: str) -> None:
    assert parse_mix("zh=2, en=0.5", ["en", "zh"]) == {"zh": 2.0, "en": 0.5}
    with pytest.raises(ValueError, match="--mix"):
        parse_mix(text, ["en", "zh"])
