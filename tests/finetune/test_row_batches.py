"""finetune/row_batches.py: padding known by length, an order that wastes little, the held-out part."""

import random
from array import array

import pytest
from row_batches import IGNORED, GroupedSampler, collate, grouped_order, split_validation


def test_padding_is_masked_by_length_when_pad_is_eos() -> None:
    rows = [
        {"input_ids": array("i", [1, 5, 2, 6, 2]), "spans": [(3, 5)]},  # EOS (2) inside the prompt and at the end
        {"input_ids": array("i", [1, 7, 2]), "spans": [(1, 3)]},
    ]
    batch = collate(rows, pad_id=2, multiple=4)
    assert batch["input_ids"].tolist() == [[1, 5, 2, 6, 2, 2, 2, 2], [1, 7, 2, 2, 2, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1] * 5 + [0] * 3, [1] * 3 + [0] * 5]
    assert batch["labels"].tolist() == [
        [IGNORED] * 3 + [6, 2] + [IGNORED] * 3,
        [IGNORED, 7, 2] + [IGNORED] * 5,
    ]


def test_order_holds_every_row_once_wastes_little_and_has_no_drift_of_lengths() -> None:
    draw = random.Random(1)
    lengths = [draw.randint(10, 500) for _ in range(1003)]
    order = grouped_order(lengths, 8, seed=5)
    assert sorted(order) == list(range(1003))
    batches = [[lengths[row] for row in order[start : start + 8]] for start in range(0, 1000, 8)]
    padding = sum(max(batch) * 8 - sum(batch) for batch in batches) / sum(map(sum, batches))
    assert padding < 0.03
    halves = [sum(map(sum, half)) for half in (batches[:62], batches[62:124])]
    assert 0.8 < halves[0] / halves[1] < 1.25
    assert grouped_order(lengths, 8, seed=5) == order
    assert grouped_order([3, 1], 8, seed=0) in ([0, 1], [1, 0])


def test_an_epoch_s_order_depends_on_seed_and_epoch_alone() -> None:
    one, other = GroupedSampler(list(range(50)), 4, seed=1), GroupedSampler(list(range(50)), 4, seed=1)
    first = list(one)
    one.set_epoch(1)
    other.set_epoch(1)
    assert list(one) == list(other) != first
    assert len(one) == 50


def test_validation_is_a_count_or_a_share_and_never_everything() -> None:
    rows = list(range(100))
    train, held_out = split_validation(rows, 0.1, seed=3)
    assert len(held_out) == 10
    assert sorted(train + held_out) == rows
    assert split_validation(rows, 7, seed=3)[1] == split_validation(rows, 7, seed=3)[1]
    assert split_validation(rows, 0, seed=3) == (rows, [])
    with pytest.raises(ValueError, match="2000 leaves none of 100 rows"):
        split_validation(rows, 2000, seed=3)
