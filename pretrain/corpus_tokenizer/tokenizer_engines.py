"""The engines that encode text: SentencePiece, Hugging Face's tokenizers, and gigatoken.

SentencePiece is the reference if there is a tokenizer.model, tokenizers if there is only a tokenizer.json. gigatoken
gives the same ids in a fraction of the time. The spelling of a special token (`<s>`) in a text is encoded as text.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RELOAD_AFTER = 32_000_000  # characters after which gigatoken is reloaded, since its cache of words grows without limit
NORMALISER_PROBE = "  Ａ ﬁ①\t e\u0301  x\n"  # every normalisation except the identity changes it


@dataclass
class EncodedText:
    """An encoded text.

    ids: (tokens,) integers, without BOS and EOS. ends: a function that computes the end of each token in the text,
    (tokens,) int32, in characters; tokens that share a character have the same end.
    """

    ids: np.ndarray
    ends: Callable[[], np.ndarray]


class SentencePieceEngine:
    """Encodes with SentencePiece; computes the ends of tokens from the lengths of their pieces where possible."""

    name = "sentencepiece"

    def __init__(self, path: Path) -> None:
        from exact_tokenizers.sentencepiece_bpe import load_sentencepiece

        self.model = load_sentencepiece(path)
        pieces = [self.model.id_to_piece(i) for i in range(len(self.model))]
        self.table = {piece: i for i, piece in enumerate(pieces)}
        values = [int(piece[3:5], 16) if self.model.is_byte(i) else -1 for i, piece in enumerate(pieces)]
        # Characters per piece: of the byte pieces of a character, the first counts 1 and the others 0.
        characters = [len(p) if v < 0 else int(not 0x80 <= v < 0xC0) for p, v in zip(pieces, values, strict=True)]
        self._characters = np.array(characters, dtype=np.int32)
        unchanged = NORMALISER_PROBE.replace(" ", "▁")
        normalised = self.model.normalize(NORMALISER_PROBE)
        # Number of characters that the model puts before a text; -1: the model also changes the text itself.
        self._prefix_length = {unchanged: 0, "▁" + unchanged: 1}.get(normalised, -1)

    def encode(self, text: str) -> EncodedText:
        ids = self.model.encode(text, return_type="numpy")
        return EncodedText(ids, lambda: self.ends(text, ids))

    def ends(self, text: str, ids: np.ndarray) -> np.ndarray:
        """Return the ends of the tokens `ids` of a text (see EncodedText)."""
        ends = self._characters[ids].cumsum(dtype=np.int32)
        if self._prefix_length < 0 or not len(ids) or ends[-1] != len(text) + self._prefix_length:
            return token_ends(self.model.encode(text, return_type="offset_mapping")["offsets"], len(text))
        ends -= self._prefix_length
        return ends

    def decode(self, ids: np.ndarray) -> str:
        return self.model.decode(ids.tolist())


class TokenizersEngine:
    """Encodes with a tokenizer.json and Hugging Face's `tokenizers`."""

    name = "tokenizers"

    def __init__(self, path: Path) -> None:
        import tokenizers

        try:
            self.model = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{path} is not a tokenizer.json ({error}); get or build it again") from None
        self.model.no_truncation()
        self.model.no_padding()
        self.model.post_processor = None  # it would add BOS and trim offsets
        self.model.encode_special_tokens = True
        self.table = self.model.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> EncodedText:
        encoding = self.model.encode(text, add_special_tokens=False)
        return EncodedText(np.array(encoding.ids, dtype=np.int32), lambda: token_ends(encoding.offsets, len(text)))

    def ends(self, text: str, ids: np.ndarray) -> np.ndarray:
        """Return the ends of the tokens `ids` of a text (see EncodedText)."""
        return token_ends(self.model.encode(text, add_special_tokens=False).offsets, len(text))

    def decode(self, ids: np.ndarray) -> str:
        return self.model.decode(ids.tolist(), skip_special_tokens=True)


ReferenceEngine = SentencePieceEngine | TokenizersEngine

PROBE_TEXTS = (  # gigatoken is used only if it gives the ids of the reference engine for these texts
    "", " ", "  two  spaces ", "line\n\n\tnext\r\n", "<s> </s> <unk> <0x41> ▁x", "3.14 2026-11-21 １２", "a" * 50,
    "\x00\x7f\u00a0\u3000", "山水 與 カナ 한글 e\u0301 ﬁ①", "🤖👩\u200d👧 \U0001f1e9\U0001f1ea", "if x:\n    y()\n",
    "It's WE'RE don’t", "<|endoftext|> <|im_start|>user <tool_call> [INST]",
)  # fmt: skip


class GigatokenEngine:
    """Encodes with gigatoken, which is faster and gives the same ids; decodes with the reference engine.

    Raises ValueError if gigatoken cannot read the model, or gives other ids for one of PROBE_TEXTS.
    """

    name = "gigatoken"

    def __init__(self, path: Path, reference: ReferenceEngine) -> None:
        self.reference, self.table = reference, reference.table
        try:
            self._tokenizer_json = _tokenizer_json(path)
            self._reload()
        except Exception as error:  # gigatoken raises many classes
            raise ValueError(f"gigatoken cannot read {path} ({error})") from None
        for probe in PROBE_TEXTS:
            if not np.array_equal(self.encode(probe).ids, reference.encode(probe).ids):
                raise ValueError(f"gigatoken gives other ids than {reference.name} with {path}, for {probe!r}")
        pieces = self.fast.vocab
        self._bytes = np.array([len(pieces.get(i, b"")) for i in range(max(pieces) + 1)])

    def _reload(self) -> None:
        import gigatoken

        self.fast: Any = None  # frees the old tokenizer before the new one is created
        self.fast = gigatoken.Tokenizer.from_json(self._tokenizer_json)
        self._encoded_characters = 0

    def encode(self, text: str) -> EncodedText:
        if self._encoded_characters > RELOAD_AFTER:
            self._reload()
        self._encoded_characters += len(text)
        ids = self.fast.encode(text)
        return EncodedText(ids, lambda: self._ends(text, ids))

    def _ends(self, text: str, ids: np.ndarray) -> np.ndarray:
        if isinstance(self.reference, SentencePieceEngine):
            return self.reference.ends(text, ids)
        ends, data = self._bytes[ids].cumsum(), np.frombuffer(text.encode(), dtype=np.uint8)
        if not len(ids) or ends[-1] != len(data):  # the tokenizer normalises this text
            return self.reference.ends(text, ids)
        return ((data & 0xC0) != 0x80).cumsum(dtype=np.int32)[ends - 1]  # counts the bytes that begin a character

    def decode(self, ids: np.ndarray) -> str:
        return self.reference.decode(ids)


def _tokenizer_json(path: Path) -> str:
    """Return a tokenizer.json for gigatoken without special tokens, so that their spelling is encoded as text.

    path: a tokenizer.model or tokenizer.json.
    """
    import gigatoken

    if path.suffix == ".model":
        definition = json.loads(gigatoken.Tokenizer.from_sentencepiece(path)._hf_json or "")
    else:
        definition = json.loads(path.read_text(encoding="utf-8"))
    definition["added_tokens"] = [token for token in definition["added_tokens"] if not token["special"]]
    return json.dumps(definition | {"post_processor": None, "truncation": None, "padding": None})


Engine = ReferenceEngine | GigatokenEngine


def token_ends(offsets: list[tuple[int, int]], characters: int) -> np.ndarray:
    """Return the ends of tokens (see EncodedText).

    offsets: (start, end) of each token in the text, in characters. characters: the length of the text.
    """
    pairs = np.array(offsets, dtype=np.int32).reshape(-1, 2)
    # whether the next token begins another character
    is_last = (pairs[1:, 0] > pairs[:-1, 0]) & (pairs[1:, 0] >= pairs[:-1, 1])
    ends = np.where(np.append(is_last, True), np.append(pairs[1:, 0], np.int32(characters)), np.int32(characters))
    return np.minimum.accumulate(ends[::-1])[::-1][: len(pairs)]
