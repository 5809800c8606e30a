"""Encode the sources of a run, split them into training and held-out examples, and order the examples."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from chat_prompts.prompt_encoding import PromptEncoder
from example_packing.example_order import EpochOrder, ExampleSources, epoch_sizes, held_out_indices, parse_mix
from instruction_data.data_sources import Source
from instruction_data.tokenized_examples import CachedExamples, EncodingSettings, open_examples
from json_rows.instruction_rows import InstructionRow, checked_rows

from instruction_tuning.tuning_arguments import TuningArguments


@dataclass
class TuningData:
    """All examples, the order of the training examples, and the indices of the held-out examples."""

    examples: ExampleSources
    order: EpochOrder
    held_out: list[int] = field(default_factory=list)


def encode_sources(args: TuningArguments, encoder: PromptEncoder, sources: list[Source]) -> list[CachedExamples]:
    """Return the examples of all sources from the cache.

    One rank of each machine encodes the sources that are not in the cache; the other ranks wait. Raises ValueError if
    no row of a source can be used.
    """
    cache = Path(args.cache_dir or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "knowlm/rows")).expanduser()
    settings = EncodingSettings(
        args.cutoff_len, args.train_on_inputs, args.truncate_answers, skip_errors=args.on_error == "skip"
    )
    with args.main_process_first(desc="tokenising"):
        parts = [open_examples(encoder, source, settings, cache) for source in sources]
    for part, source in zip(parts, sources, strict=True):
        if not len(part):
            reasons = ", ".join(f"{count} x {reason}" for reason, count in part.dropped.items())
            raise ValueError(f"{source.path} has no usable row ({reasons}); raise --cutoff_len or repair the data")
    return parts


def split_and_order(
    args: TuningArguments, parts: list[CachedExamples], held_out_parts: list[CachedExamples]
) -> TuningData:
    """Return the data of a run.

    parts: the examples of --data_path. held_out_parts: the held-out examples of --eval_data_path; if there are none,
    --val_set_size selects held-out examples from `parts`.
    """
    examples = ExampleSources([*parts, *held_out_parts])
    count = int(examples.offsets[len(parts)])
    seed = args.seed if args.data_seed is None else args.data_seed
    if held_out_parts:
        held_out = np.arange(count, len(examples))
    else:
        held_out = held_out_indices(examples.sources, args.val_set_size, seed)
    training = np.setdiff1d(np.arange(count), held_out)
    by_source = [training[examples.sources[training] == number] for number in range(len(parts))]
    sizes = {part.name: len(members) for part, members in zip(parts, by_source, strict=True)}
    per_epoch = epoch_sizes(sizes, parse_mix(args.mix, list(sizes))) if args.mix else sizes
    shuffle = args.train_sampling_strategy == "random"
    order = EpochOrder(by_source, list(per_epoch.values()), args.batch_size or 1, seed, shuffle)
    return TuningData(examples, order, held_out.tolist())


def held_out_rows(data: TuningData, sources: list[Source]) -> list[InstructionRow]:
    """Return the rows of the held-out examples, read again from their files, in the order of sources and rows."""
    rows = []
    held_out = np.array(data.held_out)
    for source_index, (part, source) in enumerate(zip(data.examples.parts, sources, strict=True)):
        members = held_out[data.examples.sources[held_out] == source_index] - data.examples.offsets[source_index]
        numbers = set(part.row_numbers[members].tolist())
        checked = enumerate(checked_rows(source.path, answers=True))
        rows += [row.content for number, row in checked if number in numbers and row.content is not None]
    return rows
