"""Rows as they are trained on: tokenised once, kept in a cache by content and settings, mapped into memory.

    <cache>/<key>/ids.bin        (tokens,) uint16 where the vocabulary allows, else int32: all rows, one after another
    <cache>/<key>/rows.npz       starts (rows + 1,) int64, where each row begins in ids.bin; spans (spans, 2) int32, the
                                 supervised [start, end) in each row; span_starts (rows + 1,) int64; numbers (rows,)
                                 int64, the place of each row in its file
    <cache>/<key>/report.json    what became of the rows

The key is a hash of the file's bytes, the tokenizer, the template and the settings, so that nothing stale is ever read.
Files are read row by row and ids written as they come: memory does not grow with the tokens, and what does not fit into
memory trains all the same.

finetune.py trains on what is kept here.
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

CHUNK = 1000  # rows encoded per call of the tokenizer, which spreads a call over the cores
VERSION = 2  # of the cache's content


class Example(NamedTuple):
    """A row as trained on: its ids and the [start, end) spans that are supervised."""

    ids: list[int]
    spans: list[tuple[int, int]]


@dataclass
class Report:
    """What became of the rows, for the lines printed before training."""

    kept: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    supervised: int = 0
    longest: int = 0

    def __add__(self, other: "Report") -> "Report":
        return Report(
            self.kept + other.kept,
            self.truncated + other.truncated,
            self.dropped + other.dropped,
            self.tokens + other.tokens,
            self.supervised + other.supervised,
            max(self.longest, other.longest),
        )


@dataclass(frozen=True)
class Settings:
    """What decides about ids and spans, besides the rows and the tokenizer. cutoff: tokens of the longest row."""

    cutoff: int
    train_on_inputs: bool = False


def fit(turns: list[Turn], cutoff: int, train_on_inputs: bool = False) -> tuple[Example | None, bool]:
    """One row within `cutoff` tokens, and whether something was cut; None where no token of an answer would be left.

    Room for an answer's end is reserved: a row that is cut ends as the last answer does.
    """
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    cut = False
    for turn in turns:
        end = turn.end or turns[-1].end
        room = cutoff - len(ids) - len(turn.prompt) - len(end)
        cut = len(turn.answer) > room
        if cut and room < 1:
            break
        ids += turn.prompt
        start = len(ids)
        ids += turn.answer[:room] + end if cut else turn.answer + turn.end
        spans.append((start, len(ids)))
        if cut:
            break
    if not spans:
        return None, cut
    return Example(ids, [(0, len(ids))] if train_on_inputs else spans), cut


def encode(
    encoder: PromptEncoder, rows: Iterable[InstructionRow], settings: Settings, report: Report
) -> Iterator[list[tuple[int, Example]]]:
    """Chunks of (place in the file, example) of the rows that are kept; `report` counts what became of all of them."""
    places = enumerate(rows)
    while chunk := list(islice(places, CHUNK)):
        kept: list[tuple[int, Example]] = []
        for (place, _), turns in zip(chunk, encoder.turns([messages_of(row) for _, row in chunk]), strict=True):
            example, cut = fit(turns, settings.cutoff, settings.train_on_inputs)
            if not any(turn.answer for turn in turns):
                report.dropped["the answer is empty"] += 1
            elif example is None:
                report.dropped[f"the prompt leaves no room for the answer in {settings.cutoff} tokens"] += 1
            else:
                kept.append((place, example))
                report.kept += 1
                report.truncated += cut
                report.tokens += len(example.ids)
                report.supervised += supervised_tokens(example.spans)
                report.longest = max(report.longest, len(example.ids))
        yield kept


def supervised_tokens(spans: Iterable[tuple[int, int]]) -> int:
    """Tokens with a label; a row's first has none, since nothing stands before it that could foretell it."""
    return sum(end - max(start, 1) for start, end in spans)


class EncodedRows:
    """The rows of one file, mapped; opening reads 24 bytes a row and no token.

    Attributes:
        lengths, supervised: (rows,) int64, tokens of each row, and those with a label.
        numbers: (rows,) int64, the place of each row in its file.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        self.report = Report(**(record["report"] | {"dropped": Counter(record["report"]["dropped"])}))
        with np.load(folder / "rows.npz", allow_pickle=False) as kept:
            self.starts, self.spans, self.span_starts, self.numbers = (
                kept[key] for key in ("starts", "spans", "span_starts", "numbers")
            )
        self.lengths = np.diff(self.starts)
        self.supervised = np.zeros(len(self.numbers), np.int64)
        tokens = self.spans[:, 1] - np.maximum(self.spans[:, 0], 1)
        np.add.at(self.supervised, np.repeat(np.arange(len(self.numbers)), np.diff(self.span_starts)), tokens)
        size = self.starts[-1] if len(self.numbers) else 0
        self._ids = np.memmap(folder / "ids.bin", record["dtype"], "r", shape=(size,)) if size else np.zeros(0, "<u2")

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids (tokens,) and supervised spans (spans, 2) of a row."""
        return (
            self._ids[self.starts[row] : self.starts[row + 1]],
            self.spans[self.span_starts[row] : self.span_starts[row + 1]],
        )

    def __reduce__(self) -> tuple[type["EncodedRows"], tuple[str, Path]]:
        return EncodedRows, (self.name, self.folder)  # another process maps the file itself


def open_encoded(encoder: PromptEncoder, source: Source, settings: Settings, cache: Path) -> EncodedRows:
    """The rows of a file, encoded unless that was done before.

    Raises ValueError with the place of a row that cannot be read or rendered.
    """
    folder = cache / cache_key(encoder, source.path, settings)
    if not (folder / "report.json").is_file():
        _write(encoder, source, settings, folder)
    return EncodedRows(source.name, folder)


def cache_key(encoder: PromptEncoder, path: Path, settings: Settings) -> str:
    """What the encoded rows of a file depend on, as 32 hexadecimal digits."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    spelled = [VERSION, content, path.suffix, asdict(settings), encoder.fingerprint]
    return hashlib.blake2b(json.dumps(spelled).encode(), digest_size=16).hexdigest()


def _write(encoder: PromptEncoder, source: Source, settings: Settings, folder: Path) -> None:
    """Encode a file into a folder that is there whole or not at all, whoever else does so at the same time."""
    from tqdm import tqdm

    dtype = np.dtype("<u2" if len(encoder.tokenizer) <= 1 << 16 else "<i4")
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    report = Report()
    lengths, spans, counts, numbers = [np.zeros(0, np.int64)], [np.zeros((0, 2), np.int32)], [], []
    try:
        rows = tqdm(iterate_instructions(source.path), f"tokenising {source.name}", unit=" rows", disable=None)
        with (partial / "ids.bin").open("wb") as file:
            for kept in encode(encoder, rows, settings, report):
                for number, example in kept:
                    file.write(np.array(example.ids, dtype).tobytes())
                    numbers.append(number)
                    counts.append(len(example.spans))
                lengths.append(np.array([len(example.ids) for _, example in kept], np.int64))
                spans.append(np.array([span for _, example in kept for span in example.spans], np.int32).reshape(-1, 2))
        np.savez(
            partial / "rows.npz",
            starts=np.concatenate([[0], np.concatenate(lengths).cumsum()]).astype(np.int64),
            spans=np.concatenate(spans),
            span_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            numbers=np.array(numbers, np.int64),
        )
        record = {"file": str(source.path), "dtype": dtype.str, "report": vars(report)}
        (partial / "report.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / "report.json").is_file():  # else another rank was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
