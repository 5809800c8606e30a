"""sampler.py: sources in proportion, each sequence once per epoch, the same order for any number of ranks."""

import json
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sequence_packing import sampler
from sequence_packing.sampler import SequenceOrder, parse_weights, period_counts, period_table, permute
from sequence_packing.sequence_batches import RankBatchSampler


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any))
@settings(max_examples=200, deadline=None)
def test_every_prefix_of_a_period_is_within_one_sequence_of_the_proportions(counts: list[int]) -> None:
    table = period_table(counts)
    seen = np.cumsum(np.eye(len(counts), dtype=np.int64)[table], axis=0)  # (period, sources)
    wanted = np.arange(1, len(table) + 1)[:, None] * np.array(counts) / sum(counts)
    assert np.abs(seen - wanted).max() < 1
    assert seen[-1].tolist() == counts


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_permutation_has_every_value_once(size: int, key: int) -> None:
    found = permute(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))
    assert np.array_equal(np.sort(found), np.arange(size))


def test_permutations_look_random() -> None:
    """Over 400 keys, the values at every position are uniform, and neighbours are uncorrelated."""
    size, keys = 1000, 400
    places = np.tile(np.arange(size), keys)
    names = np.repeat([sampler.source_key(seed, "x") for seed in range(keys)], size).astype(np.uint64)
    orders = permute(places, np.full(size * keys, size), names).reshape(keys, size)
    tenths = np.array([np.bincount(orders[:, place] // 100, minlength=10) for place in range(size)])
    chi_squared = ((tenths - keys / 10) ** 2 / (keys / 10)).sum(1)
    assert 8 < chi_squared.mean() < 10  # 9 degrees of freedom
    neighbours = [np.corrcoef(order[:-1], order[1:])[0, 1] for order in orders]
    assert abs(np.mean(neighbours)) < 0.01
    assert np.abs(neighbours).max() < 0.2


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5), st.data(), st.integers(0, 3), st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_epoch_of_a_source_has_each_of_its_sequences_once(
    sizes: list[int], data: st.DataObject, seed: int, epochs: int
) -> None:
    weights = data.draw(st.lists(st.integers(1, 20), min_size=len(sizes), max_size=len(sizes)))
    names = [f"s{number}" for number in range(len(sizes))]
    order = SequenceOrder(dict(zip(names, sizes, strict=True)), dict(zip(names, weights, strict=True)), seed)
    sources, places = order.locate(np.arange(200 * epochs))
    for source, size in enumerate(sizes):
        taken = places[sources == source]
        for begin in range(0, len(taken) // size * size, size):
            assert sorted(taken[begin : begin + size]) == list(range(size))
    consumed = order.consumed(200 * epochs)
    assert list(consumed.values()) == np.bincount(sources, minlength=len(sizes)).tolist()


def test_second_epoch_of_a_source_has_another_order() -> None:
    order = SequenceOrder({"a": 50}, {"a": 1}, 0)
    _, places = order.locate(np.arange(100))
    assert places[:50].tolist() != places[50:].tolist()


@given(st.integers(0, 10**9), st.integers(1, 4), st.sampled_from([48, 8, 2, 1]))
@settings(max_examples=60, deadline=None)
def test_order_does_not_depend_on_the_number_of_ranks(first: int, steps: int, micro: int) -> None:
    """Steps of 48 sequences have the same order on 1, 2 and 24 ranks, with any accumulation."""
    orders = []
    for ranks, size in ((1, micro), (2, min(micro, 24)), (24, 2), (24, 1)):
        per_step = 48 // (ranks * size)
        shares = [list(RankBatchSampler(first, steps * per_step, size, rank, ranks)) for rank in range(ranks)]
        orders.append([index for together in zip(*shares, strict=True) for batch in together for index in batch])
    assert all(order == list(range(first, first + 48 * steps)) for order in orders)


def test_any_index_can_be_looked_up_directly() -> None:
    order = SequenceOrder({"a": 1000, "b": 77}, {"a": Fraction("0.7"), "b": Fraction("0.3")}, 5)
    walked = [order.locate(np.array([index])) for index in range(5000, 5100)]
    sources, places = order.locate(np.arange(5000, 5100))
    assert [(int(s[0]), int(p[0])) for s, p in walked] == list(zip(sources.tolist(), places.tolist(), strict=True))


def test_new_weights_start_a_phase_and_sources_continue() -> None:
    sizes = {"a": 100, "b": 100}
    order = SequenceOrder(sizes, {"a": 1, "b": 1}, 3)
    before = order.locate(np.arange(60))
    order.change_weights({"a": 1, "b": 3}, 60)
    order = SequenceOrder.restore(json.loads(json.dumps(order.state())))
    assert [array.tolist() for array in order.locate(np.arange(60))] == [array.tolist() for array in before]
    sources, places = order.locate(np.arange(60 + 400))
    assert np.bincount(sources[60:]).tolist() == [100, 300]
    for source in (0, 1):
        assert sorted(places[sources == source][:100]) == list(range(100))
    assert order.consumed(60) == {"a": 30, "b": 30}
    order.change_weights({"a": 1, "b": 3}, 460)
    assert len(order.phases) == 2  # equal weights start no new phase


def test_memory_does_not_grow_with_the_size_of_the_sources() -> None:
    tracemalloc.start()
    order = SequenceOrder({"a": 900_000_000, "b": 100_000_000}, {"a": 9, "b": 1}, 0)
    order.locate(np.arange(10**15, 10**15 + 1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


def test_weights_with_a_short_period_are_exact() -> None:
    assert period_counts([Fraction("0.6"), Fraction("0.3"), Fraction("0.1")]) == [6, 3, 1]
    assert period_counts([424, 80]) == [53, 10]
    counts = period_counts([1_000_003, 999_983, 3])
    assert counts[2] >= 1
    shares = [count / sum(counts) for count in counts]
    assert shares == pytest.approx([1_000_003 / 1_999_989, 999_983 / 1_999_989, 3 / 1_999_989], abs=2e-5)


def test_source_weights_are_parsed_or_refused() -> None:
    sizes = {"zh": 800, "en": 100}
    assert parse_weights("zh=0.6,en=0.4", sizes) == {"zh": Fraction("0.6"), "en": Fraction("0.4")}
    assert parse_weights("size", sizes) == sizes
    warm = parse_weights("temperature=0.5", sizes)
    assert float(warm["zh"] / warm["en"]) == pytest.approx(8**0.5, rel=1e-6)
    for given_, message in (
        ("zh=0.6", "gives en no weight"),
        ("zh=1,de=2", "no source de"),
        ("zh", "neither"),
        ("temperature=0", "above 0"),
        ("zh=a,en=1", "neither"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_weights(given_, sizes)
    with pytest.raises(ValueError, match="must not be below 0"):
        SequenceOrder(sizes, {"zh": 0, "en": 0}, 0)
    with pytest.raises(ValueError, match="has no training sequences"):
        SequenceOrder({"zh": 0, "en": 3}, {"zh": 1, "en": 1}, 0)
