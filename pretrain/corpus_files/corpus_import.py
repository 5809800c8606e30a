"""Import corpora from other formats: Megatron's indexed dataset, and the published system's format.

Megatron's `.bin` and `.idx` have the format of corpus.py with more dtypes and without a sidecar; each sequence becomes
a sample. The published system wrote three files for a corpus of n samples:

    .bin    token ids, uint16
    .idx    n uint64, the offset of each sample in .bin, in tokens; then n uint16, the length of each sample
    .dis    a list saved with torch.save: the number of samples of each type, in the order of .bin
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from corpus_tokenizer.document_encoder import DocumentEncoder, load_encoder

from corpus_files.corpus import HEADER, MAGIC, VERSION, CorpusWriter, files, require_space

SAMPLES = 1 << 13  # samples read at a time
MEGATRON_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # Megatron's codes of integer dtypes


@dataclass
class ForeignCorpus:
    """A memory-mapped corpus of another format.

    ids: (tokens,). starts: (samples,), offsets in .bin; divided by `unit`, in tokens. lengths: (samples,), in tokens.
    documents: (documents + 1,), the first sample of each document, then the sample count; None if the format has no
    documents. types: the number of samples of each type, in order.
    """

    ids: np.ndarray
    starts: np.ndarray
    unit: int
    lengths: np.ndarray
    documents: np.ndarray | None
    types: list[int]


def open_megatron(prefix: str | Path) -> ForeignCorpus:
    """Memory-map a Megatron dataset (megatron/core/datasets/indexed_dataset.py).

    Raises ValueError if the index is truncated, or its version or dtype is not supported.
    """
    path = files(prefix)["idx"]
    index = np.memmap(path, mode="r")
    at = len(MAGIC) + HEADER.size
    found, code, samples, boundaries = HEADER.unpack(index[len(MAGIC) : at].tobytes().ljust(HEADER.size, b"\0"))
    if found != VERSION or code not in MEGATRON_DTYPES:
        raise ValueError(f"{path} has version {found} and dtype code {code}; supported: version 1 with integers")
    if len(index) < at + 12 * samples + 8 * boundaries:
        raise ValueError(f"{path} is truncated: it has {len(index):,} bytes for {samples:,} sequences; copy it again")
    dtype = np.dtype(MEGATRON_DTYPES[code])
    return ForeignCorpus(
        np.memmap(files(prefix)["bin"], mode="r", dtype=dtype),
        np.frombuffer(index, "<i8", samples, at + 4 * samples),
        dtype.itemsize,
        np.frombuffer(index, "<i4", samples, at),
        np.frombuffer(index, "<i8", boundaries, at + 12 * samples),
        [samples],
    )


def open_published(prefix: str | Path) -> ForeignCorpus:
    """Memory-map a corpus of the published system; raises ValueError if its files do not belong together."""
    paths = {ending: Path(f"{prefix}.{ending}") for ending in ("bin", "idx", "dis")}
    samples, rest = divmod(paths["idx"].stat().st_size, 10)
    if rest or not samples:
        raise ValueError(
            f"{paths['idx']} has neither Megatron's magic nor 10 bytes a sample; "
            "it is damaged or not a corpus index: copy it again"
        )
    index = np.memmap(paths["idx"], mode="r")
    return ForeignCorpus(
        np.memmap(paths["bin"], mode="r", dtype="<u2"),
        np.frombuffer(index, "<u8", samples),
        1,
        np.frombuffer(index, "<u2", samples, 8 * samples),
        None,
        _read_types(paths["dis"], samples),
    )


def _read_types(path: Path, samples: int) -> list[int]:
    """Return the sample counts in a .dis file; an empty list means that all samples have one type."""
    import torch

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist beside its .idx; copy it too: it has the types of the samples")
    try:
        types = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is not a list saved by torch ({str(error).splitlines()[0]}); copy it again") from None
    if not isinstance(types, list) or not all(type(count) is int and count >= 0 for count in types):
        raise ValueError(f"{path} does not hold a list of whole numbers; copy it again")
    types = types or [samples]
    if sum(types) != samples:
        raise ValueError(
            f"{path} counts {sum(types):,} samples, its .idx {samples:,}; they belong to different corpora"
        )
    return types


def import_corpus(
    prefix: str | Path, tokenizer_path: str, new_prefix: str | Path, overwrite: bool = False
) -> dict[str, Any]:
    """Write a corpus from Megatron's or the published system's files; return its sidecar.

    tokenizer_path: the tokenizer of the corpus, which neither format records. Samples are unchanged. If the format has
    no documents, a document begins at each sample that begins with BOS (without BOS: at each sample after an EOS).
    Raises ValueError or OSError if a file is missing or damaged, or has ids that the tokenizer lacks.
    """
    for ending in ("bin", "idx"):
        if not files(prefix)[ending].is_file():
            raise FileNotFoundError(f"{prefix}.{ending} does not exist; name a corpus by its path without .bin")
        if not files(prefix)[ending].stat().st_size:
            raise ValueError(f"{prefix}.{ending} is empty; copy it again")
    with files(prefix)["idx"].open("rb") as file:
        is_megatron = file.read(len(MAGIC)) == MAGIC
    encoder = load_encoder(tokenizer_path)
    corpus = open_megatron(prefix) if is_megatron else open_published(prefix)
    require_space(new_prefix, 2 * len(corpus.ids) + 12 * len(corpus.lengths))
    name = Path(prefix).name
    with CorpusWriter(new_prefix, encoder.vocab_size, overwrite) as writer:
        sources, start = [], 0
        for kind, samples in enumerate(corpus.types):
            before = writer.documents, writer.tokens
            for chunk in _documents(corpus, start, start + samples, encoder):
                writer.add(*chunk)
            sources.append(
                {
                    "name": name if len(corpus.types) == 1 else f"{name}-{kind}", "type": kind,
                    "start": start, "end": start + samples,
                    "documents": writer.documents - before[0], "tokens": writer.tokens - before[1],
                }
            )  # fmt: skip
            start += samples
        if writer.tokens != len(corpus.ids):
            raise ValueError(
                f"{prefix}.bin has {len(corpus.ids):,} ids, its index {writer.tokens:,}; "
                "they belong to different corpora, or one is truncated: copy both again"
            )
        settings = {"imported": {"prefix": str(prefix), "format": "megatron" if is_megatron else "published"}}
        tokenizer = encoder.describe() | {"path": encoder.folder}
        return writer.finish(sources, tokenizer, settings, {"numpy": version("numpy")}, int(corpus.lengths.max()))


def _documents(
    corpus: ForeignCorpus, start: int, end: int, encoder: DocumentEncoder
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the arguments of `CorpusWriter.add` for samples start to end, in chunks of whole documents."""
    many = SAMPLES
    while start < end:
        last = min(end, start + many)
        starts, lengths = (np.asarray(array[start:last]).astype(np.int64) for array in (corpus.starts, corpus.lengths))
        starts //= corpus.unit
        ends = starts + lengths
        if (ends[:-1] != starts[1:]).any() or ends[-1] > len(corpus.ids) or (lengths < 1).any():
            raise ValueError(f"samples {start} to {last} overlap, leave gaps or go beyond .bin; copy the corpus again")
        if corpus.documents is None:
            begins = _begins(corpus.ids, starts, encoder)
        else:
            low, high = np.searchsorted(corpus.documents, [start, last])
            begins = np.zeros(last - start, dtype=bool)
            begins[corpus.documents[low:high] - start] = True
        begins[0] = True
        edges = np.append(np.flatnonzero(begins), last - start)
        if last < end:
            edges = edges[:-1]  # the last document may continue after the chunk
        if len(edges) == 1:
            many *= 2  # one document fills the whole chunk
            continue
        count = int(edges[-1])
        yield np.asarray(corpus.ids[starts[0] : ends[count - 1]]), lengths[:count], np.diff(edges)
        start, many = start + count, SAMPLES


def _begins(ids: np.ndarray, starts: np.ndarray, encoder: DocumentEncoder) -> np.ndarray:
    """Return whether each sample begins a document: (samples,) bool."""
    if encoder.bos_id is not None:
        return np.asarray(ids[starts] == encoder.bos_id)
    return np.append(True, ids[starts[1:] - 1] == encoder.eos_id)
