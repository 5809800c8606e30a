"""Pack the samples of a corpus into sequences, source by source, and store the sequences beside the corpus.

    <prefix>.rows-4096/           sequences of at most 4096 tokens; other settings are appended to the name
        samples.npy               (samples,) int64, sample indices in the order of the sequences
        starts.npy                (sequences + 1,) int64, the start of each sequence in samples.npy, then the number of
                                  samples
        rows.json                 settings, corpus hashes, and the training and held-out sequences of each source

Packing is best-fit decreasing: samples are placed longest first, each into the fullest sequence with enough free space
(Johnson 1973).
"""

import errno
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from corpus_files.corpus import Corpus
from partial_folders.cache_entries import ensure_cache_entry

CHUNK_SAMPLES = 1 << 22  # samples packed together; larger chunks need more memory and hardly fill sequences better
VERSION = 3  # version of the algorithm and the files; a folder of another version is replaced


def best_fit_decreasing(lengths: np.ndarray, block_size: int) -> np.ndarray:
    """Assign samples to sequences of at most block_size tokens; return each sample's sequence index, (samples,) int64.

    lengths: (samples,) int32, each from 1 to block_size.
    """
    order = np.argsort(-lengths, kind="stable")
    sequences_by_space: list[list[int]] = [[] for _ in range(block_size + 1)]  # index: number of free tokens
    spaces = count = 0  # spaces: bit s is set if a sequence has s free tokens
    chosen = []
    for length in lengths[order].tolist():
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1  # the lowest set bit is the least space that fits
            sequence = sequences_by_space[space].pop()
            spaces ^= 0 if sequences_by_space[space] else 1 << space
        else:
            space, sequence, count = block_size, count, count + 1
        chosen.append(sequence)
        if space > length:
            sequences_by_space[space - length].append(sequence)
            spaces |= 1 << (space - length)
    sequence_of = np.empty(len(lengths), dtype=np.int64)
    sequence_of[order] = chosen
    return sequence_of


def held_out_samples(corpus: Corpus, fraction: float, seed: int) -> np.ndarray:
    """Return whether each sample is held out, (samples,) bool.

    fraction: the share of each source's documents that is held out. Above 0, a source of two or more documents has at
    least one held-out and one training document.
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
    """Settings of packing."""

    block_size: int  # maximum tokens of a sequence
    packed: bool = True  # False: one sample per sequence
    eval_fraction: float = 0.0  # share of each source's documents that is held out
    seed: int = 0  # chooses the held-out documents

    @property
    def folder_suffix(self) -> str:
        """The part of the folder's name that follows the corpus prefix: rows-4096, rows-4096-single, …."""
        words = [f"rows-{self.block_size}"] + ([] if self.packed else ["single"])
        return "-".join(words + ([f"without-{self.eval_fraction:g}-{self.seed}"] if self.eval_fraction else []))


class PackedSequences:
    """The packed sequences of a corpus, memory-mapped: item i is the sample indices of sequence i, (n,) int64.

    Attributes:
        sources: for each source, {name, type, train, held_out}; the last two are ranges [start, end) of sequences.
        tokens, held_out_tokens: the number of tokens in training and in held-out sequences.
        packing: the settings.
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

    def __getitem__(self, index: int) -> np.ndarray:
        return self._samples[self._starts[index] : self._starts[index + 1]]

    def __reduce__(self) -> tuple[type["PackedSequences"], tuple[Path]]:
        return PackedSequences, (self.folder,)  # a data loader's worker process maps the files itself

    @property
    def train_count(self) -> int:
        """The number of training sequences."""
        return sum(source["train"][1] - source["train"][0] for source in self.sources)

    @property
    def efficiency(self) -> float:
        """The share of positions in training sequences that have a token, not padding."""
        return self.tokens / max(1, self.train_count * self.packing.block_size)


def open_packed_sequences(corpus: Corpus, packing: Packing, fallback: Path) -> PackedSequences:
    """Open the stored sequences of a corpus; if there are none, pack the samples and store the sequences.

    They are stored beside the corpus, or in the folder `fallback` if the corpus is read-only. Raises ValueError if a
    sample is longer than a sequence.
    """
    longest = int(corpus.lengths.max())
    if longest > packing.block_size:
        raise ValueError(
            f"{corpus.prefix} has samples of up to {longest} tokens, more than --block_size {packing.block_size}; "
            f"write it again with --seq_length {packing.block_size}, or raise --block_size"
        )
    beside_corpus = Path(f"{corpus.prefix}.{packing.folder_suffix}")
    in_fallback = fallback / beside_corpus.name

    def is_valid(folder: Path) -> bool:
        return _matches(folder, corpus, packing)

    if not is_valid(in_fallback):
        try:
            ensure_cache_entry(beside_corpus, partial(_pack, corpus, packing), is_valid)
            return PackedSequences(beside_corpus)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
    ensure_cache_entry(in_fallback, partial(_pack, corpus, packing), is_valid)
    return PackedSequences(in_fallback)


def _identity(corpus: Corpus, packing: Packing) -> dict[str, Any]:
    """Return the entries of rows.json on which the sequences depend."""
    return {"version": VERSION, "corpus": corpus.sidecar["sha256"], "packing": asdict(packing)}


def _matches(folder: Path, corpus: Corpus, packing: Packing) -> bool:
    """Return whether a folder has the sequences of this corpus with these settings."""
    try:
        record = json.loads((folder / "rows.json").read_text())
    except (OSError, ValueError):
        return False
    return _identity(corpus, packing).items() <= record.items()


def _pack(corpus: Corpus, packing: Packing, folder: Path) -> None:
    """Pack a corpus, source by source, and write the three files to a new folder."""
    folder.mkdir()
    is_held_out = held_out_samples(corpus, packing.eval_fraction, packing.seed)
    starts: list[np.ndarray] = [np.zeros(1, np.int64)]
    sources, written, count = [], 0, 0  # samples and sequences so far
    tokens = {"train": 0, "held_out": 0}
    with (folder / "samples.npy").open("wb") as samples:  # not memory-mapped: a full disk would raise SIGBUS
        header = {"descr": "<i8", "fortran_order": False, "shape": (len(corpus),)}
        np.lib.format.write_array_header_1_0(samples, header)
        for source in corpus.sources:
            ranges = {}
            span = np.arange(source["start"], source["end"])
            for split, chosen in (("train", span[~is_held_out[span]]), ("held_out", span[is_held_out[span]])):
                first = count
                for begin in range(0, len(chosen), CHUNK_SAMPLES):
                    chunk = chosen[begin : begin + CHUNK_SAMPLES]
                    order, ends = _pack_chunk(corpus.lengths[chunk], packing)
                    samples.write(chunk[order].data)
                    starts.append(written + ends)
                    written, count = written + len(chunk), count + len(ends)
                ranges[split] = [first, count]
                tokens[split] += int(corpus.lengths[chosen].sum())
            sources.append({"name": source["name"], "type": source["type"], **ranges})
    np.save(folder / "starts.npy", np.concatenate(starts))
    totals = {"tokens": tokens["train"], "held_out_tokens": tokens["held_out"]}
    record = _identity(corpus, packing) | {"sources": sources} | totals
    (folder / "rows.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _pack_chunk(lengths: np.ndarray, packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    """Pack the samples of a chunk; lengths: (samples,), tokens of each.

    Returns the indices of the samples in the order of the sequences, (samples,), and where each sequence ends in this
    array, (sequences,).
    """
    if not packing.packed:
        return np.arange(len(lengths)), np.arange(1, len(lengths) + 1)
    sequence_of = best_fit_decreasing(lengths, packing.block_size)
    return np.argsort(sequence_of, kind="stable"), np.bincount(sequence_of).cumsum()
