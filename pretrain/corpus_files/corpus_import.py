"""Import corpora from Megatron's indexed dataset, and from the format of the original KnowLM pretraining code (2023).

Megatron's `.bin` and `.idx` have the format of corpus.py with more dtypes and without a sidecar; each sequence becomes
a sample. The original KnowLM pretraining code wrote three files for a corpus of n samples:

    .bin    token ids, uint16
    .idx    the offset of each sample in .bin, in tokens: n uint64; then the length of each sample: n uint16
    .dis    a list saved with torch.save: the number of samples of each type, in the order of .bin
"""

import pickle
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from corpus_tokenizer.document_encoder import DocumentEncoder, load_encoder

from corpus_files.corpus import CHUNK_TOKENS, HEADER, MAGIC, VERSION, CorpusWriter, check_free_space
from corpus_files.corpus_sidecar import corpus_paths

MEGATRON_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # Megatron's codes of integer dtypes


@dataclass
class ExternalCorpus:
    """A memory-mapped corpus of another format.

    Attributes:
        ids: (tokens,), the ids of all samples, concatenated.
        starts: (samples,), the offset of each sample, in tokens.
        lengths: (samples,), tokens per sample.
        documents: (documents + 1,), the first sample of each document, then the number of samples; None if the format
            has no documents.
        types: the number of samples of each type, in order.
    """

    ids: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    documents: np.ndarray | None
    types: list[int]


def open_megatron(prefix: str | Path) -> ExternalCorpus:
    """Memory-map a Megatron dataset (megatron/core/datasets/indexed_dataset.py).

    Raises ValueError if the index is truncated, or its version or dtype is not supported.
    """
    path = corpus_paths(prefix)["idx"]
    index = np.memmap(path, mode="r")
    at = len(MAGIC) + HEADER.size
    version, code, samples, boundaries = HEADER.unpack(index[len(MAGIC) : at].tobytes().ljust(HEADER.size, b"\0"))
    if version != VERSION or code not in MEGATRON_DTYPES:
        raise ValueError(f"{path} has version {version} and dtype code {code}; supported: version 1, integer dtypes")
    if len(index) < at + 12 * samples + 8 * boundaries:
        raise ValueError(f"{path} is truncated: it has {len(index):,} bytes for {samples:,} sequences; copy it again")
    dtype = np.dtype(MEGATRON_DTYPES[code])
    return ExternalCorpus(
        np.memmap(corpus_paths(prefix)["bin"], mode="r", dtype=dtype),
        np.frombuffer(index, "<i8", samples, at + 4 * samples) // dtype.itemsize,
        np.frombuffer(index, "<i4", samples, at),
        np.frombuffer(index, "<i8", boundaries, at + 12 * samples),
        [samples],
    )


def open_original_knowlm(prefix: str | Path) -> ExternalCorpus:
    """Memory-map a corpus of the original KnowLM code.

    Raises FileNotFoundError if there is no .dis file, ValueError if a file is damaged or belongs to another corpus.
    """
    paths = {ending: Path(f"{prefix}.{ending}") for ending in ("bin", "idx", "dis")}
    samples, rest = divmod(paths["idx"].stat().st_size, 10)
    if rest or not samples:
        raise ValueError(
            f"{paths['idx']} neither begins with Megatron's magic nor has 10 bytes per sample, as original KnowLM "
            "corpora have; it is damaged or not a corpus index: copy it again"
        )
    index = np.memmap(paths["idx"], mode="r")
    return ExternalCorpus(
        np.memmap(paths["bin"], mode="r", dtype="<u2"),
        np.frombuffer(index, "<u8", samples),
        np.frombuffer(index, "<u2", samples, 8 * samples),
        None,
        _read_type_counts(paths["dis"], samples),
    )


def _read_type_counts(path: Path, samples: int) -> list[int]:
    """Return the number of samples of each type from a .dis file; an empty list means one type."""
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
            f"{path} counts {sum(types):,} samples, its .idx {samples:,}; they belong to different corpora: copy both "
            "again"
        )
    return types


def import_corpus(
    prefix: str | Path, tokenizer_path: str, new_prefix: str | Path, overwrite: bool = False
) -> dict[str, Any]:
    """Write a corpus from files of Megatron or of the original KnowLM pretraining code; return its sidecar.

    tokenizer_path: the tokenizer of the corpus, which neither format records. Samples are unchanged. If the format has
    no documents, a document begins at the first sample of each type and at each sample that begins with BOS; if the
    tokenizer has no BOS, at each sample after one that ends with EOS. Raises ValueError or OSError if a file is missing
    or damaged, or has ids that the tokenizer lacks.
    """
    for ending in ("bin", "idx"):
        if not corpus_paths(prefix)[ending].is_file():
            raise FileNotFoundError(f"{prefix}.{ending} does not exist; name a corpus by its path without .bin")
        if not corpus_paths(prefix)[ending].stat().st_size:
            raise ValueError(f"{prefix}.{ending} is empty; copy it again")
    with corpus_paths(prefix)["idx"].open("rb") as file:
        is_megatron = file.read(len(MAGIC)) == MAGIC
    encoder = load_encoder(tokenizer_path)
    corpus = open_megatron(prefix) if is_megatron else open_original_knowlm(prefix)
    check_free_space(new_prefix, 2 * len(corpus.ids) + 12 * len(corpus.lengths))
    ends = np.cumsum(corpus.lengths, dtype=np.int64)
    if (corpus.starts != ends - corpus.lengths).any() or (corpus.lengths < 1).any():
        raise ValueError(f"{prefix}.idx: samples overlap, leave gaps or are empty; copy the corpus again")
    first = np.zeros(0, np.int64) if corpus.documents is None else corpus.documents
    if (first < 0).any() or (first > len(ends)).any() or (first[1:] < first[:-1]).any():
        raise ValueError(f"{prefix}.idx: the first samples of the documents are not in order; copy the corpus again")
    if ends[-1] != len(corpus.ids):
        raise ValueError(
            f"{prefix}.bin has {len(corpus.ids):,} ids, its index {ends[-1]:,}; "
            "they belong to different corpora, or one is truncated: copy both again"
        )
    type_boundaries = np.cumsum([0, *corpus.types])  # the first sample of each type, then the number of samples
    documents = _document_boundaries(corpus, type_boundaries, encoder)
    name = Path(prefix).name
    with CorpusWriter(new_prefix, encoder.vocab_size, overwrite) as writer:
        for at in range(0, len(corpus.ids), CHUNK_TOKENS):
            writer.add_tokens(corpus.ids[at : at + CHUNK_TOKENS])
        writer.add_index(corpus.lengths, np.diff(documents))
        sources = [
            {
                "name": name if len(corpus.types) == 1 else f"{name}-{kind}", "type": kind,
                "start": int(start), "end": int(end),
                "documents": int(np.subtract(*np.searchsorted(documents, [end, start]))),
                "tokens": int(corpus.lengths[start:end].sum(dtype=np.int64)),
            }
            for kind, (start, end) in enumerate(pairwise(type_boundaries))
        ]  # fmt: skip
        settings = {"imported": {"prefix": str(prefix), "format": "megatron" if is_megatron else "original KnowLM"}}
        tokenizer = encoder.sidecar_entry() | {"path": encoder.folder}
        return writer.finish(sources, tokenizer, settings, {"numpy": version("numpy")}, int(corpus.lengths.max()))


def _document_boundaries(corpus: ExternalCorpus, type_boundaries: np.ndarray, encoder: DocumentEncoder) -> np.ndarray:
    """Return the first sample of each document, then the number of samples; each type begins with a new document."""
    if corpus.documents is not None:
        first_samples = corpus.documents
    elif encoder.bos_id is not None:
        first_samples = np.flatnonzero(corpus.ids[corpus.starts] == encoder.bos_id)
    else:
        first_samples = np.flatnonzero(corpus.ids[corpus.starts[1:] - 1] == encoder.eos_id) + 1
    return np.union1d(first_samples, type_boundaries)
