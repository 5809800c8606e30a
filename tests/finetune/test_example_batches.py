"""example_batches.py: packed lines and padded rectangles, and targets where the next token has a label."""

import random
from typing import Any

import numpy as np
import pytest
from example_packing.example_batches import IGNORED, Layout, best_fit_decreasing, pack, rectangles, share
from example_packing.shared_prefixes import Family
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_attention.segment_attention import Segment

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80)


class Listed:
    """Rows in memory: (ids, spans) each, all of them of source 0 but the last."""

    def __init__(self, rows: list[tuple[list[int], list[tuple[int, int]]]]) -> None:
        self.rows = [(np.array(ids), np.array(spans)) for ids, spans in rows]
        self.lengths = np.array([len(ids) for ids, _ in rows])
        self.supervised = np.array([sum(end - max(start, 1) for start, end in spans) for _, spans in rows])
        self.sources = np.array([0] * (len(rows) - 1) + [1])

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]


ROWS: Any = Listed(
    [([1, 5, 2, 6, 2], [(3, 5)]), ([1, 7, 2], [(0, 3)])]
)  # EOS (2) inside, and the second all supervised
ALONE = [Family([0], 0), Family([1], 0)]


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(60, 200), st.integers(1, 5))
def test_lines_hold_every_row_once_within_their_capacity(lengths: list[int], capacity: int, ranks: int) -> None:
    shares = pack(lengths, capacity, ranks)
    assert len({len(share) for share in shares}) == 1
    lines = [line for share in shares for line in share]
    assert sorted(index for line in lines for index in line) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in line) <= capacity for line in lines)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 5))
def test_rectangles_hold_every_row_once(lengths: list[int], micro: int, ranks: int) -> None:
    shares = rectangles(lengths, micro, ranks)
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
def test_line_restarts_positions_and_has_no_target_for_first_tokens(head: bool) -> None:
    layout = Layout(packed=True, micro=2, capacity=99, pad_id=2, supervised_head=head, multiple=12)
    batch = layout.batch(ROWS, ALONE, filler=0)
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
    layout = Layout(packed=False, micro=2, capacity=99, pad_id=2, multiple=4)
    batch = layout.batch(ROWS, ALONE, filler=0)
    assert batch["input_ids"].tolist() == [[1, 5, 2, 6, 2, 2, 2, 2], [1, 7, 2, 2, 2, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 3 + [0] * 5]
    assert batch["keep"].tolist() == [0, 1, 2, 3]
    assert batch["targets"].tolist() == [[IGNORED] * 2 + [6, 2], [7, 2, IGNORED, IGNORED]]
    assert batch["sources"].tolist() == [[0] * 4, [1] * 4]


@pytest.mark.parametrize("packed", [True, False])
def test_ranks_share_a_step_and_a_rank_without_rows_gets_an_empty_batch(packed: bool) -> None:
    layout = Layout(packed=packed, micro=1, capacity=5, pad_id=0)
    shares = [share(ROWS, np.array([0, 1]), layout, rank, 3) for rank in range(3)]
    assert [len(one["micro_batches"]) for one in shares] == [1, 1, 1]
    assert {(one["items"], one["tokens"]) for one in shares} == {(4, 8)}
    counted = [int(one["micro_batches"][0]["targets"].ne(IGNORED).sum()) for one in shares]
    assert sorted(counted) == [0, 2, 2]
