"""Tokenised rows to batches: the held-out part, an order that wastes little on padding, padding and labels.

Not a script; finetune.py trains on what comes out of it.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

IGNORED = -100  # the label that torch's cross entropy leaves out
SORTED_TOGETHER = 50  # batches whose rows are sorted by length among themselves: enough for little padding


def split_validation(examples: list[Any], size: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Examples for training and for validation; `size` is a count, or a share below 1; ValueError if too big."""
    count = round(size * len(examples)) if 0 < size < 1 else int(size)
    if count >= len(examples) > 0:
        raise ValueError(
            f"--val_set_size {size:g} leaves none of {len(examples)} rows to train on; give fewer, or a fraction (0.1)"
        )
    held_out = set(random.Random(seed).sample(range(len(examples)), count)) if count > 0 else set()
    train = [example for index, example in enumerate(examples) if index not in held_out]
    return train, [examples[index] for index in sorted(held_out)]


def grouped_order(lengths: Sequence[int], batch: int, seed: int) -> list[int]:
    """All indices in an order whose consecutive batches hold rows of similar length, the batches themselves shuffled.

    Rows are shuffled, sorted by length within SORTED_TOGETHER batches, and cut into batches; what does not fill a
    batch comes last. Shuffled batches keep the length of a batch from saying anything about the time in training.
    """
    draw = random.Random(seed)
    rows = draw.sample(range(len(lengths)), len(lengths))
    whole = len(rows) // batch * batch
    batches = []
    for start in range(0, whole, SORTED_TOGETHER * batch):
        near = sorted(rows[start : min(start + SORTED_TOGETHER * batch, whole)], key=lambda row: lengths[row])
        batches += [near[at : at + batch] for at in range(0, len(near), batch)]
    draw.shuffle(batches)
    return [row for members in batches for row in members] + rows[whole:]


class GroupedSampler(Sampler[int]):
    """grouped_order as a sampler; an epoch's order depends on seed and epoch alone, so a resumed run finds it again."""

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(grouped_order(self.lengths, self.batch, self.seed * 1_000_003 + self.epoch))

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of every epoch."""
        self.epoch = epoch


def collate(rows: list[dict[str, Any]], pad_id: int, multiple: int = 1) -> dict[str, torch.Tensor]:
    """Rows {"input_ids": array of int32, "spans"} to a right-padded batch of (rows, tokens) int64 tensors.

    Padding is known by length, so pad_id may be any id, EOS included; labels hold IGNORED outside the spans.
    """
    width = -(-max(len(row["input_ids"]) for row in rows) // multiple) * multiple
    input_ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), IGNORED)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        input_ids[index, :length] = torch.frombuffer(row["input_ids"], dtype=torch.int32)
        attention_mask[index, :length] = 1
        for start, end in row["spans"]:
            labels[index, start:end] = input_ids[index, start:end]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
