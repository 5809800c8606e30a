"""Decide whether two tokenizers give a document the same ids: compare pieces, BOS, EOS, and the ids of many texts.

The ids of the texts depend on merges, normaliser, pre-tokeniser and added tokens. These cannot be compared directly,
since they have several notations in tokenizer.json and another notation in tokenizer.model.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from corpus_tokenizer.tokenizer_engines import NORMALISER_PROBE, PROBE_TEXTS, ReferenceEngine

PIECES_PER_TEXT = 64
PARTS = {"fingerprint": "pieces", "bos_id": "BOS", "eos_id": "EOS", "ids_sha256": "ids for the same text"}


def ids_sha256(engine: ReferenceEngine) -> str:
    """Return the sha256 of the ids (int32) of PROBE_TEXTS, NORMALISER_PROBE and texts of PIECES_PER_TEXT pieces each.

    The texts contain all pieces in the order of their ids. Pieces next to each other can be merged in several ways, so
    another order of merges gives other ids.
    """
    pieces = [piece.replace("▁", " ") for piece in sorted(engine.table, key=engine.table.__getitem__)]
    texts = ["".join(pieces[at : at + PIECES_PER_TEXT]) for at in range(0, len(pieces), PIECES_PER_TEXT)]
    digest = hashlib.sha256()
    for text in (*PROBE_TEXTS, NORMALISER_PROBE, *texts):
        digest.update(np.asarray(engine.encode(text).ids, dtype="<i4").tobytes() + b"\xff")
    return digest.hexdigest()


def identity_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return how the tokenizer entries of two sidecars differ, such as "BOS (1 and none), EOS (2 and 3)"; "" if equal.

    A key that one of the entries lacks is not compared; older corpora have no ids_sha256.
    """
    differences = []
    for key, part in PARTS.items():
        if key in one and key in other and one[key] != other[key]:
            values = " and ".join("none" if entry[key] is None else str(entry[key])[:16] for entry in (one, other))
            differences.append(f"{part} ({values})")
    return ", ".join(differences)
