"""Prune a corpus: write a copy without listed samples, such as samples that were already trained on."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from corpus_files.corpus import CHUNK, Corpus, CorpusWriter, files, require_space, verify
from corpus_files.corpus_merging import copy_dropped_records


def read_sample_ids(path: str | Path, samples: int) -> np.ndarray:
    """Read sample ids from a file with one id a line or a JSON list: (ids,) int64, ascending and unique.

    Raises ValueError if the file has no id, or an entry that is not a whole number from 0 to samples - 1.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        listed = json.loads(text) if text.lstrip().startswith("[") else text.split()
        if not all(type(item) is int or (isinstance(item, str) and item.isascii()) for item in listed):
            raise ValueError("it must have whole numbers only")
        ids = np.unique(np.array([int(item) for item in listed], dtype=np.int64))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not a list of sample ids ({error}); write one a line, or a JSON list") from None
    if not ids.size:
        raise ValueError(f"{path} lists no sample; there is nothing to prune")
    outside = ids[(ids < 0) | (ids >= samples)]
    if outside.size:
        raise ValueError(f"{path} lists sample {outside[0]}, but the corpus has 0 to {samples - 1}; correct the list")
    return ids


def prune(prefix: str | Path, ids_path: str | Path, new_prefix: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Write a copy of a corpus without the samples listed in a file; return its sidecar.

    Documents and sources without remaining samples are removed. `<new_prefix>.dropped.jsonl` records the ranges of
    removed samples, the sidecar's settings record the list. Raises ValueError if the old corpus differs from its
    sidecar.
    """
    corpus = verify(prefix)
    removed = read_sample_ids(ids_path, len(corpus))
    require_space(new_prefix, sum(path.stat().st_size for path in files(prefix).values() if path.exists()))
    listed = Path(ids_path)
    with CorpusWriter(new_prefix, corpus.vocab_size, overwrite) as writer:
        copy_dropped_records(corpus, writer)
        for ids, lengths, per_document in _kept(corpus, removed):
            writer.add(ids, lengths, per_document)
        gone = _emptied(corpus, removed)
        sources = []
        for source in corpus.sources:
            first, last = np.searchsorted(removed, [source["start"], source["end"]])
            for begin, end in _ranges(removed[first:last]):
                writer.drop(
                    {"corpus": str(prefix), "source": source["name"], "samples": [begin, end], "reason": "pruned"}
                )
            start, end = source["start"] - int(first), source["end"] - int(last)
            if start < end:
                documents = source["documents"] - int(((gone >= source["start"]) & (gone < source["end"])).sum())
                tokens = source["tokens"] - int(corpus.lengths[removed[first:last]].sum())
                sources.append(source | {"start": start, "end": end, "documents": documents, "tokens": tokens})
        settings = corpus.sidecar["settings"] | {
            "pruned": {
                "corpus": str(prefix), "sha256": corpus.sidecar["sha256"], "list": str(listed),
                "list_sha256": hashlib.sha256(listed.read_bytes()).hexdigest(), "samples": len(removed),
            }
        }  # fmt: skip
        return writer.finish(
            sources, corpus.sidecar["tokenizer"], settings, corpus.sidecar["versions"], corpus.seq_length
        )


def _kept(corpus: Corpus, removed: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the arguments of `CorpusWriter.add` for the remaining samples, in chunks of whole documents."""
    document, documents = 0, len(corpus.documents) - 1
    while document < documents:
        first = int(corpus.documents[document])
        enough = np.searchsorted(corpus.pointers, corpus.pointers[first] + CHUNK * corpus.dtype.itemsize)
        after = max(document + 1, int(np.searchsorted(corpus.documents, enough, "right")) - 1)
        boundaries = np.asarray(corpus.documents[document : after + 1])
        last = int(boundaries[-1])
        keep = np.ones(last - first, dtype=bool)
        low, high = np.searchsorted(removed, [first, last])
        keep[removed[low:high] - first] = False
        lengths = np.asarray(corpus.lengths[first:last])
        ids = corpus.tokens(first, last)
        per_document = np.diff(np.append(0, np.cumsum(keep))[boundaries - first])
        yield ids[np.repeat(keep, lengths)], lengths[keep], per_document[per_document > 0]
        document = after


def _emptied(corpus: Corpus, removed: np.ndarray) -> np.ndarray:
    """Return the first sample of each document whose samples are all removed."""
    documents, lost = np.unique(np.searchsorted(corpus.documents, removed, "right") - 1, return_counts=True)
    return np.asarray(
        corpus.documents[documents[lost == corpus.documents[documents + 1] - corpus.documents[documents]]]
    )


def _ranges(ids: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield each run of consecutive numbers as (first, last + 1)."""
    for run in np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1):
        if run.size:
            yield int(run[0]), int(run[-1]) + 1
