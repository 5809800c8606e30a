"""sampler.py: sources in their proportions, each row once an epoch, one order for any number of ranks."""

import json
import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from sequence_packing import sampler
from sequence_packing.packed_batches import RankBatches
from sequence_packing.sampler import Schedule, parse_weights, period_counts, period_table, permuted


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any))
@settings(max_examples=200, deadline=None)
def test_every_prefix_of_a_period_is_within_a_row_of_the_proportions(counts: list[int]) -> None:
    table = period_table(counts)
    seen = np.cumsum(np.eye(len(counts), dtype=np.int64)[table], axis=0)  # (rows, sources)
    wanted = np.arange(1, len(table) + 1)[:, None] * np.array(counts) / sum(counts)
    assert np.abs(seen - wanted).max() < 1
    assert seen[-1].tolist() == counts


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_a_permutation_has_every_row_once(size: int, key: int) -> None:
    found = permuted(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))
    assert np.array_equal(np.sort(found), np.arange(size))


def test_permutations_look_random() -> None:
    """No place prefers rows, neighbours have nothing to do with one another, and keys differ."""
    size, keys = 1000, 400
    places = np.tile(np.arange(size), keys)
    names = np.repeat([sampler.key_of(seed, "x") for seed in range(keys)], size).astype(np.uint64)
    orders = permuted(places, np.full(size * keys, size), names).reshape(keys, size)
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
def test_an_epoch_of_a_source_has_each_of_its_rows_once(
    sizes: list[int], data: st.DataObject, seed: int, epochs: int
) -> None:
    weights = data.draw(st.lists(st.integers(1, 20), min_size=len(sizes), max_size=len(sizes)))
    names = [f"s{number}" for number in range(len(sizes))]
    schedule = Schedule(dict(zip(names, sizes, strict=True)), dict(zip(names, weights, strict=True)), seed)
    sources, places = schedule.at(np.arange(200 * epochs))
    for source, size in enumerate(sizes):
        rows = places[sources == source]
        for begin in range(0, len(rows) // size * size, size):
            assert sorted(rows[begin : begin + size]) == list(range(size))
    consumed = schedule.consumed(200 * epochs)
    assert list(consumed.values()) == np.bincount(sources, minlength=len(sizes)).tolist()


def test_a_source_begins_again_in_another_order() -> None:
    schedule = Schedule({"a": 50}, {"a": 1}, 0)
    _, places = schedule.at(np.arange(100))
    assert places[:50].tolist() != places[50:].tolist()


@given(st.integers(0, 10**9), st.integers(1, 4), st.sampled_from([48, 8, 2, 1]))
@settings(max_examples=60, deadline=None)
def test_the_order_does_not_depend_on_the_ranks(first: int, steps: int, micro: int) -> None:
    """Steps of 48 rows have the same rows in the same order on 1, 2 and 24 ranks, however they accumulate."""
    orders = []
    for ranks, rows in ((1, micro), (2, min(micro, 24)), (24, 2), (24, 1)):
        per_step = 48 // (ranks * rows)
        shares = [list(RankBatches(first, steps * per_step, rows, rank, ranks)) for rank in range(ranks)]
        orders.append([row for together in zip(*shares, strict=True) for batch in together for row in batch])
    assert all(order == list(range(first, first + 48 * steps)) for order in orders)


def test_a_jump_is_the_same_as_walking_there() -> None:
    schedule = Schedule({"a": 1000, "b": 77}, {"a": Fraction("0.7"), "b": Fraction("0.3")}, 5)
    walked = [schedule.at(np.array([row])) for row in range(5000, 5100)]
    sources, places = schedule.at(np.arange(5000, 5100))
    assert [(int(s[0]), int(p[0])) for s, p in walked] == list(zip(sources.tolist(), places.tolist(), strict=True))


def test_new_weights_begin_a_segment_and_sources_go_on_where_they_are() -> None:
    sizes = {"a": 100, "b": 100}
    schedule = Schedule(sizes, {"a": 1, "b": 1}, 3)
    before = schedule.at(np.arange(60))
    schedule.reweighted({"a": 1, "b": 3}, 60)
    schedule = Schedule.restore(json.loads(json.dumps(schedule.state())))
    assert [array.tolist() for array in schedule.at(np.arange(60))] == [array.tolist() for array in before]
    sources, places = schedule.at(np.arange(60 + 400))
    assert np.bincount(sources[60:]).tolist() == [100, 300]
    for source in (0, 1):
        rows = places[sources == source]
        assert sorted(rows[:100]) == list(range(100))
    assert schedule.consumed(60) == {"a": 30, "b": 30}
    schedule.reweighted({"a": 1, "b": 3}, 460)
    assert len(schedule.segments) == 2  # the same weights are no new segment


def test_a_billion_rows_take_little_memory_and_a_million_indices_little_time() -> None:
    code = (
        "import sys, time; sys.path.insert(0, 'pretrain'); import numpy as np\n"
        "from sequence_packing.sampler import Schedule\n"
        "s = Schedule({'a': 900_000_000, 'b': 100_000_000}, {'a': 9, 'b': 1}, 0)\n"
        "rows = np.arange(10**9, 10**9 + 1_000_000); begun = time.process_time(); s.at(rows)\n"
        "seconds = time.process_time() - begun\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(seconds, int(peak.split()[1]) / 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    assert seconds < 1
    assert megabytes < 150
    begun = time.perf_counter()
    Schedule({"a": 10**9}, {"a": 1}, 0).at(np.array([10**15]))
    assert time.perf_counter() - begun < 1


def test_weights_are_exact_where_they_can_be() -> None:
    assert period_counts([Fraction("0.6"), Fraction("0.3"), Fraction("0.1")]) == [6, 3, 1]
    assert period_counts([424, 80]) == [53, 10]
    counts = period_counts([1_000_003, 999_983, 3])
    assert counts[2] >= 1
    shares = [count / sum(counts) for count in counts]
    assert shares == pytest.approx([1_000_003 / 1_999_989, 999_983 / 1_999_989, 3 / 1_999_989], abs=2e-5)


def test_weights_of_a_command_line() -> None:
    sizes = {"zh": 800, "en": 100}
    assert parse_weights("zh=0.6,en=0.4", sizes) == {"zh": Fraction("0.6"), "en": Fraction("0.4")}
    assert parse_weights("size", sizes) == sizes
    warm = parse_weights("temperature=0.5", sizes)
    assert float(warm["zh"] / warm["en"]) == pytest.approx(8**0.5, rel=1e-6)
    for given_, said in (
        ("zh=0.6", "does not name en"),
        ("zh=1,de=2", "no source de"),
        ("zh", "neither"),
        ("temperature=0", "over 0"),
        ("zh=a,en=1", "neither"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_weights(given_, sizes)
    with pytest.raises(ValueError, match="must not be below 0"):
        Schedule(sizes, {"zh": 0, "en": 0}, 0)
    with pytest.raises(ValueError, match="has no rows"):
        Schedule({"zh": 0, "en": 3}, {"zh": 1, "en": 1}, 0)
