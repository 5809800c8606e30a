"""Tokenise instruction rows once into a cache of examples, and memory-map the examples for training.

<cache>/<key>.arrow is an Arrow file with a record for each row of the data file; see EncodedRow. The ids are uint16
where the vocabulary allows, else int32. The key is a hash of the file's bytes, the tokenizer, the template and the
settings, so changed input is encoded again. Rows are read and written in chunks, so memory does not grow with the file.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.ipc
from chat_prompts.prompt_encoding import PromptEncoder, Turn
from json_rows.instruction_rows import checked_rows, messages_of
from json_rows.row_files import Row
from partial_folders.cache_entries import ensure_cache_entry
from pyarrow.compute import list_value_length
from tqdm import tqdm

from instruction_data.data_sources import Source

CHUNK = 1000  # rows per call of the tokenizer, which divides a call among the cores
VERSION = 5  # of the cache format


class EncodedRow(NamedTuple):
    """The token ids of a row, or the reason why the row was dropped."""

    ids: list[int]
    spans: list[int]  # the supervised parts of the ids: [start, end, start, end, …]
    supervised: int = 0  # tokens with a label; the first token of an example has none, since no token predicts it
    truncated: bool = False
    dropped: str | None = None  # the reason; None: the row was not dropped


class EncodingSettings(NamedTuple):
    """The settings on which ids and spans depend."""

    cutoff: int  # maximum tokens of an example
    train_on_inputs: bool = False
    truncate_answers: bool = False  # else a longer example is dropped
    skip_errors: bool = False  # drop rows that cannot be read or rendered, instead of raising ValueError


def encode_turns(turns: list[Turn], settings: EncodingSettings) -> EncodedRow:
    """Return a conversation as an example of at most `cutoff` tokens.

    A longer conversation is dropped or, with `truncate_answers`, truncated: within an answer or its end-of-turn, or
    after the last turn that fits if there is no room for the next prompt and a token of its answer. It is dropped if no
    token of an answer fits. A conversation in which every answer is empty is also dropped.
    """
    if not any(turn.answer for turn in turns):
        return EncodedRow([], [], dropped="the answer is empty")
    ids: list[int] = []
    spans: list[int] = []
    for turn in turns:
        room = settings.cutoff - len(ids) - len(turn.prompt)
        if room < 1:
            break
        spans.append(len(ids) + len(turn.prompt))
        ids += turn.prompt + (turn.answer + turn.end)[:room]
        spans.append(len(ids))
    truncated = len(ids) < sum(len(part) for turn in turns for part in turn)
    if truncated and not settings.truncate_answers:
        return EncodedRow([], [], dropped=f"longer than {settings.cutoff} tokens")
    if not spans:
        return EncodedRow([], [], dropped=f"the prompt leaves no room for the answer in {settings.cutoff} tokens")
    if settings.train_on_inputs:
        spans = [0, len(ids)]
    supervised = sum(end - max(start, 1) for start, end in zip(spans[::2], spans[1::2], strict=True))
    return EncodedRow(ids, spans, supervised, truncated)


def encode_rows(encoder: PromptEncoder, rows: Iterable[Row], settings: EncodingSettings) -> Iterator[list[EncodedRow]]:
    """Yield the encoded rows in chunks; a row with an error raises ValueError or, with `skip_errors`, is dropped."""
    remaining = iter(rows)
    while chunk := list(islice(remaining, CHUNK)):
        yield encode_chunk(encoder, chunk, settings)


def encode_chunk(encoder: PromptEncoder, chunk: list[Row], settings: EncodingSettings) -> list[EncodedRow]:
    """Return the encoded rows of a chunk; see encode_rows. After an error, the rows are encoded one by one."""
    error = next((row.error for row in chunk if row.content is None), "")
    if not error:
        try:
            turns = encoder.turns(messages_of(row.content) for row in chunk if row.content is not None)
            return [encode_turns(each, settings) for each in turns]
        except ValueError as refused:
            error = f"cannot be used: {refused}; correct it, or give --on_error skip"
    if len(chunk) > 1:
        return [encoded for row in chunk for encoded in encode_chunk(encoder, [row], settings)]
    if not settings.skip_errors:
        raise ValueError(f"{chunk[0].location} {error}")
    return [EncodedRow([], [], dropped=error.partition("; ")[0])]  # without the remedy


class CachedExamples:
    """The examples of one source, in a memory-mapped file of the cache, without the dropped rows.

    Attributes:
        lengths, supervised: (examples,) int64, tokens of each example, and tokens with a label.
        row_numbers: (examples,) int64, the row of each example in the data file.
        truncated: the number of truncated examples. dropped: reason -> number of dropped rows.
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
    """Return the examples of a file, encoded first if they are not in the cache; processes may call this at once.

    Raises ValueError with file and line of a row that cannot be read or rendered, unless `skip_errors` is set.
    """
    file = cache / f"{cache_key(encoder, source.path, settings)}.arrow"
    ensure_cache_entry(file, lambda path: write_examples(encoder, source, settings, path))
    return CachedExamples(source.name, file)


def write_examples(encoder: PromptEncoder, source: Source, settings: EncodingSettings, path: Path) -> None:
    """Encode the rows of a file and write them to the Arrow file `path`; raises as `open_examples`."""
    rows = tqdm(checked_rows(source.path, answers=True), f"tokenising {source.name}", unit=" rows", disable=None)
    ids = pyarrow.uint16() if len(encoder.tokenizer) <= 1 << 16 else pyarrow.int32()
    spans = pyarrow.list_(pyarrow.int32())
    types = (pyarrow.list_(ids), spans, pyarrow.int64(), pyarrow.bool_(), pyarrow.string())
    schema = pyarrow.schema(zip(EncodedRow._fields, types, strict=True))
    with pyarrow.ipc.new_file(str(path), schema) as writer:
        for chunk in encode_rows(encoder, rows, settings):
            columns = dict(zip(schema.names, zip(*chunk, strict=True), strict=True))
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))


def cache_key(encoder: PromptEncoder, path: Path, settings: EncodingSettings) -> str:
    """Return a hash of all inputs that determine the examples of a file, as 32 hexadecimal digits."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    parts = [VERSION, content, path.suffix, settings, encoder.fingerprint]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
