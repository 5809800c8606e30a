"""Read, write and verify a corpus on disk: Megatron's indexed dataset with a JSON sidecar.

    <prefix>.bin             token ids of all samples, concatenated (uint16; int32 for vocabularies over 65,535)
    <prefix>.idx             magic, version, dtype code, counts; the length of each sample (int32); the offset of each
                             sample in .bin (int64, bytes); the first sample of each document, then the sample count
                             (int64)
    <prefix>.json            sources as ranges of samples, tokenizer, settings, versions, sha256 of .bin and .idx
    <prefix>.dropped.jsonl   dropped documents and samples with the reason; absent if nothing was dropped

One sample is one Megatron sequence. Layout of .idx: megatron/core/datasets/indexed_dataset.py of Megatron-LM.
`pretrain/preprocess.py` is the command line.
"""

import hashlib
import json
import operator
import shutil
import struct
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, SupportsIndex

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<QBQQ")  # version, dtype code, samples, length of the boundary array (documents + 1)
VERSION = 1
DTYPES: dict[int, np.dtype[Any]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}  # two of Megatron's dtype codes
LARGEST_UINT16_VOCABULARY = 65_535
CHUNK = 1 << 20  # items or bytes read or written at a time


def files(prefix: str | Path) -> dict[str, Path]:
    """Return the paths of a corpus by suffix: bin, idx, json and dropped.jsonl."""
    return {ending: Path(f"{prefix}.{ending}") for ending in ("bin", "idx", "json", "dropped.jsonl")}


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the dtype of stored token ids for a vocabulary of `vocab_size` ids."""
    return DTYPES[8] if vocab_size <= LARGEST_UINT16_VOCABULARY else DTYPES[4]


class Corpus:
    """A memory-mapped corpus: `corpus[i]` is a read-only view of sample i's ids; opening it reads no tokens.

    Attributes:
        lengths: (samples,) int32, tokens per sample.
        pointers: (samples,) int64, the offset of each sample in .bin, in bytes.
        documents: (documents + 1,) int64, the first sample of each document, then the sample count.
        sidecar: the content of `<prefix>.json`.

    Raises FileNotFoundError or ValueError if a file is missing, damaged, truncated or empty.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        paths = files(prefix)
        self.sidecar = read_sidecar(prefix)
        for ending in ("bin", "idx"):
            if not paths[ending].is_file():
                raise FileNotFoundError(f"{paths[ending]} does not exist, though {paths['json']} does; copy all three")
        self.dtype, samples, boundaries = read_header(paths["idx"])
        if samples == 0 or paths["bin"].stat().st_size == 0:
            raise ValueError(f"{prefix} is an empty corpus; write it from text that has documents")

        index = np.memmap(paths["idx"], mode="r")
        at = len(MAGIC) + HEADER.size
        self.lengths: np.ndarray = np.frombuffer(index, "<i4", samples, at)
        self.pointers: np.ndarray = np.frombuffer(index, "<i8", samples, at + 4 * samples)
        self.documents: np.ndarray = np.frombuffer(index, "<i8", boundaries, at + 12 * samples)

        size = paths["bin"].stat().st_size
        by_index = int(self.pointers[-1]) + int(self.lengths[-1]) * self.dtype.itemsize
        by_sidecar = self.sidecar["tokens"] * self.dtype.itemsize
        if by_index != size or by_sidecar != size or self.sidecar["samples"] != samples:
            raise ValueError(
                f"{paths['bin']} has {size:,} bytes where its index says {by_index:,} and its sidecar {by_sidecar:,}; "
                "it is truncated or belongs to another corpus: copy or write it again"
            )
        self._tokens: np.ndarray = np.memmap(paths["bin"], mode="r", dtype=self.dtype)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        """Return sample `index`: (tokens,) uint16 or int32, read-only."""
        at = operator.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"sample {at} of {len(self)} in {self.prefix}")
        start = int(self.pointers[at]) // self.dtype.itemsize
        return np.asarray(self._tokens[start : start + int(self.lengths[at])])

    def tokens(self, first: int, last: int) -> np.ndarray:
        """Return the ids of samples `first` to `last` (exclusive), concatenated: (tokens,), read-only."""
        starts = (int(self.pointers[at]) // self.dtype.itemsize if at < len(self) else None for at in (first, last))
        return np.asarray(self._tokens[slice(*starts)])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[type["Corpus"], tuple[str]]:
        return Corpus, (self.prefix,)  # a process that unpickles the corpus maps the files itself

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The sources in order, {name, type, start, end (samples), documents, tokens}; they cover the corpus."""
        return self.sidecar["sources"]

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer's id-ordered table of pieces."""
        return self.sidecar["tokenizer"]["fingerprint"]

    @property
    def vocab_size(self) -> int:
        """The largest possible id + 1."""
        return self.sidecar["tokenizer"]["vocab_size"]

    @property
    def seq_length(self) -> int:
        """The length limit of a sample, in tokens."""
        return self.sidecar["seq_length"]


def read_sidecar(prefix: str | Path) -> dict[str, Any]:
    """Parse `<prefix>.json`; raises FileNotFoundError if there is no corpus, ValueError if it is damaged."""
    path = files(prefix)["json"]
    if not path.is_file():
        if files(prefix)["idx"].is_file():
            raise ValueError(
                f"{path} is missing beside {prefix}.idx: sources and tokenizer are unknown without it; "
                "copy it too, or write the corpus again: python pretrain/preprocess.py --mode write"
            )
        raise FileNotFoundError(
            f"{path} does not exist; give a corpus by its prefix, the path without .bin, "
            "or write one: python pretrain/preprocess.py --mode write"
        )
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        sidecar["sources"], sidecar["tokenizer"]["fingerprint"], sidecar["tokens"], sidecar["samples"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a corpus sidecar ({error}); copy or write the corpus again") from None
    return sidecar


def read_header(path: Path) -> tuple[np.dtype[Any], int, int]:
    """Return id dtype, sample count and length of the boundary array; raises ValueError if the index is damaged."""
    with path.open("rb") as file:
        magic, header = file.read(len(MAGIC)), file.read(HEADER.size)
    if magic != MAGIC or len(header) != HEADER.size:
        raise ValueError(f"{path} does not begin with Megatron's magic MMIDIDX; it is damaged or not a corpus index")
    version, code, samples, boundaries = HEADER.unpack(header)
    if version != VERSION or code not in DTYPES:
        raise ValueError(
            f"{path} has version {version} and dtype code {code}; supported: version 1, code 8 (uint16) or 4 (int32)"
        )
    needed = len(MAGIC) + HEADER.size + 12 * samples + 8 * boundaries
    if path.stat().st_size != needed:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes where its header says {needed:,}; "
            "it is truncated: copy or write the corpus again"
        )
    return DTYPES[code], samples, boundaries


class CorpusWriter:
    """Context manager that writes a corpus to `<prefix>.partial/`; `finish` moves its files, an error removes them.

        with CorpusWriter("data/en", vocab_size=32000) as writer:
            writer.add(ids, lengths, samples_per_document)
            writer.finish(sources, tokenizer, settings, versions, seq_length)

    Raises FileExistsError if the corpus exists and `overwrite` is False, OSError if the disk is full.
    """

    def __init__(self, prefix: str | Path, vocab_size: int, overwrite: bool = False) -> None:
        self.prefix = Path(prefix)
        self.dtype = token_dtype(vocab_size)
        self.vocab_size = vocab_size
        self.samples = self.documents = self.tokens = self.dropped = 0
        existing = [str(path) for path in files(prefix).values() if path.exists()]
        if existing and not overwrite:
            raise FileExistsError(f"{existing[0]} exists already; name another prefix, remove it, or add --overwrite")
        self._new_parent = not self.prefix.parent.exists()
        self.folder = Path(f"{prefix}.partial")
        shutil.rmtree(self.folder, ignore_errors=True)  # left by a killed run
        self.folder.mkdir(parents=True)
        self._streams: dict[str, BinaryIO] = {
            name: (self.folder / name).open("wb") for name in ("bin", "lengths", "documents", "dropped.jsonl")
        }
        self._hash = hashlib.sha256()

    def __enter__(self) -> "CorpusWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError) if error else nullcontext():
            self._close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._new_parent:
            with suppress(OSError):  # not empty after a successful run
                self.prefix.parent.rmdir()

    def add(self, ids: np.ndarray, lengths: np.ndarray, samples_per_document: np.ndarray) -> None:
        """Append documents.

        ids: (tokens,), all documents concatenated. lengths: (samples,), each at least 1. samples_per_document:
        (documents,).
        """
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ValueError(f"ids {ids.min()} to {ids.max()} do not fit a vocabulary of {self.vocab_size}")
        assert lengths.sum() == ids.size and samples_per_document.sum() == lengths.size, "lengths do not add up"
        self._write_tokens(ids.astype(self.dtype, copy=False).tobytes())
        self._write_index(lengths, self.samples + np.cumsum(samples_per_document, dtype=np.int64))

    def add_files(self, ids: Path, lengths: Path, samples_per_document: Path) -> None:
        """Append documents from files that hold the arguments of `add`: ids in the corpus's dtype, counts as int32."""
        for block in _blocks(ids):
            self._write_tokens(block)
        end = self.samples
        for block in _blocks(lengths):
            self._write_index(np.frombuffer(block, "<i4"), np.empty(0, np.int64))
        for block in _blocks(samples_per_document):
            boundaries = end + np.cumsum(np.frombuffer(block, "<i4"), dtype=np.int64)
            self._write_index(np.empty(0, np.int32), boundaries)
            end = int(boundaries[-1])
        assert end == self.samples, "lengths do not add up"

    def add_corpus(self, corpus: Corpus) -> None:
        """Append the documents of a corpus; raises ValueError if its .bin differs from the sha256 in its sidecar."""
        digest = hashlib.sha256()
        for block in _blocks(files(corpus.prefix)["bin"]):
            digest.update(block)
            self._write_tokens(block)
        if digest.hexdigest() != corpus.sidecar["sha256"]["bin"]:
            raise ValueError(f"{corpus.prefix}.bin differs from the sha256 in its sidecar; copy or write it again")
        base = self.samples
        for at in range(0, len(corpus), CHUNK):
            self._write_index(corpus.lengths[at : at + CHUNK], np.empty(0, np.int64))
        for at in range(1, len(corpus.documents), CHUNK):
            self._write_index(np.empty(0, np.int32), base + corpus.documents[at : at + CHUNK])

    def drop(self, record: dict[str, Any]) -> None:
        """Add a record to `<prefix>.dropped.jsonl`."""
        self._write("dropped.jsonl", (json.dumps(record, ensure_ascii=False) + "\n").encode())
        self.dropped += 1

    def finish(
        self,
        sources: list[dict[str, Any]],
        tokenizer: dict[str, Any],
        settings: dict[str, Any],
        versions: dict[str, str],
        seq_length: int,
    ) -> dict[str, Any]:
        """Assemble the index, write the sidecar and move all files to their final paths; return the sidecar.

        Raises ValueError if no document was added.
        """
        if not self.samples:
            raise ValueError(
                f"no document to write to {self.prefix} ({self.dropped} dropped: without text or too short); "
                "nothing was written: check the input files and --min_length"
            )
        self._close()
        sidecar = {
            "format": "megatron indexed dataset 1", "dtype": self.dtype.name, "seq_length": seq_length,
            "samples": self.samples, "documents": self.documents, "tokens": self.tokens, "dropped": self.dropped,
            "sources": sources, "tokenizer": tokenizer, "settings": settings, "versions": versions,
            "sha256": {"bin": self._hash.hexdigest(), "idx": self._assemble_index()},
        }  # fmt: skip
        text = json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n"
        (self.folder / "json").write_text(text, encoding="utf-8")
        targets = files(self.prefix)
        # The sidecar marks a corpus as complete: the old one is removed first, the new one is moved last.
        for path in (targets["json"], targets["dropped.jsonl"]):
            path.unlink(missing_ok=True)
        for ending in ("bin", "idx", *(["dropped.jsonl"] if self.dropped else []), "json"):
            (self.folder / ending).replace(targets[ending])
        return sidecar

    def _assemble_index(self) -> str:
        """Write the index from the streams of lengths and boundaries; return its sha256."""
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        self._streams["idx"] = (self.folder / "idx").open("wb")
        digest = hashlib.sha256()

        def put(data: bytes) -> None:
            digest.update(data)
            self._write("idx", data)

        put(MAGIC + HEADER.pack(VERSION, code, self.samples, self.documents + 1))
        for lengths in self._chunks("lengths", "<i4"):
            put(lengths.tobytes())
        pointer = 0
        for lengths in self._chunks("lengths", "<i4"):
            ends = pointer + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
            put(np.concatenate([[pointer], ends[:-1]]).astype("<i8").tobytes())
            pointer = int(ends[-1])
        put(np.zeros(1, "<i8").tobytes())
        for boundaries in self._chunks("documents", "<i8"):
            put(boundaries.tobytes())
        self._close()
        return digest.hexdigest()

    def _chunks(self, name: str, dtype: str) -> Iterator[np.ndarray]:
        for block in _blocks(self.folder / name):
            yield np.frombuffer(block, dtype)

    def _write_tokens(self, data: bytes) -> None:
        self._hash.update(data)
        self._write("bin", data)
        self.tokens += len(data) // self.dtype.itemsize

    def _write_index(self, lengths: np.ndarray, boundaries: np.ndarray) -> None:
        self._write("lengths", lengths.astype("<i4").tobytes())
        self._write("documents", boundaries.astype("<i8").tobytes())
        self.samples += len(lengths)
        self.documents += len(boundaries)

    def _write(self, name: str, data: bytes) -> None:
        try:
            self._streams[name].write(data)
        except OSError as error:
            raise write_error(self.prefix, error) from None

    def _close(self) -> None:
        """Close all streams, then raise an error if one could not be closed (the disk is full)."""
        failure = None
        for stream in self._streams.values():
            try:
                stream.close()
            except OSError as error:
                failure = error
        self._streams.clear()
        if failure:
            raise write_error(self.prefix, failure)


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file in blocks of CHUNK, which is a multiple of 8."""
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            yield block


def write_error(prefix: Path, error: OSError) -> OSError:
    """Return the error to raise after writing a corpus failed with `error`."""
    return OSError(f"{prefix} could not be written ({error.strerror}); free space there or name a prefix elsewhere")


def verify(prefix: str | Path) -> Corpus:
    """Check all bytes of a corpus against its sidecar and return it; raises ValueError at the first difference."""
    corpus = Corpus(prefix)
    for ending in ("bin", "idx"):
        path = files(prefix)[ending]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != corpus.sidecar["sha256"][ending]:
            raise ValueError(f"{path} differs from the sha256 in the sidecar; copy or write the corpus again")
    end = 0
    for at in range(0, len(corpus), CHUNK):
        ends = end + np.cumsum(corpus.lengths[at : at + CHUNK], dtype=np.int64)
        starts = np.concatenate([[end], ends[:-1]])
        if (corpus.pointers[at : at + CHUNK] != starts * corpus.dtype.itemsize).any():
            raise ValueError(f"{prefix}.idx: samples from {at} on overlap or leave gaps; write the corpus again")
        end = int(ends[-1])
    if corpus.documents[0] != 0 or corpus.documents[-1] != len(corpus) or (np.diff(corpus.documents) < 0).any():
        raise ValueError(f"{prefix}.idx: the document boundaries do not cover the samples; write the corpus again")
    edges = [0, *(source["end"] for source in corpus.sources)]
    if edges[:-1] != [source["start"] for source in corpus.sources] or edges[-1] != len(corpus):
        raise ValueError(f"{prefix}.json: the sources do not cover the samples in order; write the corpus again")
    for at in range(0, len(corpus._tokens), CHUNK):
        if int(corpus._tokens[at : at + CHUNK].max()) >= corpus.vocab_size:
            raise ValueError(
                f"{prefix}.bin has ids of {corpus.vocab_size} or more, which its tokenizer lacks; write it again"
            )
    return corpus


def require_space(prefix: str | Path, size: int) -> None:
    """Raise ValueError if the disk of `prefix` has less than `size` bytes free."""
    folder = Path(prefix).absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ValueError(
            f"{prefix} needs about {size / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free; "
            "free space there or name a prefix elsewhere"
        )
