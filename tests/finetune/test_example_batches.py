"""example_batches.py: packed sequences, padded batches, and targets where the next token has a label."""

import random
from typing import Any

import numpy as np
import pytest
from example_packing.example_batches import (
    IGNORED,
    BatchLayout,
    best_fit_decreasing,
    group_by_length,
    pack,
    rank_share,
)
from example_packing.shared_prefixes import PrefixGroup
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_attention.segment_attention import Segment

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80)


class ListedExamples:
    """Examples (ids, spans) in memory; all are of source 0, the last one of source 1."""

    def __init__(self, examples: list[tuple[list[int], list[tuple[int, int]]]]) -> None:
        self.examples = [(np.array(ids), np.array(spans)) for ids, spans in examples]
        self.lengths = np.array([len(ids) for ids, _ in examples])
        self.supervised = np.array([sum(end - max(start, 1) for start, end in spans) for _, spans in examples])
        self.sources = np.array([0] * (len(examples) - 1) + [1])

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]


EXAMPLES: Any = ListedExamples(
    [([1, 5, 2, 6, 2], [(3, 5)]), ([1, 7, 2], [(0, 3)])]
)  # EOS (2) inside, and the second all supervised
ALONE = [PrefixGroup([0], 0), PrefixGroup([1], 0)]


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(60, 200), st.integers(1, 5))
def test_packed_sequences_hold_every_example_once_within_their_capacity(
    lengths: list[int], capacity: int, ranks: int
) -> None:
    shares = pack(lengths, capacity, ranks)
    assert len({len(share) for share in shares}) == 1
    sequences = [members for share in shares for members in share]
    assert sorted(index for members in sequences for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in members) <= capacity for members in sequences)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 5))
def test_padded_batches_hold_every_example_once(lengths: list[int], micro: int, ranks: int) -> None:
    shares = group_by_length(lengths, micro, ranks)
    assert len({len(share) for share in shares}) == 1
    cut = [members for share in shares for members in share]
    assert sorted(index for members in cut for index in members) == list(range(len(lengths)))
    assert max(map(len, cut)) <= micro


def test_best_fit_bins_are_more_than_99_percent_full() -> None:
    draw = random.Random(0)
    lengths = [min(2048, int(draw.lognormvariate(5, 0.8)) + 10) for _ in range(5000)]
    bins = best_fit_decreasing(lengths, 2048)
    assert sum(lengths) / (2048 * len(bins)) > 0.99


@pytest.mark.parametrize("head", [True, False])
def test_packed_sequence_restarts_positions_and_has_no_target_for_first_tokens(head: bool) -> None:
    layout = BatchLayout(packed=True, micro_batch_size=2, capacity=99, pad_id=2, supervised_head=head, multiple=12)
    batch = layout.tensors(EXAMPLES, ALONE, filler=0)
    assert batch["input_ids"].tolist() == [[1, 5, 2, 6, 2, 1, 7, 2, 2, 2, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]]
    assert batch["segments"] == [Segment(5, None), Segment(3, None), Segment(4, None)]
    if head:
        assert batch["keep"].tolist() == [2, 3, 5, 6]
        assert batch["targets"].tolist() == [[6, 2, 7, 2]]
        assert batch["sources"].tolist() == [[0, 0, 1, 1]]
    else:
        assert batch["targets"].tolist() == [[IGNORED] * 2 + [6, 2, IGNORED, 7, 2] + [IGNORED] * 5]


def test_padding_is_masked_by_length_when_pad_is_eos() -> None:
    layout = BatchLayout(packed=False, micro_batch_size=2, capacity=99, pad_id=2, multiple=4)
    batch = layout.tensors(EXAMPLES, ALONE, filler=0)
    assert batch["input_ids"].tolist() == [[1, 5, 2, 6, 2, 2, 2, 2], [1, 7, 2, 2, 2, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 3 + [0] * 5]
    assert batch["keep"].tolist() == [0, 1, 2, 3]
    assert batch["targets"].tolist() == [[IGNORED] * 2 + [6, 2], [7, 2, IGNORED, IGNORED]]
    assert batch["sources"].tolist() == [[0] * 4, [1] * 4]


@pytest.mark.parametrize("packed", [True, False])
def test_rank_without_examples_gets_a_batch_without_labels(packed: bool) -> None:
    layout = BatchLayout(packed=packed, micro_batch_size=1, capacity=5, pad_id=0)
    shares = [rank_share(EXAMPLES, np.array([0, 1]), layout, rank, 3) for rank in range(3)]
    assert [len(one["micro_batches"]) for one in shares] == [1, 1, 1]
    assert {(one["supervised"], one["tokens"]) for one in shares} == {(4, 8)}
    counted = [int(one["micro_batches"][0]["targets"].ne(IGNORED).sum()) for one in shares]
    assert sorted(counted) == [0, 2, 2]
