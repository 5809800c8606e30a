"""What the tests of the corpus share: rows on disk, and a corpus as documents and as bytes."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from corpus import Corpus


def rows(path: Path, texts: list[str], key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def document_ids(corpus: Corpus) -> list[list[int]]:
    """Each document's samples put together again."""
    return [np.concatenate([corpus[i] for i in range(a, b)]).tolist() for a, b in pairwise(corpus.documents)]


def files_of(folder: Path, prefix: str) -> dict[str, bytes]:
    return {p.name.removeprefix(prefix): p.read_bytes() for p in folder.glob(f"{prefix}.*")}
