"""example_batches.py: packed sequences, single examples, and targets where the next token has a label."""

from typing import Any

import numpy as np
import pytest
from example_packing.example_batches import IGNORED, BatchLayout, rank_share
from example_packing.shared_prefixes import PrefixGroup
from packed_attention.segment_attention import Segment


class ListedExamples:
    """Examples (ids, spans) in memory; the last one is of source 1, all others are of source 0."""

    def __init__(self, examples: list[tuple[list[int], list[tuple[int, int]]]]) -> None:
        self.examples = [(np.array(ids), np.array(spans)) for ids, spans in examples]
        self.lengths = np.array([len(ids) for ids, _ in examples])
        self.supervised = np.array([sum(end - max(start, 1) for start, end in spans) for _, spans in examples])
        self.sources = np.array([0] * (len(examples) - 1) + [1])

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]


EXAMPLES: Any = ListedExamples(
    [([1, 5, 2, 6, 2], [(3, 5)]), ([1, 7, 2], [(0, 3)])]
)  # the first example has EOS (2) inside; all tokens of the second are supervised


def test_packed_sequence_restarts_positions_and_has_no_target_for_first_tokens() -> None:
    layout = BatchLayout(packed=True, capacity=99, pad_id=2, multiple=12)
    batch = layout.tensors(EXAMPLES, [PrefixGroup([0], 0), PrefixGroup([1], 0)], filler=0)
    assert batch["input_ids"].tolist() == [[1, 5, 2, 6, 2, 1, 7, 2, 2, 2, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]]
    assert batch["segments"] == [Segment(5, None), Segment(3, None), Segment(4, None)]
    assert batch["keep"].tolist() == [2, 3, 5, 6]
    assert batch["targets"].tolist() == [[6, 2, 7, 2]]
    assert batch["sources"].tolist() == [[0, 0, 1, 1]]


def test_sequence_holds_one_example_if_not_packed() -> None:
    (share,) = BatchLayout(packed=False, capacity=99, pad_id=2, share_prefixes=True).divide(EXAMPLES, np.arange(2), 1)
    assert share == [[PrefixGroup([0], 0)], [PrefixGroup([1], 0)]]


@pytest.mark.parametrize("packed", [True, False])
def test_rank_without_examples_gets_a_batch_without_labels(packed: bool) -> None:
    layout = BatchLayout(packed=packed, capacity=5, pad_id=0)
    shares = [rank_share(EXAMPLES, np.array([0, 1]), layout, rank, 3) for rank in range(3)]
    assert [len(one["micro_batches"]) for one in shares] == [1, 1, 1]
    assert {(one["supervised"], one["tokens"]) for one in shares} == {(4, 8)}
    counted = [int(one["micro_batches"][0]["targets"].ne(IGNORED).sum()) for one in shares]
    assert sorted(counted) == [0, 2, 2]
