"""Make samples from documents: encode and cut the documents, select samples, and record dropped documents."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from corpus_files.corpus import CorpusWriter
from corpus_tokenizer.document_encoder import DocumentEncoder

from corpus_building import segmentation
from corpus_building.documents import TextRow, TextSource

SHOWN_CHARACTERS = 200  # characters of a dropped text that are recorded


@dataclass(frozen=True)
class CorpusSettings(TextSource):
    """The settings of a corpus, named like the options of preprocess.py; all except `engine` affect its content."""

    seq_length: int = 1024  # maximum tokens of a sample
    language: str = "auto"  # rules for sentence ends
    min_length: int = 0  # minimum tokens of a document
    num_per_doc: int | None = None  # maximum samples of a document; None: all
    seed: int = 0  # selects the samples that num_per_doc keeps
    engine: str = "auto"


def add_documents(
    writer: CorpusWriter, path: str, rows: Sequence[TextRow], encoder: DocumentEncoder, settings: CorpusSettings
) -> None:
    """Encode and cut documents of the file `path` and add them to a corpus, with a record of each dropped document."""
    bos, eos = bos_and_eos(encoder)
    ids, lengths = [], []
    for number, text, _, error in rows:
        record = {"file": path, "line": number, "reason": error or "no text", "text": text[:SHOWN_CHARACTERS]}
        if not text or text.isspace():
            writer.add_dropped(record)
            continue
        encoded = encoder.encode(text, number)
        count = len(bos) + len(encoded.ids) + 1
        if count < settings.min_length:
            writer.add_dropped(record | {"reason": f"{count} tokens, min_length is {settings.min_length}"})
            continue
        # for a document of one sample, sample_lengths uses only the number of ends, which equals the number of ids
        ends = encoded.ends() if count > settings.seq_length else encoded.ids
        samples = segmentation.sample_lengths(text, ends, settings.seq_length, settings.language, len(bos))
        parts = [bos, encoded.ids, eos]
        if settings.num_per_doc and len(samples) > settings.num_per_doc:
            kept = choose_samples(text, len(samples), settings.num_per_doc, settings.seed)
            reason = f"{len(samples) - len(kept)} of {len(samples)} samples, num_per_doc is {settings.num_per_doc}"
            writer.add_dropped(record | {"reason": reason, "documents": 0})  # the document is kept
            is_kept = np.isin(np.arange(len(samples)), kept)
            parts = [np.concatenate(parts)[np.repeat(is_kept, samples)]]
            samples = samples[kept]
        ids += parts
        lengths.append(samples)
    if ids:
        tokens = np.concatenate(ids, dtype=writer.dtype, casting="unsafe")
        writer.add(tokens, np.concatenate(lengths), np.array([len(samples) for samples in lengths]))


def bos_and_eos(encoder: DocumentEncoder) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids before and after a document: BOS (1,), or (0,) if the tokenizer has no BOS, and EOS (1,)."""
    bos = [] if encoder.bos_id is None else [encoder.bos_id]
    return np.array(bos, dtype=np.int32), np.array([encoder.eos_id], dtype=np.int32)


def choose_samples(text: str, samples: int, keep: int, seed: int) -> list[int]:
    """Choose `keep` of the samples of a document: the first, the last, and random ones between them.

    Returns ascending indices; only the first if `keep` is 1. The choice depends on text and seed, not on the number of
    workers.
    """
    if keep == 1:
        return [0]
    draw = random.Random(hashlib.sha256(f"{seed} {text}".encode()).digest())
    return [0, *sorted(draw.sample(range(1, samples - 1), keep - 2)), samples - 1]
