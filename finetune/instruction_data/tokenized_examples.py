"""Tokenise instruction rows once into a cache of examples, and memory-map the examples for training.

<cache>/<key>.arrow is an Arrow file with a record for each row of the data file; see EncodedRow. The ids are uint16
where the vocabulary allows, else int32. The key is a hash of the file's bytes, the tokenizer, the template and the
settings, so changed input is encoded again. Rows are read and written in chunks, so memory does not grow with the file.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.ipc
from chat_prompts.prompt_encoding import PromptEncoder, Turn
from json_rows.instruction_rows import InstructionRow, iterate_instructions, messages_of
from pyarrow.compute import list_value_length
from tqdm import tqdm

from instruction_data.data_sources import Source

CHUNK = 1000  # rows per call of the tokenizer, which divides a call among the cores
VERSION = 4  # of the cache format


class EncodedRow(NamedTuple):
    """An encoded row."""

    ids: list[int]
    spans: list[int]  # the supervised parts of the ids: [start, end, start, end, …]
    supervised: int = 0  # tokens with a label; the first token of an example has none, since no token predicts it
    truncated: bool = False
    dropped: str | None = None  # the reason if the row is not an example


class EncodingSettings(NamedTuple):
    """The settings on which ids and spans depend."""

    cutoff: int  # maximum tokens of an example
    train_on_inputs: bool = False


def encode_turns(turns: list[Turn], settings: EncodingSettings) -> EncodedRow:
    """Return a conversation as an example of at most `cutoff` tokens; it is dropped if no token of an answer fits.

    A truncated example also ends with the tokens that end an answer.
    """
    if not any(turn.answer for turn in turns):
        return EncodedRow([], [], dropped="the answer is empty")
    ids: list[int] = []
    spans: list[int] = []
    truncated = False
    for turn in turns:
        end = turn.end or turns[-1].end
        room = settings.cutoff - len(ids) - len(turn.prompt) - len(end)
        truncated = len(turn.answer) > room
        if truncated and room < 1:
            break
        spans.append(len(ids) + len(turn.prompt))
        ids += turn.prompt
        ids += turn.answer[:room] + end if truncated else turn.answer + turn.end
        spans.append(len(ids))
        if truncated:
            break
    if not spans:
        return EncodedRow([], [], dropped=f"the prompt leaves no room for the answer in {settings.cutoff} tokens")
    if settings.train_on_inputs:
        spans = [0, len(ids)]
    supervised = sum(end - max(start, 1) for start, end in zip(spans[::2], spans[1::2], strict=True))
    return EncodedRow(ids, spans, supervised, truncated)


def encode_rows(
    encoder: PromptEncoder, rows: Iterable[InstructionRow], settings: EncodingSettings
) -> Iterator[list[EncodedRow]]:
    """Yield the encoded rows in chunks."""
    remaining = iter(rows)
    while chunk := list(islice(remaining, CHUNK)):
        yield [encode_turns(turns, settings) for turns in encoder.turns(map(messages_of, chunk))]


class CachedExamples:
    """The examples of one source, in a memory-mapped file of the cache; dropped rows are left out.

    Attributes:
        lengths, supervised: (examples,) int64, tokens of each example, and tokens with a label.
        row_numbers: (examples,) int64, the row of each example in the data file.
        truncated: the number of truncated examples. dropped: dropped rows by reason.
    """

    def __init__(self, name: str, file: Path) -> None:
        self.name, self.file = name, file
        self._table = pyarrow.ipc.open_file(pyarrow.memory_map(str(file))).read_all()
        dropped = self._table["dropped"]
        self.row_numbers = np.flatnonzero(dropped.is_null())
        self.dropped = Counter(dropped.drop_null().to_pylist())
        self.truncated = int(self._table["truncated"].to_numpy().sum())
        self.supervised = self._table["supervised"].to_numpy()[self.row_numbers]
        lengths = list_value_length(self._table["ids"]).to_numpy()
        self.lengths = lengths[self.row_numbers].astype(np.int64)

    def __len__(self) -> int:
        return len(self.row_numbers)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (tokens,) and supervised spans (spans, 2) of an example."""
        row = self.row_numbers[index]
        ids, spans = (self._table[column][row].values.to_numpy() for column in ("ids", "spans"))
        return ids, spans.reshape(-1, 2)

    def __reduce__(self) -> tuple[type["CachedExamples"], tuple[str, Path]]:
        return CachedExamples, (self.name, self.file)  # each data-loader worker maps the file itself

    def counts(self) -> dict[str, Any]:
        """Return the numbers of examples, dropped rows and tokens, for run.json."""
        return {
            "kept": len(self),
            "truncated": self.truncated,
            "dropped": dict(self.dropped),
            "tokens": int(self.lengths.sum()),
            "supervised": int(self.supervised.sum()),
        }


def open_examples(encoder: PromptEncoder, source: Source, settings: EncodingSettings, cache: Path) -> CachedExamples:
    """Return the examples of a file, encoded first if they are not in the cache; several processes may do so at once.

    Raises ValueError with file and line of a row that cannot be read or rendered.
    """
    file = cache / f"{cache_key(encoder, source.path, settings)}.arrow"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        rows = tqdm(iterate_instructions(source.path), f"tokenising {source.name}", unit=" rows", disable=None)
        ids = pyarrow.uint16() if len(encoder.tokenizer) <= 1 << 16 else pyarrow.int32()
        spans = pyarrow.list_(pyarrow.int32())
        types = (pyarrow.list_(ids), spans, pyarrow.int64(), pyarrow.bool_(), pyarrow.string())
        schema = pyarrow.schema(zip(EncodedRow._fields, types, strict=True))
        partial = file.with_suffix(f".{os.getpid()}.partial")
        try:
            with pyarrow.ipc.new_file(str(partial), schema) as writer:
                for chunk in encode_rows(encoder, rows, settings):
                    columns = dict(zip(schema.names, zip(*chunk, strict=True), strict=True))
                    writer.write_batch(pyarrow.record_batch(columns, schema=schema))
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
    return CachedExamples(source.name, file)


def cache_key(encoder: PromptEncoder, path: Path, settings: EncodingSettings) -> str:
    """Return a hash of all inputs that determine the examples of a file, as 32 hexadecimal digits."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    parts = [VERSION, content, path.suffix, settings, encoder.fingerprint]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
