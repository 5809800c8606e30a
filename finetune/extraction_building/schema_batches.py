"""Divide a schema into batches, one for each row, and choose the negatives of each text.

Batches as in IEPile (Gui et al. 2024, https://arxiv.org/abs/2402.14710): few types per row instead of the whole schema.
In training, a batch with hard negatives has types that are easily confused with a type of the text.
"""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from instruction_data.type_orders import random_orders

from extraction_building.schema_items import Schema

# Entries per row in IEPile's converter; the values of --schema_batch 0 in the style schema_json.
BATCH_SIZES = {"ner": 6, "re": 4, "spo": 4, "ee": 4, "eet": 4, "eea": 4, "kg": 1}
Batch = tuple[int, ...]  # numbers of schema entries


class BatchSettings(NamedTuple):
    """The settings on which the batches of a text depend.

    hard_negatives: entry -> entries that are confused with it, the most confusable first. negative_batches: maximum
    number of batches without an item of the text; None: all.
    """

    size: int
    is_training: bool
    positives_only: bool = False  # eea, which asks for the arguments of events that are known
    hard_negatives: Mapping[int, Sequence[int]] = {}
    negative_batches: int | None = None
    seed: int = 0


def split_batches(entries: Sequence[int], size: int) -> list[Batch]:
    """Return consecutive batches of `size` entries; a remainder below max(1, size // 2) joins the last batch."""
    batches = [tuple(entries[start : start + size]) for start in range(0, len(entries), size)]
    if len(batches) > 1 and len(batches[-1]) < max(1, size // 2):
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def text_batches(text: str, order: Sequence[int], positives: set[int], settings: BatchSettings) -> list[Batch]:
    """Return the batches of a text; each has its entries in the order `order`.

    order: the entries to ask for. positives: the entries of which the text has items. A training text gets all entries
    or, with `negative_batches`, those of its positive batches and of some negative batches; the text is their seed.
    """
    if settings.positives_only:
        return split_batches([entry for entry in order if entry in positives], settings.size)
    if not settings.is_training:
        return split_batches(order, settings.size)
    draw = random.Random(f"{settings.seed} {text}") if settings.negative_batches is not None else None
    if settings.hard_negatives and positives:
        return hard_batches(order, positives, settings, draw)
    batches = split_batches(order, settings.size)
    if draw is None or settings.negative_batches is None:
        return batches
    negative = [number for number, batch in enumerate(batches) if positives.isdisjoint(batch)]
    kept = draw.sample(negative, min(settings.negative_batches, len(negative)))
    dropped = {*negative} - {*kept}
    return [batch for number, batch in enumerate(batches) if number not in dropped]


def hard_batches(
    order: Sequence[int], positives: set[int], settings: BatchSettings, draw: random.Random | None
) -> list[Batch]:
    """Return batches that each join a positive with its hard negatives, then batches of the other entries.

    The other hard negatives come before the other entries. draw: shuffles the other entries; None: keeps them in order.
    """
    rank = {entry: place for place, entry in enumerate(order)}
    unused = dict.fromkeys(order)
    groups: list[list[int]] = []
    remaining_hard: dict[int, None] = {}
    for positive in (entry for entry in order if entry in positives):
        confusable = [entry for entry in settings.hard_negatives.get(positive, ()) if entry in unused]
        remaining_hard.update(dict.fromkeys(confusable))
        if positive in unused:
            group = [positive, *(entry for entry in confusable if entry != positive)][: settings.size]
            for entry in group:
                del unused[entry]
            if groups and len(groups[-1]) + len(group) <= settings.size:
                groups[-1] += group
            else:
                groups.append(group)
    others = [entry for entry in unused if entry not in remaining_hard]
    if draw is not None:
        draw.shuffle(others)
    rest = [entry for entry in remaining_hard if entry in unused] + others
    for group in groups:
        missing = settings.size - len(group)
        group += rest[:missing]
        del rest[:missing]
    negative = split_batches(rest, settings.size)[: settings.negative_batches]
    return [tuple(sorted(batch, key=rank.__getitem__)) for batch in [*groups, *negative]]


def schema_orders(schema: Schema, language: str, count: int, seed: int, sort: bool) -> list[list[int]]:
    """Return the orders in which the entries are asked for: `count` random ones if count > 1, else the schema's.

    sort: with count 1, the order of the labels instead of the schema's order. Order k is the same for every text.
    """
    numbers = list(range(len(schema.items)))
    if count > 1:
        return random_orders(numbers, count, f"{seed} {schema.task} {language}")
    return [schema.sorted_order if sort else numbers]
