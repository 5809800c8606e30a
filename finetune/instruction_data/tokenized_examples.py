"""Tokenise instruction rows once into a cache of examples, and map the examples into memory for training.

    <cache>/<key>/ids.bin        (tokens,) uint16 where the vocabulary allows, else int32: the ids of all examples
    <cache>/<key>/examples.npz   starts (examples + 1,) int64: offset of each example in ids.bin; spans (spans, 2)
                                 int32: supervised [start, end) in each example; span_starts (examples + 1,) int64:
                                 offset of each example in spans; row_numbers (examples,) int64: its row in the file
    <cache>/<key>/report.json    counts of kept, truncated and dropped rows

The key is a hash of the file's bytes, the tokenizer, the template and the settings, so changed input is encoded anew.
Files are read row by row and ids are written chunk by chunk, so memory does not grow with the number of tokens.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from chat_prompts.prompt_encoding import PromptEncoder, Turn
from json_rows.instruction_rows import InstructionRow, iterate_instructions, messages_of

from instruction_data.data_sources import Source

CHUNK = 1000  # rows per call of the tokenizer, which divides a call among the cores
VERSION = 3  # of the cache format


class EncodedExample(NamedTuple):
    """Token ids of an example and its supervised [start, end) spans."""

    ids: list[int]
    spans: list[tuple[int, int]]


@dataclass
class EncodingReport:
    """Counts of rows and tokens. kept: examples; dropped: rows by reason; longest: tokens of the longest example."""

    kept: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    supervised: int = 0
    longest: int = 0

    def __add__(self, other: "EncodingReport") -> "EncodingReport":
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return EncodingReport(**sums | {"longest": max(self.longest, other.longest)})


@dataclass(frozen=True)
class EncodingSettings:
    """Settings that change ids or spans. cutoff: maximum tokens of an example."""

    cutoff: int
    train_on_inputs: bool = False


def truncate(turns: list[Turn], cutoff: int, train_on_inputs: bool = False) -> tuple[EncodedExample | None, bool]:
    """Return (example of at most `cutoff` tokens or None if no token of an answer fits, whether it was truncated).

    Space for the end of an answer is reserved: a truncated example ends in the same tokens as its last answer.
    """
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    truncated = False
    for turn in turns:
        end = turn.end or turns[-1].end
        room = cutoff - len(ids) - len(turn.prompt) - len(end)
        truncated = len(turn.answer) > room
        if truncated and room < 1:
            break
        ids += turn.prompt
        start = len(ids)
        ids += turn.answer[:room] + end if truncated else turn.answer + turn.end
        spans.append((start, len(ids)))
        if truncated:
            break
    if not spans:
        return None, truncated
    return EncodedExample(ids, [(0, len(ids))] if train_on_inputs else spans), truncated


def encode_rows(
    encoder: PromptEncoder, rows: Iterable[InstructionRow], settings: EncodingSettings, report: EncodingReport
) -> Iterator[list[tuple[int, EncodedExample]]]:
    """Yield chunks of (row number, example) for the rows that are kept; counts all rows in `report`."""
    numbered = enumerate(rows)
    while chunk := list(islice(numbered, CHUNK)):
        kept: list[tuple[int, EncodedExample]] = []
        for (number, _), turns in zip(chunk, encoder.turns([messages_of(row) for _, row in chunk]), strict=True):
            example, truncated = truncate(turns, settings.cutoff, settings.train_on_inputs)
            if not any(turn.answer for turn in turns):
                report.dropped["the answer is empty"] += 1
            elif example is None:
                report.dropped[f"the prompt leaves no room for the answer in {settings.cutoff} tokens"] += 1
            else:
                kept.append((number, example))
                report.kept += 1
                report.truncated += truncated
                report.tokens += len(example.ids)
                report.supervised += sum(end - max(start, 1) for start, end in example.spans)  # see CachedExamples
                report.longest = max(report.longest, len(example.ids))
        yield kept


class CachedExamples:
    """The examples of one source. Token ids are memory-mapped; opening reads 32 bytes per one-turn example.

    Attributes:
        lengths, supervised: (examples,) int64, tokens of each example, and tokens with a label. The first token of an
            example has no label, since no token predicts it.
        row_numbers: (examples,) int64, the row of each example in its file.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        self.report = EncodingReport(**(record["report"] | {"dropped": Counter(record["report"]["dropped"])}))
        with np.load(folder / "examples.npz", allow_pickle=False) as arrays:
            self.starts, self.spans, self.span_starts, self.row_numbers = (
                arrays[key] for key in ("starts", "spans", "span_starts", "row_numbers")
            )
        self.lengths = np.diff(self.starts)
        self.supervised = np.zeros(len(self), np.int64)
        tokens = self.spans[:, 1] - np.maximum(self.spans[:, 0], 1)
        np.add.at(self.supervised, np.repeat(np.arange(len(self)), np.diff(self.span_starts)), tokens)
        size = self.starts[-1] if len(self) else 0
        self._ids = np.memmap(folder / "ids.bin", record["dtype"], "r", shape=(size,)) if size else np.zeros(0, "<u2")

    def __len__(self) -> int:
        return len(self.row_numbers)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (tokens,) and supervised spans (spans, 2) of an example."""
        return (
            self._ids[self.starts[index] : self.starts[index + 1]],
            self.spans[self.span_starts[index] : self.span_starts[index + 1]],
        )

    def __reduce__(self) -> tuple[type["CachedExamples"], tuple[str, Path]]:
        return CachedExamples, (self.name, self.folder)  # each data-loader worker maps the file itself


def open_examples(encoder: PromptEncoder, source: Source, settings: EncodingSettings, cache: Path) -> CachedExamples:
    """Return the examples of a file, encoded first if they are not in the cache.

    Raises ValueError with the place of a row that cannot be read or rendered.
    """
    folder = cache / cache_key(encoder, source.path, settings)
    if not (folder / "report.json").is_file():
        _write_cache(encoder, source, settings, folder)
    return CachedExamples(source.name, folder)


def cache_key(encoder: PromptEncoder, path: Path, settings: EncodingSettings) -> str:
    """Return a hash of all inputs that determine the examples of a file, as 32 hexadecimal digits."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    parts = [VERSION, content, path.suffix, asdict(settings), encoder.fingerprint]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _write_cache(encoder: PromptEncoder, source: Source, settings: EncodingSettings, folder: Path) -> None:
    """Encode a file into a temporary folder and rename it to `folder`; several processes may do so at once."""
    from tqdm import tqdm

    dtype = np.dtype("<u2" if len(encoder.tokenizer) <= 1 << 16 else "<i4")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    report = EncodingReport()
    lengths, spans, span_counts, row_numbers = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.int32)], [], []
    try:
        rows = tqdm(iterate_instructions(source.path), f"tokenising {source.name}", unit=" rows", disable=None)
        with (partial / "ids.bin").open("wb") as file:
            for kept in encode_rows(encoder, rows, settings, report):
                for number, example in kept:
                    file.write(np.array(example.ids, dtype).tobytes())
                    row_numbers.append(number)
                    span_counts.append(len(example.spans))
                lengths.append(np.array([len(example.ids) for _, example in kept], np.int64))
                spans.append(np.array([span for _, example in kept for span in example.spans], np.int32).reshape(-1, 2))
        np.savez(
            partial / "examples.npz",
            starts=np.concatenate([[0], np.concatenate(lengths).cumsum()]).astype(np.int64),
            spans=np.concatenate(spans),
            span_starts=np.concatenate([[0], np.cumsum(span_counts)]).astype(np.int64),
            row_numbers=np.array(row_numbers, np.int64),
        )
        record = {"file": str(source.path), "dtype": dtype.str, "report": vars(report)}
        (partial / "report.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / "report.json").is_file():  # another process may have finished first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
