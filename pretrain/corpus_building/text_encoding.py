"""Text to token ids, exactly: what SentencePiece makes of it where there is a tokenizer.model, else tokenizer.json.

SentencePiece is the truth, or Hugging Face's tokenizers where there is only a tokenizer.json. gigatoken gives the same
ids in a fraction of the time; a model that it cannot read, or reads otherwise, is left to the truth itself. A sample of
every run is encoded by the truth and with the folder's tokenizer.json: a corpus must not hold other ids than tuning and
serving will use. A control token's spelling in a text (`<s>`) is text.

`pretrain/preprocess.py` is the command line.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from corpus_files.corpus import token_dtype

logger = logging.getLogger("encode")

CHECK_FIRST, CHECK_EVERY = 10, 500  # texts of a shard that all engines encode: the first ones, then every so many
CHECK_CHARACTERS = 1000  # of each: not enough to cost time
ENGINES = ("auto", "gigatoken", "reference")
RENEW_AFTER = 32_000_000  # characters: gigatoken remembers what it has seen, without a bound
NORMALISER_PROBE = "  Ａ ﬁ①\t e\u0301  x\n"  # changed by every normalisation but the identity


@dataclass
class Encoded:
    """ids: (tokens,) integers, without BOS and EOS. ends(): see `Encoder.encode`; computed only when it is called."""

    ids: np.ndarray
    ends: Callable[[], np.ndarray]


class SentencePieceEngine:
    """Ids straight from SentencePiece; where a token ends follows from the lengths of the pieces."""

    name = "sentencepiece"

    def __init__(self, path: Path) -> None:
        import sentencepiece

        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"{path} is no SentencePiece model ({reason}); get the original tokenizer.model") from None
        pieces = [self.model.id_to_piece(i) for i in range(len(self.model))]
        self.table = {piece: i for i, piece in enumerate(pieces)}
        values = [int(piece[3:5], 16) if self.model.is_byte(i) else -1 for i, piece in enumerate(pieces)]
        # A character made of bytes counts with the first of them.
        begun = [len(p) if v < 0 else int(not 0x80 <= v < 0xC0) for p, v in zip(pieces, values, strict=True)]
        self._characters = np.array(begun, dtype=np.int32)
        plain = NORMALISER_PROBE.replace(" ", "▁")
        normal = self.model.normalize(NORMALISER_PROBE)
        self._prefix = {plain: 0, "▁" + plain: 1}.get(normal, -1)  # -1: characters of pieces are not the text's

    def encode(self, text: str) -> Encoded:
        ids = self.model.encode(text, return_type="numpy")
        return Encoded(ids, lambda: self.ends(text, ids))

    def ends(self, text: str, ids: np.ndarray) -> np.ndarray:
        """See `Encoder.encode`; ids: the text's."""
        ends = self._characters[ids].cumsum(dtype=np.int32)
        if self._prefix < 0 or not len(ids) or ends[-1] != len(text) + self._prefix:
            return ends_of(self.model.encode(text, return_type="offset_mapping")["offsets"], len(text))
        ends -= self._prefix
        return ends

    def decode(self, ids: np.ndarray) -> str:
        return self.model.decode(ids.tolist())


class TokenizersEngine:
    """Ids from a tokenizer.json through Hugging Face's `tokenizers`."""

    name = "tokenizers"

    def __init__(self, path: Path) -> None:
        import tokenizers

        try:
            self.model = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{path} is no tokenizer.json ({error}); get or build it again") from None
        self.model.no_truncation()
        self.model.no_padding()
        self.model.post_processor = None  # its BOS is not wanted here, nor its trimming of offsets
        self.model.encode_special_tokens = True
        self.table = self.model.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> Encoded:
        encoding = self.model.encode(text, add_special_tokens=False)
        return Encoded(np.array(encoding.ids, dtype=np.int32), lambda: ends_of(encoding.offsets, len(text)))

    def ends(self, text: str, ids: np.ndarray) -> np.ndarray:
        """See `Encoder.encode`; ids: the text's."""
        return ends_of(self.model.encode(text, add_special_tokens=False).offsets, len(text))

    def decode(self, ids: np.ndarray) -> str:
        return self.model.decode(ids.tolist(), skip_special_tokens=True)


Truth = SentencePieceEngine | TokenizersEngine

PROBES = (  # what gigatoken must encode as the truth does before it may stand in
    "", " ", "  two  spaces ", "line\n\n\tnext\r\n", "<s> </s> <unk> <0x41> ▁x", "3.14 2026-11-21 １２", "a" * 50,
    "\x00\x7f\u00a0\u3000", "山水 與 カナ 한글 e\u0301 ﬁ①", "🤖👩\u200d👧 \U0001f1e9\U0001f1ea", "if x:\n    y()\n",
    "It's WE'RE don’t", "<|endoftext|> <|im_start|>user <tool_call> [INST]",
)  # fmt: skip


class GigatokenEngine:
    """Another engine's ids out of gigatoken; the rest (pieces, decoding) is that engine's own.

    Raises ValueError where gigatoken cannot stand in for this model.
    """

    name = "gigatoken"

    def __init__(self, path: Path, truth: Truth) -> None:
        self.truth, self.table = truth, truth.table
        try:
            self._definition = _definition(path)
            self._renew()
        except Exception as error:  # gigatoken raises many kinds
            raise ValueError(f"gigatoken cannot read {path} ({error})") from None
        for probe in PROBES:
            if not np.array_equal(self.encode(probe).ids, truth.encode(probe).ids):
                raise ValueError(f"gigatoken gives other ids than {truth.name} with {path}, for {probe!r}")
        pieces = self.fast.vocab
        self._bytes = np.array([len(pieces.get(i, b"")) for i in range(max(pieces) + 1)])

    def _renew(self) -> None:
        import gigatoken

        self.fast: Any = None  # before there is another
        self.fast = gigatoken.Tokenizer.from_json(self._definition)
        self._seen = 0

    def encode(self, text: str) -> Encoded:
        if self._seen > RENEW_AFTER:
            self._renew()
        self._seen += len(text)
        ids = self.fast.encode(text)
        return Encoded(ids, lambda: self._ends(text, ids))

    def _ends(self, text: str, ids: np.ndarray) -> np.ndarray:
        if isinstance(self.truth, SentencePieceEngine):
            return self.truth.ends(text, ids)
        ends, data = self._bytes[ids].cumsum(), np.frombuffer(text.encode(), dtype=np.uint8)
        if not len(ids) or ends[-1] != len(data):  # a normalised text's
            return self.truth.ends(text, ids)
        return ((data & 0xC0) != 0x80).cumsum(dtype=np.int32)[ends - 1]  # characters that have begun

    def decode(self, ids: np.ndarray) -> str:
        return self.truth.decode(ids)


def _definition(path: Path) -> str:
    """A tokenizer.json for gigatoken that knows no control tokens: their spelling is text."""
    import gigatoken

    if path.suffix == ".model":
        definition = json.loads(gigatoken.Tokenizer.from_sentencepiece(path)._hf_json or "")
    else:
        definition = json.loads(path.read_text(encoding="utf-8"))
    definition["added_tokens"] = [token for token in definition["added_tokens"] if not token["special"]]
    return json.dumps(definition | {"post_processor": None, "truncation": None, "padding": None})


Engine = Truth | GigatokenEngine


def ends_of(offsets: list[tuple[int, int]], characters: int) -> np.ndarray:
    """What `Encoder.encode` calls ends, from each token's (start, end) in a text of so many characters."""
    pairs = np.array(offsets, dtype=np.int32).reshape(-1, 2)
    begins = (pairs[1:, 0] > pairs[:-1, 0]) & (pairs[1:, 0] >= pairs[:-1, 1])  # not inside the character before
    ends = np.where(np.append(begins, True), np.append(pairs[1:, 0], np.int32(characters)), np.int32(characters))
    return np.minimum.accumulate(ends[::-1])[::-1][: len(pairs)]


@dataclass
class Encoder:
    """A tokenizer folder, ready to encode.

    fingerprint: sha256 of the id-ordered table of pieces. vocab_size: the largest id + 1. bos_id: None where the
    tokenizer has none. engine: what encodes. checkers: what a sample is compared with, and what to say of a difference
    in {text}.
    """

    folder: str
    engine: Engine
    checkers: list[tuple[Engine, str]]
    fingerprint: str
    vocab_size: int
    bos_id: int | None
    eos_id: int
    checked: int = field(default=0)

    def encode(self, text: str, number: int | None = None) -> Encoded:
        """Ids of a text, and where its tokens end.

        ends: (tokens,) int32, characters of the text up to the end of each token; tokens that share a character have
        the same end.
        number: the text's place in its run, by which the self-check chooses; None: no check.
        Raises ValueError where a checker differs.
        """
        encoded = self.engine.encode(text)
        if self.checkers and number is not None and (number <= CHECK_FIRST or number % CHECK_EVERY == 0):
            short = text[:CHECK_CHARACTERS]
            ours = encoded.ids if len(short) == len(text) else self.engine.encode(short).ids
            for checker, complaint in self.checkers:
                if not np.array_equal(ours, checker.encode(short).ids):
                    raise ValueError(complaint.replace("{text}", repr(short[:40])))
            self.checked += 1
        return encoded

    def documents(self, ids: list[np.ndarray]) -> np.ndarray:
        """The tokens of documents in a row, as a corpus stores them: BOS (where the tokenizer has one), ids, EOS."""
        first = [] if self.bos_id is None else [self.bos_id]
        whole = np.empty(sum(map(len, ids)) + (len(first) + 1) * len(ids), dtype=token_dtype(self.vocab_size))
        at = 0
        for document in ids:
            begin = at + len(first)
            whole[at:begin] = first
            at = begin + len(document)
            whole[begin:at] = document
            whole[at] = self.eos_id
            at += 1
        return whole

    def describe(self) -> dict[str, Any]:
        """What a corpus's sidecar keeps of its tokenizer."""
        return {
            "fingerprint": self.fingerprint, "vocab_size": self.vocab_size, "bos_id": self.bos_id,
            "eos_id": self.eos_id, "engine": self.engine.name,
        }  # fmt: skip


def load(folder: str | Path, engine: str = "auto") -> Encoder:
    """Open a tokenizer or checkpoint folder; raises FileNotFoundError or ValueError where none is in it.

    engine: of ENGINES, what encodes; auto is gigatoken where it gives the same ids, with a notice where not, reference
    SentencePiece, or tokenizers where there is no tokenizer.model.
    """
    model, table_file = Path(folder, "tokenizer.model"), Path(folder, "tokenizer.json")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is no folder; --tokenizer_path takes a tokenizer or checkpoint folder")
    if not model.is_file() and not table_file.is_file():
        raise FileNotFoundError(f"{folder} has neither tokenizer.model nor tokenizer.json; name a tokenizer's folder")
    converted = TokenizersEngine(table_file) if table_file.is_file() else None
    truth = SentencePieceEngine(model) if model.is_file() else converted
    assert truth is not None
    source = model if model.is_file() else table_file
    encoding = _fastest(source, truth, engine)
    checkers: list[tuple[Engine, str]] = []
    if encoding is not truth:
        other = f"gigatoken gives other ids than {source} for {{text}}; go on without it: --engine reference"
        checkers.append((truth, other))
    if converted and converted is not truth:
        build = f"python tools/build_tokenizer.py --tokenizer_model {model} --output_dir {folder}"
        other = f"{table_file} gives other ids than its tokenizer.model for {{text}}; build the exact one: {build}"
        checkers.append((converted, other))
    table = (converted or truth).table
    bos_id, eos_id = (_special_id(Path(folder), kind, table, truth) for kind in ("bos", "eos"))
    if eos_id is None:
        raise ValueError(f'{folder} names no end-of-text token; add "eos_token" to its tokenizer_config.json')
    return Encoder(
        folder=str(folder), engine=encoding, checkers=checkers, fingerprint=fingerprint(table),
        vocab_size=max(table.values()) + 1, bos_id=bos_id, eos_id=eos_id,
    )  # fmt: skip


def _fastest(path: Path, truth: Truth, engine: str) -> Engine:
    """What encodes for a tokenizer file; raises ValueError where gigatoken is asked for by name and cannot."""
    if engine == "reference":
        return truth
    try:
        return GigatokenEngine(path, truth)
    except ValueError as error:
        if engine == "gigatoken":
            raise
        logger.warning("%s; %s itself encodes, at a fraction of the speed", error, truth.name)
        return truth


def fingerprint(table: dict[str, int]) -> str:
    """sha256 of the id-ordered table of pieces, one `id<TAB>piece` line each (JSON-escaped)."""
    ordered = sorted(table.items(), key=lambda item: item[1])
    return hashlib.sha256("".join(f"{i}\t{json.dumps(p)}\n" for p, i in ordered).encode()).hexdigest()


def _special_id(folder: Path, kind: str, table: dict[str, int], truth: Truth) -> int | None:
    """The id of BOS or EOS: what tokenizer_config.json names, else what tokenizer.model has."""
    path = folder / "tokenizer_config.json"
    token = json.loads(path.read_text(encoding="utf-8")).get(f"{kind}_token") if path.is_file() else None
    if isinstance(token, dict):
        token = token["content"]
    if token is not None:
        if token not in table:
            raise ValueError(f"{path} names {token!r} as {kind}_token, which the tokenizer does not have; correct it")
        return table[token]
    if isinstance(truth, TokenizersEngine):
        return None
    index = truth.model.bos_id() if kind == "bos" else truth.model.eos_id()
    return index if index >= 0 else None
