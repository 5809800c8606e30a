"""Corpora and JSONL files for tests of pretraining."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import sentencepiece
from corpus_files.corpus import Corpus, CorpusWriter

Documents = list[list[list[int]]]  # documents of samples of ids
TOKENIZER = {"fingerprint": "f" * 64, "vocab_size": 32000, "bos_id": 1, "eos_id": 2}


def write_corpus(
    prefix: Path, documents: Documents, vocab_size: int = 32000, name: str = "", overwrite: bool = False
) -> Path:
    """Write a corpus of one source, document by document."""
    with CorpusWriter(prefix, vocab_size, overwrite) as writer:
        for samples in documents:
            lengths = np.array([len(sample) for sample in samples])
            writer.add(np.concatenate([*samples, []]).astype(np.int32), lengths, np.array([len(samples)]))
        source = {
            "name": name or prefix.name, "type": 0, "start": 0, "end": writer.samples, "documents": len(documents),
            "tokens": writer.tokens,
        }  # fmt: skip
        writer.finish([source], TOKENIZER | {"vocab_size": vocab_size}, {}, {}, seq_length=8)
    return prefix


def rows(path: Path, texts: list[str], key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def document_ids(corpus: Corpus) -> list[list[int]]:
    """Return the ids of each document: its samples concatenated."""
    return [np.concatenate([corpus[i] for i in range(a, b)]).tolist() for a, b in pairwise(corpus.documents)]


def files_of(folder: Path, prefix: str) -> dict[str, bytes]:
    return {p.name.removeprefix(prefix): p.read_bytes() for p in folder.glob(f"{prefix}.*")}


def texts_of(prefix: Path, tokenizer: Path) -> list[str]:
    """Return the decoded documents of a corpus."""
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    return [oracle.decode(ids[1:-1]) for ids in document_ids(Corpus(prefix))]
