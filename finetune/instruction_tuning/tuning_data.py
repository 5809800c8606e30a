"""The rows of a run from its options: encoded, split, ordered, and the held-out rows as questions."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from chat_prompts.prompt_encoding import PromptEncoder
from example_packing.example_order import Order, Rows, epoch_sizes, held_out, parse_mix
from instruction_data.data_sources import Source
from instruction_data.tokenized_examples import EncodedRows, Settings, open_encoded
from json_rows.instruction_rows import InstructionRow, iterate_instructions

if TYPE_CHECKING:
    from instruction_tuning.tuning_arguments import TuningArguments


@dataclass
class Data:
    """The data of a run: all rows, the order of the training rows, the numbers of the held-out rows.

    scores: answers the held-out rows with the trainer's model and scores the answers; None without --eval_generate.
    """

    rows: Rows
    order: Order
    held_out: list[int] = field(default_factory=list)
    scores: Callable[[Any], dict[str, float]] | None = None


def encode_all(args: "TuningArguments", encoder: PromptEncoder, sources: list[Source]) -> list[EncodedRows]:
    """The encoded rows of all sources; one rank of each machine makes what is not in the cache, the others wait.

    Raises ValueError where no row of a source is left.
    """
    cache = Path(args.cache_dir or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "knowlm/rows")).expanduser()
    settings = Settings(args.cutoff_len, args.train_on_inputs)
    with args.main_process_first(desc="tokenising"):
        parts = [open_encoded(encoder, source, settings, cache) for source in sources]
    for part, source in zip(parts, sources, strict=True):
        if not len(part):
            reasons = ", ".join(f"{count} x {reason}" for reason, count in part.report.dropped.items())
            raise ValueError(
                f"{source.path} leaves no row to train on ({reasons}); raise --cutoff_len or mend the data"
            )
    return parts


def arrange(args: "TuningArguments", parts: list[EncodedRows], extra: list[EncodedRows]) -> Data:
    """Order of the training rows, and the held-out rows: a part of `parts`, or all of `extra`."""
    rows = Rows([*parts, *extra])
    known = int(rows.offsets[len(parts)])
    seed = args.seed if args.data_seed is None else args.data_seed
    apart = np.arange(known, len(rows)) if extra else held_out(rows.sources, args.val_set_size, seed)
    training = np.setdiff1d(np.arange(known), apart)
    by_source = [training[rows.sources[training] == number] for number in range(len(parts))]
    sizes = {part.name: len(mine) for part, mine in zip(parts, by_source, strict=True)}
    takes = epoch_sizes(sizes, parse_mix(args.mix, list(sizes))) if args.mix else sizes
    strategy = args.train_sampling_strategy.replace("auto", "random")  # the trainer knows whether rows are packed
    order = Order(by_source, list(takes.values()), args.batch_size or 1, seed, strategy, rows.lengths)
    return Data(rows, order, apart.tolist())


def questions(
    args: "TuningArguments", encoder: PromptEncoder, data: Data, sources: list[Source]
) -> list[tuple[str, InstructionRow]]:
    """The held-out rows as they stand in their files, each with its source's name."""
    found = []
    apart = np.array(data.held_out)
    for number, (part, source) in enumerate(zip(data.rows.parts, sources, strict=True)):
        mine = apart[data.rows.sources[apart] == number] - data.rows.offsets[number]
        places = set(part.numbers[mine].tolist())
        found += [(source.name, row) for place, row in enumerate(iterate_instructions(source.path)) if place in places]
    return found
