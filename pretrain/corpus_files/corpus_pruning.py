"""Prune a corpus: write a copy without listed samples, such as samples that were already trained on."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from corpus_files.corpus import (
    CHUNK_TOKENS,
    CorpusWriter,
    check_free_space,
    corpus_bytes,
    dropped_records,
    verify_corpus,
)


def read_sample_ids(path: str | Path, samples: int) -> np.ndarray:
    """Read sample ids from a file with one id per line or a JSON list: (ids,) int64, ascending and unique.

    Raises ValueError if the file has no id, or an entry that is not a whole number from 0 to samples - 1.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        listed = json.loads(text) if text.lstrip().startswith("[") else text.split()
        if not all(type(item) is int or (isinstance(item, str) and item.isascii()) for item in listed):
            raise ValueError("an entry is not a whole number")
        ids = np.unique(np.array([int(item) for item in listed], dtype=np.int64))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not a list of sample ids ({error}); write one per line, or a JSON list") from None
    if not ids.size:
        raise ValueError(f"{path} lists no sample; there is nothing to prune")
    outside = ids[(ids < 0) | (ids >= samples)]
    if outside.size:
        raise ValueError(f"{path} lists sample {outside[0]}, but the corpus has 0 to {samples - 1}; correct the list")
    return ids


def prune(prefix: str | Path, ids_path: str | Path, new_prefix: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Write a copy of a corpus without the samples listed in a file; return the sidecar of the copy.

    Documents and sources without remaining samples are removed. `<new_prefix>.dropped.jsonl` records each range of
    removed samples and the number of documents that were removed with it; the settings in the sidecar record the list.
    Raises ValueError if the old corpus differs from its sidecar, the list is invalid, or no sample would remain.
    """
    corpus = verify_corpus(prefix)
    removed = read_sample_ids(ids_path, len(corpus))
    if len(removed) == len(corpus):
        raise ValueError(f"{ids_path} lists all samples of {prefix}, so no sample would remain; correct the list")
    check_free_space(new_prefix, corpus_bytes(prefix))
    is_kept = np.ones(len(corpus), dtype=bool)
    is_kept[removed] = False
    # At index i: the number of remaining samples before sample i of the old corpus, and the number of their tokens.
    samples_before = np.append(0, np.cumsum(is_kept))
    tokens_before = np.append(0, np.cumsum(np.where(is_kept, corpus.lengths, 0), dtype=np.int64))
    per_document = np.diff(samples_before[corpus.documents])
    with CorpusWriter(new_prefix, corpus.vocab_size, overwrite) as writer:
        for record in dropped_records(prefix):
            writer.add_dropped({"corpus": str(prefix)} | record)
        starts = corpus.pointers // corpus.dtype.itemsize
        for first, last in _ranges(np.flatnonzero(is_kept)):
            end = int(starts[last - 1] + corpus.lengths[last - 1])
            for at in range(int(starts[first]), end, CHUNK_TOKENS):
                writer.add_tokens(corpus.ids[at : min(at + CHUNK_TOKENS, end)])
        writer.add_index(corpus.lengths[is_kept], per_document[per_document > 0])
        sources = []
        for source in corpus.sources:
            begin, end = source["start"], source["end"]
            for samples in _ranges(removed[(removed >= begin) & (removed < end)]):
                first, last = np.searchsorted(corpus.documents, samples)
                emptied = int(np.count_nonzero(per_document[first:last] == 0))
                record = {"source": source["name"], "samples": samples, "documents": emptied, "reason": "pruned"}
                writer.add_dropped({"corpus": str(prefix)} | record)
            if samples_before[begin] < samples_before[end]:
                first, last = np.searchsorted(corpus.documents, [begin, end])
                counts = {
                    "start": int(samples_before[begin]), "end": int(samples_before[end]),
                    "documents": int(np.count_nonzero(per_document[first:last])),
                    "tokens": int(tokens_before[end] - tokens_before[begin]),
                }  # fmt: skip
                sources.append(source | counts)
        settings = corpus.sidecar["settings"] | {
            "pruned": {
                "corpus": str(prefix), "sha256": corpus.sidecar["sha256"], "list": str(ids_path),
                "list_sha256": hashlib.sha256(Path(ids_path).read_bytes()).hexdigest(), "samples": len(removed),
            }
        }  # fmt: skip
        return writer.finish(
            sources, corpus.sidecar["tokenizer"], settings, corpus.sidecar["versions"], corpus.seq_length
        )


def _ranges(ids: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield each run of consecutive numbers as (first, last + 1)."""
    for run in np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1):
        if run.size:
            yield int(run[0]), int(run[-1]) + 1
