"""Encode documents with the tokenizer of a folder, and compare some of the results with other engines.

A corpus must have the same ids as tuning and serving. Therefore the reference engine and the folder's tokenizer.json
also encode the first 1,000 characters of some documents: those in the first 10 lines and every 500th line of a shard.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from corpus_tokenizer.tokenizer_engines import (
    EncodedText,
    Engine,
    GigatokenEngine,
    ReferenceEngine,
    SentencePieceEngine,
    TokenizersEngine,
)
from corpus_tokenizer.tokenizer_identity import ids_sha256

logger = logging.getLogger("document_encoder")

CHECK_FIRST, CHECK_EVERY = 10, 500  # all engines encode the first 10 lines of a shard, then every 500th line
CHECK_CHARACTERS = 1000  # only the beginning of a text is compared, so that the comparison takes negligible time
ENGINES = ("auto", "gigatoken", "reference")


@dataclass
class DocumentEncoder:
    """Encodes documents with the tokenizer of a folder and compares some of the ids with those of other engines.

    Attributes:
        folder: the tokenizer's folder.
        engine: the engine that encodes.
        checkers: the engines for comparison, each with the error message if its ids differ; "{text}" in the message is
            replaced by the beginning of the text.
        fingerprint: sha256 of the id-ordered table of pieces.
        identity_engine: the engine whose ids identify the tokenizer; see tokenizer_identity.py.
        vocab_size: the largest id + 1.
        bos_id: None if the tokenizer has no BOS.
        checked: the number of texts compared so far.
    """

    folder: str
    engine: Engine
    checkers: list[tuple[Engine, str]]
    fingerprint: str
    identity_engine: ReferenceEngine
    vocab_size: int
    bos_id: int | None
    eos_id: int
    checked: int = field(default=0)

    def encode(self, text: str, number: int | None = None) -> EncodedText:
        """Encode a text.

        number: the text's line in its shard, which selects texts for comparison; None: no comparison. Raises
        ValueError if a checker gives other ids.
        """
        encoded = self.engine.encode(text)
        if self.checkers and number is not None and (number <= CHECK_FIRST or number % CHECK_EVERY == 0):
            beginning = text[:CHECK_CHARACTERS]
            ids = encoded.ids if len(beginning) == len(text) else self.engine.encode(beginning).ids
            for checker, message in self.checkers:
                if not np.array_equal(ids, checker.encode(beginning).ids):
                    raise ValueError(message.replace("{text}", repr(beginning[:40])))
            self.checked += 1
        return encoded

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The values that identify the ids of a document; see tokenizer_identity.py."""
        return {
            "fingerprint": self.fingerprint, "ids_sha256": ids_sha256(self.identity_engine),
            "bos_id": self.bos_id, "eos_id": self.eos_id,
        }  # fmt: skip

    def sidecar_entry(self) -> dict[str, Any]:
        """Return the description of the tokenizer for the sidecar of a corpus."""
        return self.identity | {"vocab_size": self.vocab_size, "engine": self.engine.name}


def load_encoder(folder: str | Path, engine: str = "auto") -> DocumentEncoder:
    """Open the tokenizer of a folder.

    folder: a tokenizer or checkpoint folder, or the tokenizer.model in it. engine: `reference` is SentencePiece, or
    tokenizers if there is no tokenizer.model; `auto` is gigatoken if it gives the same ids as the reference, else the
    reference with a warning; `gigatoken` raises ValueError instead of warning.
    Raises FileNotFoundError if the folder has no tokenizer, ValueError if its files are damaged or incomplete.
    """
    if Path(folder).name == "tokenizer.model" and Path(folder).is_file():
        folder = Path(folder).parent
    model, tokenizer_json = Path(folder, "tokenizer.model"), Path(folder, "tokenizer.json")
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; --tokenizer_path takes a tokenizer or checkpoint folder, or its tokenizer.model"
        )
    if not model.is_file() and not tokenizer_json.is_file():
        raise FileNotFoundError(f"{folder} has neither tokenizer.model nor tokenizer.json; name a tokenizer's folder")
    converted = TokenizersEngine(tokenizer_json) if tokenizer_json.is_file() else None
    reference = SentencePieceEngine(model) if model.is_file() else converted
    assert reference is not None
    source = model if model.is_file() else tokenizer_json
    chosen = _choose_engine(source, reference, engine)
    checkers: list[tuple[Engine, str]] = []
    if chosen is not reference:
        message = f"gigatoken gives other ids than {source} for {{text}}; use the reference: --engine reference"
        checkers.append((reference, message))
    if converted and converted is not reference:
        build = f"python tools/build_tokenizer.py --tokenizer_model {model} --output_dir {folder}"
        message = f"{tokenizer_json} gives other ids than its tokenizer.model for {{text}}; build an exact one: {build}"
        checkers.append((converted, message))
    identity_engine = converted or reference
    table = identity_engine.table
    bos_id, eos_id = (_special_id(Path(folder), kind, table, reference) for kind in ("bos", "eos"))
    if eos_id is None:
        raise ValueError(f'{folder} names no end-of-text token; add "eos_token" to its tokenizer_config.json')
    return DocumentEncoder(
        folder=str(folder), engine=chosen, checkers=checkers, fingerprint=vocabulary_fingerprint(table),
        identity_engine=identity_engine, vocab_size=max(table.values()) + 1, bos_id=bos_id, eos_id=eos_id,
    )  # fmt: skip


def _choose_engine(path: Path, reference: ReferenceEngine, engine: str) -> Engine:
    """Return the engine for a tokenizer file; raises ValueError if gigatoken is required but gives other ids."""
    if engine == "reference":
        return reference
    try:
        return GigatokenEngine(path, reference)
    except ValueError as error:
        if engine == "gigatoken":
            raise
        logger.warning("%s; %s encodes instead, which takes several times as long", error, reference.name)
        return reference


def vocabulary_fingerprint(table: dict[str, int]) -> str:
    """Return the sha256 of the id-ordered table of pieces: a line `id<TAB>piece` for each, with the piece as JSON."""
    ordered = sorted(table.items(), key=lambda item: item[1])
    return hashlib.sha256("".join(f"{i}\t{json.dumps(p)}\n" for p, i in ordered).encode()).hexdigest()


def _special_id(folder: Path, kind: str, table: dict[str, int], reference: ReferenceEngine) -> int | None:
    """Return the id of BOS or EOS from tokenizer_config.json, else from tokenizer.model; None if neither has one.

    kind: `bos` or `eos`. Raises ValueError if the token is not in the table.
    """
    path = folder / "tokenizer_config.json"
    token = json.loads(path.read_text(encoding="utf-8")).get(f"{kind}_token") if path.is_file() else None
    if isinstance(token, dict):
        token = token.get("content", token)
    if token:  # tokenizer_config.json of 2023 may have ""
        if not isinstance(token, str) or token not in table:
            raise ValueError(f"{path} names {token!r} as {kind}_token, which the tokenizer lacks; correct it")
        return table[token]
    if isinstance(reference, TokenizersEngine):
        return None
    index = reference.model.bos_id() if kind == "bos" else reference.model.eos_id()
    return index if index >= 0 else None
