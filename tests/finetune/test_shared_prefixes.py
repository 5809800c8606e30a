"""shared_prefixes.py: groups that save the most tokens, and packed sequences that hold every example."""

import itertools
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from example_packing.shared_prefixes import PrefixGroup, group_by_prefix, pack_groups
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_data.named_templates import load_template
from transformers import AutoTokenizer
from tuning_runs import trainer_of

IDS = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=12), min_size=1, max_size=7)


def saved(found: list[PrefixGroup]) -> int:
    return sum(prefix * (len(members) - 1) for members, prefix in found)


def common_length(examples: list[np.ndarray]) -> int:
    columns = zip(*[ids[:-1].tolist() for ids in examples], strict=False)
    return len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))


def powerset(items: range) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(itertools.combinations(items, size) for size in range(len(items) + 1))


@settings(max_examples=120, deadline=None)
@given(IDS)
def test_prefix_groups_save_the_most_tokens(given_ids: list[list[int]]) -> None:
    ids = [np.array(example) for example in given_ids]
    found = group_by_prefix(ids, [len(example) - 1 for example in ids])
    assert sorted(index for members, _ in found for index in members) == list(range(len(ids)))
    for members, prefix in found:
        assert prefix <= common_length([ids[index] for index in members]) or len(members) == 1
    order = sorted(range(len(ids)), key=lambda index: ids[index][:-1].tolist())
    best = max(
        sum(
            common_length([ids[index] for index in order[first:last]]) * (last - first - 1)
            for first, last in pairwise(cuts)
        )
        for inner in powerset(range(1, len(order)))
        for cuts in [[0, *inner, len(order)]]
    )
    assert saved(found) == best


@settings(max_examples=150, deadline=None)
@given(IDS, st.integers(12, 40), st.integers(1, 4), st.booleans())
def test_packed_sequences_hold_every_example_within_their_capacity(
    given_ids: list[list[int]], capacity: int, ranks: int, shared: bool
) -> None:
    ids = [np.array(example) for example in given_ids]
    lengths = np.array([len(example) for example in ids])
    groups = group_by_prefix(ids, [length - 1 for length in lengths])
    filled = pack_groups(groups if shared else [PrefixGroup(list(range(len(ids))), 0)], lengths, capacity, ranks)
    assert len(filled) % ranks == 0
    assert sorted(index for sequence in filled for members, _ in sequence for index in members) == list(range(len(ids)))
    for sequence in filled:
        tokens = sum(
            sum(lengths[index] for index in members) - prefix * (len(members) - 1) for members, prefix in sequence
        )
        assert tokens <= capacity
        assert all(prefix == 0 for members, prefix in sequence if len(members) == 1)


@pytest.mark.parametrize("cutoff", [60, 512])
def test_step_with_shared_prefixes_holds_every_example_in_fewer_tokens(
    tmp_path: Path, tiny_checkpoint: Path, rows_file: Path, cutoff: int
) -> None:
    """Every example can be restored from ids and segments, and the step has fewer tokens than its examples."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.chat_template = load_template("alpaca_short")
    more = ("--batch_size", 32, "--micro_batch_size", 4, "--cutoff_len", cutoff, "--truncate_answers")
    trainer = trainer_of(tiny_checkpoint, tokenizer, rows_file, tmp_path / "out", *more)
    assert trainer.layout.share_prefixes
    examples, restored = trainer.data.examples, []
    step = next(iter(trainer.get_train_dataloader()))
    for micro in step["micro_batches"]:
        parts = np.split(micro["input_ids"][0].numpy(), np.cumsum([s.length for s in micro["segments"]])[:-1])
        parents = {segment.parent for segment in micro["segments"]}
        for number, segment in enumerate(micro["segments"]):
            if number not in parents:
                before = [] if segment.parent is None else parts[segment.parent].tolist()
                restored.append([*before, *parts[number].tolist()])
    expected = [examples[index][0].tolist() for index in trainer.data.order.step(0).tolist()]
    assert sorted(restored) == sorted(expected)
    laid_out = sum(micro["input_ids"].numel() for micro in step["micro_batches"])
    assert laid_out < 0.8 * step["tokens"]
    assert step["supervised"] == sum(micro["targets"].numel() for micro in step["micro_batches"])
