"""Make the samples of documents: encode and cut documents, select samples, and record dropped documents."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from corpus_files.corpus import CorpusWriter
from corpus_tokenizer.document_encoder import DocumentEncoder

from corpus_building import segmentation
from corpus_building.documents import TextRow, TextSource

SHOWN_CHARACTERS = 200  # recorded characters of a dropped text


@dataclass(frozen=True)
class Settings(TextSource):
    """The settings of a corpus besides tokenizer and text; all except `engine` affect its content."""

    seq_length: int = 1024
    language: str = "auto"
    min_length: int = 0
    num_per_doc: int | None = None
    seed: int = 0
    engine: str = "auto"


def add_documents(
    writer: CorpusWriter, path: str, rows: Sequence[TextRow], encoder: DocumentEncoder, settings: Settings
) -> None:
    """Encode and cut documents of the file `path` and add them to a corpus, with a record of each dropped document."""
    bos, eos = document_ends(encoder)
    ids, lengths = [], []
    for number, text, _, fault in rows:
        record = {"file": path, "line": number, "reason": fault or "no text", "text": text[:SHOWN_CHARACTERS]}
        if not text or text.isspace():
            writer.drop(record)
            continue
        encoded = encoder.encode(text, number)
        count = len(bos) + len(encoded.ids) + 1
        if count < settings.min_length:
            writer.drop(record | {"reason": f"{count} tokens, min_length is {settings.min_length}"})
            continue
        ends = encoded.ends() if count > settings.seq_length else encoded.ids  # then only len() is used
        cut = segmentation.sample_lengths(text, ends, settings.seq_length, settings.language, len(bos))
        parts = [bos, encoded.ids, eos]
        if settings.num_per_doc and len(cut) > settings.num_per_doc:
            keep = choose_samples(text, len(cut), settings.num_per_doc, settings.seed)
            reason = f"{len(cut) - len(keep)} of {len(cut)} samples, num_per_doc is {settings.num_per_doc}"
            writer.drop(record | {"reason": reason})
            parts = [np.concatenate(parts)[np.repeat(np.isin(np.arange(len(cut)), keep), cut)]]
            cut = cut[keep]
        ids += parts
        lengths.append(cut)
    if ids:
        tokens = np.concatenate(ids, dtype=writer.dtype, casting="unsafe")
        writer.add(tokens, np.concatenate(lengths), np.array([len(cut) for cut in lengths]))


def document_ends(encoder: DocumentEncoder) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids before and after those of a document: (1,) BOS or (0,) if the tokenizer has none, and (1,) EOS."""
    bos = [] if encoder.bos_id is None else [encoder.bos_id]
    return np.array(bos, dtype=np.int32), np.array([encoder.eos_id], dtype=np.int32)


def choose_samples(text: str, samples: int, keep: int, seed: int) -> list[int]:
    """Return the ascending indices of `keep` samples of a document: the first, the last, and random ones between them.

    The choice depends only on text and seed, not on the document's position or the number of workers.
    """
    if keep == 1:
        return [0]
    draw = random.Random(hashlib.sha256(f"{seed} {text}".encode()).digest())
    return [0, *sorted(draw.sample(range(1, samples - 1), keep - 2)), samples - 1]
