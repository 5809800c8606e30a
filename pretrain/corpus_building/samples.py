"""Make the samples of a batch of lines: encode and cut documents, select samples, and record dropped documents."""

import hashlib
import operator
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from corpus_files.corpus import token_dtype
from corpus_tokenizer.document_encoder import DocumentEncoder

from corpus_building import segmentation
from corpus_building.documents import Batch, Shard, TextSource, UnreadableError, text_of

SHOWN_CHARACTERS = 200  # recorded characters of a dropped text


@dataclass(frozen=True)
class Settings:
    """The settings of a corpus besides tokenizer and text; all except `engine` affect its content."""

    seq_length: int = 1024
    language: str = "auto"
    text_key: str = "text"
    text_template: str = ""
    min_length: int = 0
    do_keep_newlines: bool = False
    on_error: str = "stop"
    num_per_doc: int | None = None
    seed: int = 0
    engine: str = "auto"

    @property
    def source(self) -> TextSource:
        return TextSource(self.text_key, self.text_template, self.do_keep_newlines)


@dataclass
class Samples:
    """The samples of a batch.

    ids: (tokens,), all samples concatenated. lengths: (samples,) int32, in tokens. per_document: (documents,) int32,
    the number of samples of each document. dropped: a record for each dropped document. lines: lines of input.
    """

    ids: np.ndarray
    lengths: np.ndarray
    per_document: np.ndarray
    dropped: list[dict[str, Any]]
    lines: int


def make_samples(batch: Batch, encoder: DocumentEncoder, settings: Settings) -> Samples:
    """Encode and cut the documents of a batch; all are encoded before any is cut, which uses the CPU's caches better.

    Raises UnreadableError, with file and line, for an unreadable line unless settings.on_error is `skip`.
    """
    texts, dropped = readable(batch, settings)
    bos = 0 if encoder.bos_id is None else 1
    encoded = [(number, text, encoder.encode(text, number)) for number, text in texts]
    kept, ids, lengths = [], [], []
    for number, text, document in encoded:
        count = bos + len(document.ids) + 1
        if count < settings.min_length:
            dropped.append(
                dropped_record(batch.shard, number, f"{count} tokens, min_length is {settings.min_length}", text)
            )
            continue
        ends = document.ends() if count > settings.seq_length else document.ids  # then only len() is used
        cut = segmentation.sample_lengths(text, ends, settings.seq_length, settings.language, bos)
        if settings.num_per_doc and len(cut) > settings.num_per_doc:
            keep = chosen(text, len(cut), settings.num_per_doc, settings.seed)
            why = f"{len(cut) - len(keep)} of {len(cut)} samples, num_per_doc is {settings.num_per_doc}"
            dropped.append(dropped_record(batch.shard, number, why, text))
            kept.append(np.repeat(np.isin(np.arange(len(cut)), keep), cut))
            cut = cut[keep]
        elif settings.num_per_doc:
            kept.append(np.ones(count, dtype=bool))
        ids.append(document.ids)
        lengths.append(cut)
    none = np.empty(0, dtype=np.int32)
    tokens = document_tokens(ids, encoder)
    return Samples(
        tokens[np.concatenate(kept)] if kept else tokens, np.concatenate(lengths or [none]),
        np.array([len(samples) for samples in lengths], dtype=np.int32),
        sorted(dropped, key=operator.itemgetter("line")), len(batch.lines),
    )  # fmt: skip


def document_tokens(ids: list[np.ndarray], encoder: DocumentEncoder) -> np.ndarray:
    """Concatenate documents, each as BOS (if the tokenizer has one), ids, EOS: (tokens,) in the corpus's dtype.

    ids: for each document, (tokens,) without BOS and EOS.
    """
    bos = [] if encoder.bos_id is None else [encoder.bos_id]
    total = sum(map(len, ids)) + (len(bos) + 1) * len(ids)
    tokens = np.empty(total, dtype=token_dtype(encoder.vocab_size))
    at = 0
    for document in ids:
        begin = at + len(bos)
        end = begin + len(document)
        tokens[at:begin] = bos
        tokens[begin:end] = document
        tokens[end] = encoder.eos_id
        at = end + 1
    return tokens


def readable(batch: Batch, settings: Settings) -> tuple[list[tuple[int, str]], list[dict[str, Any]]]:
    """Return the texts of a batch with their line numbers, and a record of each unreadable or empty line."""
    texts, dropped, source = [], [], settings.source
    for number in range(batch.first, batch.first + len(batch.lines)):
        try:
            text = text_of(batch, number, source)
        except UnreadableError as error:
            if settings.on_error == "stop":
                raise
            dropped.append(dropped_record(batch.shard, number, str(error)))
            continue
        if not text or text.isspace():
            dropped.append(dropped_record(batch.shard, number, "no text", text))
        else:
            texts.append((number, text))
    return texts, dropped


def chosen(text: str, samples: int, keep: int, seed: int) -> list[int]:
    """Return the ascending indices of `keep` samples of a document: the first, the last, and random ones between them.

    The choice depends only on text and seed, not on the document's position or the number of workers.
    """
    if keep == 1:
        return [0]
    draw = random.Random(hashlib.sha256(f"{seed} {text}".encode()).digest())
    return [0, *sorted(draw.sample(range(1, samples - 1), keep - 2)), samples - 1]


def dropped_record(shard: Shard, line: int, reason: str, text: str = "") -> dict[str, Any]:
    """Return a record of `<prefix>.dropped.jsonl`."""
    return {"file": shard.path, "line": line, "reason": reason, "text": text[:SHOWN_CHARACTERS]}
