"""Read, write and verify a corpus on disk: Megatron's indexed dataset with a JSON sidecar.

    <prefix>.bin             token ids of all samples, concatenated (uint16; int32 for vocabularies over 65,535)
    <prefix>.idx             magic, version, dtype code, counts; the length of each sample (int32); the offset of each
                             sample in .bin (int64, bytes); the boundaries of the documents (int64): the first sample of
                             each document, then the number of samples
    <prefix>.json            sources as ranges of samples, tokenizer, settings, versions, sha256 of .bin and .idx
    <prefix>.dropped.jsonl   dropped documents and samples with the reason; absent if nothing was dropped

One sample is one sequence in Megatron's terms. Source of the layout: megatron/core/datasets/indexed_dataset.py of
Megatron-LM. The command is `pretrain/preprocess.py`.
"""

import errno
import hashlib
import json
import operator
import os
import shutil
import struct
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex

import numpy as np
from partial_folders import resume_journal

from corpus_files.corpus_sidecar import corpus_paths, read_sidecar

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<QBQQ")  # version, dtype code, samples, length of the boundary array (documents + 1)
VERSION = 1
DTYPES: dict[int, np.dtype[Any]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}  # two of Megatron's dtype codes
LARGEST_UINT16_VOCABULARY = 65_535
CHUNK_TOKENS = 1 << 20  # tokens that are read or written at a time


def counted(count: int, noun: str) -> str:
    """Return a count and its noun: "1 sample", "2,000 samples"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the dtype of stored token ids for a vocabulary of `vocab_size` ids."""
    return DTYPES[8] if vocab_size <= LARGEST_UINT16_VOCABULARY else DTYPES[4]


class Corpus:
    """A memory-mapped corpus: `corpus[i]` is a read-only view of sample i's ids; opening it reads no tokens.

    Attributes:
        ids: (tokens,) uint16 or int32, the ids of all samples, concatenated.
        lengths: (samples,) int32, tokens per sample.
        pointers: (samples,) int64, the offset of each sample in .bin, in bytes.
        documents: (documents + 1,) int64, the first sample of each document, then the number of samples.
        sidecar: the content of `<prefix>.json`.

    Raises FileNotFoundError or ValueError if a file is missing, damaged, truncated or empty.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        paths = corpus_paths(prefix)
        self.sidecar = read_sidecar(prefix)
        for ending in ("bin", "idx"):
            if not paths[ending].is_file():
                raise FileNotFoundError(
                    f"{paths[ending]} does not exist beside {paths['json']}; copy all files of the corpus"
                )
        self.dtype, samples, boundaries = read_header(paths["idx"])
        if samples == 0 or paths["bin"].stat().st_size == 0:
            raise ValueError(f"{prefix} is an empty corpus; write it from text that has documents")

        index = np.memmap(paths["idx"], mode="r")
        at = len(MAGIC) + HEADER.size
        self.lengths: np.ndarray = np.frombuffer(index, "<i4", samples, at)
        self.pointers: np.ndarray = np.frombuffer(index, "<i8", samples, at + 4 * samples)
        self.documents: np.ndarray = np.frombuffer(index, "<i8", boundaries, at + 12 * samples)

        size = paths["bin"].stat().st_size
        size_by_index = int(self.pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize
        size_by_sidecar = self.sidecar["tokens"] * self.dtype.itemsize
        if size_by_index != size or size_by_sidecar != size or self.sidecar["samples"] != samples:
            raise ValueError(
                f"{paths['bin']} has {size:,} bytes, but {size_by_index:,} according to its index and "
                f"{size_by_sidecar:,} according to its sidecar; it is truncated or belongs to another corpus: copy or "
                "write it again"
            )
        self.ids: np.ndarray = np.memmap(paths["bin"], mode="r", dtype=self.dtype)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        """Return sample `index`: (tokens,) uint16 or int32, read-only."""
        at = operator.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"sample {at} of {len(self)} in {self.prefix}")
        start = int(self.pointers[at]) // self.dtype.itemsize
        return np.asarray(self.ids[start : start + int(self.lengths[at])])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[type["Corpus"], tuple[str]]:
        return Corpus, (self.prefix,)  # the process that unpickles the corpus maps the files itself

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The sources in order: {name, type, start, end, documents, tokens}.

        start, end: a range of samples; the ranges of all sources cover the corpus. documents, tokens: their numbers.
        """
        return self.sidecar["sources"]

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer's id-ordered table of pieces."""
        return self.sidecar["tokenizer"]["fingerprint"]

    @property
    def vocab_size(self) -> int:
        """The largest id of the tokenizer + 1."""
        return self.sidecar["tokenizer"]["vocab_size"]

    @property
    def seq_length(self) -> int:
        """The maximum length of a sample, in tokens."""
        return self.sidecar["seq_length"]


def corpus_bytes(prefix: str | Path) -> int:
    """Return the size of a corpus on disk, in bytes."""
    return sum(path.stat().st_size for path in corpus_paths(prefix).values() if path.exists())


def dropped_records(prefix: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a corpus's dropped documents and samples."""
    path = corpus_paths(prefix)["dropped.jsonl"]
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def read_header(path: Path) -> tuple[np.dtype[Any], int, int]:
    """Return the dtype of the ids, the number of samples, and the length of the array of document boundaries.

    path: the index, `<prefix>.idx`. Raises ValueError if it is damaged, or its version or dtype is not supported.
    """
    with path.open("rb") as file:
        magic, header = file.read(len(MAGIC)), file.read(HEADER.size)
    if magic != MAGIC or len(header) != HEADER.size:
        raise ValueError(f"{path} does not begin with Megatron's magic MMIDIDX; it is damaged or not a corpus index")
    version, code, samples, boundaries = HEADER.unpack(header)
    if version != VERSION or code not in DTYPES:
        raise ValueError(
            f"{path} has version {version} and dtype code {code}; supported: version 1, code 8 (uint16) or 4 (int32): "
            "copy or write the corpus again"
        )
    needed = len(MAGIC) + HEADER.size + 12 * samples + 8 * boundaries
    if path.stat().st_size != needed:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes, but {needed:,} according to its header; "
            "it is truncated: copy or write the corpus again"
        )
    return DTYPES[code], samples, boundaries


class CorpusWriter:
    """Context manager that writes a corpus to `<prefix>.partial/`; `finish` moves its files to their final paths.

        with CorpusWriter("data/en", vocab_size=32000) as writer:
            writer.add(ids, lengths, samples_per_document)
            writer.finish(sources, tokenizer, settings, versions, seq_length)

    An exception in the block removes the partial files. Token ids are written immediately; the index is kept in memory
    until `finish`, at most 12 bytes per sample. Raises FileExistsError if the corpus exists and `overwrite` is False,
    ValueError if another process is writing the corpus, OSError if the disk is full.
    """

    def __init__(self, prefix: str | Path, vocab_size: int, overwrite: bool = False) -> None:
        self.prefix, self.vocab_size, self.dtype = Path(prefix), vocab_size, token_dtype(vocab_size)
        self.tokens = self.dropped = 0
        self._is_new_parent = not self.prefix.parent.exists()
        self.folder, self._lock = Path(f"{prefix}.partial"), ExitStack()
        was_killed = (self.folder / "json").exists()  # an earlier run was killed while it moved its files
        self._lock.enter_context(resume_journal.locked_folder(self.folder, ""))
        existing = [str(path) for path in corpus_paths(prefix).values() if path.exists()]
        if existing and not overwrite and (not was_killed or corpus_paths(prefix)["json"].exists()):
            self._remove_folder()
            raise FileExistsError(f"{existing[0]} exists already; name another prefix, remove it, or add --overwrite")
        self._bin, self._dropped = ((self.folder / name).open("wb") for name in ("bin", "dropped.jsonl"))
        self._hash = hashlib.sha256()
        self._lengths, self._boundaries = array("i"), array("q", [0])

    def __enter__(self) -> "CorpusWriter":
        return self

    def _remove_folder(self) -> None:
        """Remove and unlock the folder of partial files."""
        resume_journal.remove_folder(self.folder)
        self._lock.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for stream in (self._bin, self._dropped):
            with suppress(OSError):  # the disk is full, and `error` says so
                stream.close()
        self._remove_folder()
        if self._is_new_parent:
            with suppress(OSError):  # the folder is not empty after a successful run
                self.prefix.parent.rmdir()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(
                f"{self.prefix} could not be written ({error.strerror}); free space there or name a prefix elsewhere"
            ) from None

    @property
    def samples(self) -> int:
        """The number of samples added so far."""
        return len(self._lengths)

    @property
    def documents(self) -> int:
        """The number of documents added so far."""
        return len(self._boundaries) - 1

    def add(self, ids: np.ndarray, lengths: np.ndarray, samples_per_document: np.ndarray) -> None:
        """Append documents.

        ids: (tokens,), the ids of all documents, concatenated. lengths: (samples,), tokens of each sample, at least 1.
        samples_per_document: (documents,).
        """
        self.add_tokens(ids)
        self.add_index(lengths, samples_per_document)

    def add_tokens(self, ids: np.ndarray) -> None:
        """Append the ids of samples, (tokens,); the caller also passes the lengths of the samples to `add_index`.

        Raises ValueError if an id is outside the vocabulary.
        """
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ValueError(f"ids {ids.min()} to {ids.max()} do not fit a vocabulary of {self.vocab_size}")
        data = np.ascontiguousarray(ids, dtype=self.dtype).data
        self._hash.update(data)
        self._bin.write(data)
        self.tokens += ids.size

    def add_index(self, lengths: np.ndarray, samples_per_document: np.ndarray) -> None:
        """Append the lengths of samples, (samples,), and the number of samples of each document, (documents,)."""
        boundaries = self.samples + np.cumsum(samples_per_document, dtype="<i8")
        self._lengths.frombytes(lengths.astype("<i4").tobytes())
        self._boundaries.frombytes(boundaries.tobytes())

    def add_corpus(self, corpus: Corpus) -> None:
        """Append the documents of a corpus; raises ValueError if a file differs from its sha256 in the sidecar."""
        digest = hashlib.sha256()
        for at in range(0, len(corpus.ids), CHUNK_TOKENS):
            block = corpus.ids[at : at + CHUNK_TOKENS]
            digest.update(block.data)
            self.add_tokens(block)
        if digest.hexdigest() != corpus.sidecar["sha256"]["bin"]:
            raise ValueError(f"{corpus.prefix}.bin differs from the sha256 in its sidecar; copy or write it again")
        with corpus_paths(corpus.prefix)["idx"].open("rb") as index:
            if hashlib.file_digest(index, "sha256").hexdigest() != corpus.sidecar["sha256"]["idx"]:
                raise ValueError(f"{corpus.prefix}.idx differs from the sha256 in its sidecar; copy or write it again")
        self.add_index(corpus.lengths, np.diff(corpus.documents))

    def add_dropped(self, record: dict[str, Any]) -> None:
        """Add a record to `<prefix>.dropped.jsonl`; its key `documents` counts the dropped documents (default: 1)."""
        self._dropped.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
        self.dropped += record.get("documents", 1)

    def finish(
        self,
        sources: list[dict[str, Any]],
        tokenizer: dict[str, Any],
        settings: dict[str, Any],
        versions: dict[str, str],
        seq_length: int,
        allow_empty: bool = False,
    ) -> dict[str, Any]:
        """Write the index and the sidecar, and move all files to their final paths; return the sidecar.

        Raises ValueError if no document was added and `allow_empty` is False.
        """
        if not self.samples and not allow_empty:
            raise ValueError(
                f"no document to write to {self.prefix} ({counted(self.dropped, 'document')} dropped: without text, "
                "unreadable or too short); nothing was written: check the input files and --min_length"
            )
        for stream in (self._bin, self._dropped):
            stream.close()
        sidecar = {
            "format": "megatron indexed dataset 1", "dtype": self.dtype.name, "seq_length": seq_length,
            "samples": self.samples, "documents": self.documents, "tokens": self.tokens, "dropped": self.dropped,
            "sources": sources, "tokenizer": tokenizer, "settings": settings, "versions": versions,
            "sha256": {"bin": self._hash.hexdigest(), "idx": self._write_index()},
        }  # fmt: skip
        text = json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n"
        (self.folder / "json").write_text(text, encoding="utf-8")
        targets = corpus_paths(self.prefix)
        # The sidecar marks a corpus as complete: the old one is removed first, the new one is moved last.
        for path in (targets["json"], targets["dropped.jsonl"]):
            path.unlink(missing_ok=True)
        has_records = (self.folder / "dropped.jsonl").stat().st_size > 0
        endings = ("bin", "idx", *(["dropped.jsonl"] if has_records else []), "json")
        try:
            for ending in endings:
                with (self.folder / ending).open("rb") as file:
                    os.fsync(file.fileno())
                (self.folder / ending).replace(targets[ending])
        except BaseException:
            for ending in endings:
                if not (self.folder / ending).exists():  # it was moved
                    targets[ending].unlink(missing_ok=True)
            raise
        return sidecar

    def _write_index(self) -> str:
        """Write the index; return its sha256."""
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        lengths, boundaries = np.frombuffer(self._lengths, "<i4"), np.frombuffer(self._boundaries, "<i8")
        pointers = (np.cumsum(lengths, dtype="<i8") - lengths) * self.dtype.itemsize
        assert boundaries[-1] == len(lengths) and lengths.sum() == self.tokens, "lengths do not add up"
        header = HEADER.pack(VERSION, code, self.samples, self.documents + 1)
        digest = hashlib.sha256()
        with (self.folder / "idx").open("wb") as file:
            for part in (MAGIC + header, lengths.data, pointers.data, boundaries.data):
                digest.update(part)
                file.write(part)
        return digest.hexdigest()


def verify_corpus(prefix: str | Path) -> Corpus:
    """Compare all bytes of a corpus with its sidecar; return the corpus. Raises ValueError at the first difference."""
    corpus = Corpus(prefix)
    for ending in ("bin", "idx"):
        path = corpus_paths(prefix)[ending]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != corpus.sidecar["sha256"][ending]:
            raise ValueError(f"{path} differs from the sha256 in the sidecar; copy or write the corpus again")
    ends = np.cumsum(corpus.lengths, dtype=np.int64)
    if (corpus.pointers != (ends - corpus.lengths) * corpus.dtype.itemsize).any():
        raise ValueError(f"{prefix}.idx: samples overlap or leave gaps; write the corpus again")
    if corpus.documents[0] != 0 or corpus.documents[-1] != len(corpus) or (np.diff(corpus.documents) < 0).any():
        raise ValueError(f"{prefix}.idx: the document boundaries do not cover the samples; write the corpus again")
    bounds = [0, *(source["end"] for source in corpus.sources)]
    if bounds[:-1] != [source["start"] for source in corpus.sources] or bounds[-1] != len(corpus):
        raise ValueError(f"{prefix}.json: the sources do not cover the samples in order; write the corpus again")
    for at in range(0, len(corpus.ids), CHUNK_TOKENS):
        if int(corpus.ids[at : at + CHUNK_TOKENS].max()) >= corpus.vocab_size:
            raise ValueError(
                f"{prefix}.bin has ids of {corpus.vocab_size} or more, which are not in its tokenizer; write it again"
            )
    return corpus


def check_free_space(prefix: str | Path, size: int, alternative: str = "name a prefix elsewhere") -> None:
    """Raise ValueError if the disk of `prefix` has less than `size` bytes free.

    alternative: the second remedy in the message, besides freeing space.
    """
    folder = Path(prefix).absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ValueError(
            f"{prefix} needs about {size / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free; "
            f"free space there or {alternative}"
        )
