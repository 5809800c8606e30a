"""Rows of samples: packed once, source by source, and kept beside the corpus.

    <prefix>.rows-4096/           rows of at most 4096 tokens; other settings stand in the name, too
        samples.npy               (samples,) int64, the samples of all rows, row after row
        starts.npy                (rows + 1,) int64, where each row begins in samples.npy
        rows.json                 settings, corpus, and for each source its rows to train on and its rows held out

Samples are taken longest first, each into the row where it leaves the least room (best-fit decreasing; Johnson 1973).
"""

import json
import os
import shutil
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from corpus_files.corpus import Corpus

AT_ONCE = 1 << 22  # samples packed together; more would fill rows no better and take more memory
VERSION = 2  # of the algorithm; rows of another version are made again


def best_fit_decreasing(lengths: np.ndarray, block_size: int) -> np.ndarray:
    """The index of each sample's row, (samples,) int64; no row has more than block_size tokens.

    lengths: (samples,) int32, each from 1 to block_size.
    """
    order = np.argsort(-lengths, kind="stable")
    with_room: list[list[int]] = [[] for _ in range(block_size + 1)]  # rows by the tokens that they still take
    rooms = rows = 0  # rooms: bit r is set where a row has room for r tokens
    chosen = []
    for length in lengths[order].tolist():
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1  # of the lowest bit
            row = with_room[room].pop()
            rooms ^= 0 if with_room[room] else 1 << room
        else:
            room, row, rows = block_size, rows, rows + 1
        chosen.append(row)
        if room > length:
            with_room[room - length].append(row)
            rooms |= 1 << (room - length)
    row_of = np.empty(len(lengths), dtype=np.int64)
    row_of[order] = chosen
    return row_of


def held_out(corpus: Corpus, fraction: float, seed: int) -> np.ndarray:
    """Which samples are held out, (samples,) bool: whole documents, this fraction of each source's.

    Of a source of two documents or more, at least one document is held out and at least one is not.
    """
    chosen = np.zeros(len(corpus.documents) - 1, dtype=bool)
    for source in corpus.sources:
        first, last = np.searchsorted(corpus.documents, [source["start"], source["end"]])
        wanted = min(max(round(fraction * (last - first)), 1), last - first - 1)
        if fraction and wanted > 0:
            draw = np.random.default_rng([seed, int(first)])
            chosen[first + draw.choice(last - first, wanted, replace=False)] = True
    return np.repeat(chosen, np.diff(corpus.documents))


@dataclass(frozen=True)
class Packing:
    """Settings of rows. block_size: tokens of a row; packed: else one sample a row; eval_fraction: see `held_out`."""

    block_size: int
    packed: bool = True
    eval_fraction: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        words = [f"rows-{self.block_size}"] + ([] if self.packed else ["single"])
        return "-".join(words + ([f"without-{self.eval_fraction:g}-{self.seed}"] if self.eval_fraction else []))


class Rows:
    """The rows of a corpus: `rows[i]` is (its samples' numbers,) int64; opening it maps the files only.

    Attributes:
        sources: for each of the corpus's, {name, type, rows: [from, to], held_out: [from, to]}.
        tokens, held_out_tokens: in rows to train on and in rows held out.
        packing: how they were made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        record = json.loads((folder / "rows.json").read_text())
        self.packing = Packing(**record["packing"])
        self.sources: list[dict[str, Any]] = record["sources"]
        self.tokens, self.held_out_tokens = record["tokens"], record["held_out_tokens"]
        self._samples = np.load(folder / "samples.npy", mmap_mode="r")
        self._starts = np.load(folder / "starts.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self._samples[self._starts[row] : self._starts[row + 1]]

    def __reduce__(self) -> tuple[type["Rows"], tuple[Path]]:
        return Rows, (self.folder,)  # another process maps the files itself

    @property
    def to_train_on(self) -> int:
        """How many rows are not held out."""
        return sum(source["rows"][1] - source["rows"][0] for source in self.sources)

    @property
    def efficiency(self) -> float:
        """The share of the slots of all rows to train on that hold a token."""
        return self.tokens / max(1, self.to_train_on * self.packing.block_size)


def open_rows(corpus: Corpus, packing: Packing, elsewhere: Path) -> Rows:
    """The rows of a corpus, made if necessary: beside the corpus, or in `elsewhere` if that folder is read-only.

    Raises ValueError where a sample is longer than a row.
    """
    longest = int(corpus.lengths.max())
    if longest > packing.block_size:
        raise ValueError(
            f"{corpus.prefix} holds samples of up to {longest} tokens, over --block_size {packing.block_size}; "
            f"write it again with --seq_length {packing.block_size}, or raise --block_size"
        )
    beside = Path(f"{corpus.prefix}.{packing.name}")
    aside = elsewhere / beside.name
    for folder in (beside, aside):
        if _is_of(folder, corpus, packing):
            return Rows(folder)
    try:
        _make(corpus, packing, beside)
    except PermissionError:
        _make(corpus, packing, aside)
        return Rows(aside)
    return Rows(beside)


def _identity(corpus: Corpus, packing: Packing) -> dict[str, Any]:
    return {"version": VERSION, "corpus": corpus.sidecar["sha256"], "packing": asdict(packing)}


def _is_of(folder: Path, corpus: Corpus, packing: Packing) -> bool:
    try:
        record = json.loads((folder / "rows.json").read_text())
    except (OSError, ValueError):
        return False
    return _identity(corpus, packing).items() <= record.items()


def _make(corpus: Corpus, packing: Packing, folder: Path) -> None:
    """Write the rows to a temporary folder and rename it; other processes may do so at the same time."""
    partial = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        apart = held_out(corpus, packing.eval_fraction, packing.seed)
        samples = np.lib.format.open_memmap(partial / "samples.npy", "w+", np.int64, (len(corpus),))
        starts: list[np.ndarray] = [np.zeros(1, np.int64)]
        sources, at, rows = [], 0, 0
        totals = {"tokens": 0, "held_out_tokens": 0}
        for source in corpus.sources:
            ranges = {}
            span = np.arange(source["start"], source["end"])
            for kind, chosen in (("rows", span[~apart[span]]), ("held_out", span[apart[span]])):
                first = rows
                for begin in range(0, len(chosen), AT_ONCE):
                    part = chosen[begin : begin + AT_ONCE]
                    ordered, ends = _rows_of(corpus.lengths[part], packing)
                    samples[at : at + len(part)] = part[ordered]
                    starts.append(at + ends)
                    at, rows = at + len(part), rows + len(ends)
                ranges[kind] = [first, rows]
                totals["tokens" if kind == "rows" else "held_out_tokens"] += int(corpus.lengths[chosen].sum())
            sources.append({"name": source["name"], "type": source["type"], **ranges})
        samples.flush()
        np.save(partial / "starts.npy", np.concatenate(starts))
        record = _identity(corpus, packing) | {"sources": sources} | totals
        (partial / "rows.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        shutil.rmtree(folder, ignore_errors=True)  # of another corpus of this name
        try:
            partial.rename(folder)
        except OSError:
            if not _is_of(folder, corpus, packing):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rows_of(lengths: np.ndarray, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    """The samples in the order of their rows, (samples,), and where each row ends in it, (rows,)."""
    if not packing.packed:
        return np.arange(len(lengths)), np.arange(1, len(lengths) + 1)
    row_of = best_fit_decreasing(lengths, packing.block_size)
    return np.argsort(row_of, kind="stable"), np.bincount(row_of).cumsum()
