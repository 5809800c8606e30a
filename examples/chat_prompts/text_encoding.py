"""Encode texts with a tokenizer; the text of a special token (such as `<s>`) in them is encoded as ordinary text."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

ANCHOR = "\ufdd0"  # a noncharacter, which no piece of a vocabulary contains together with other characters


class TextEncoder:
    """A copy of a tokenizer's backend that encodes the text of special tokens as ordinary text.

    The tokenizer's own backend cannot be used: its setting `encode_special_tokens` decides this, and other threads of a
    server may change the setting at any time.

    Attributes:
        continues_after_special: whether text after a special token is encoded as the continuation of a text, so that
            SentencePiece adds no space before it; this depends on the tokenizer.
    """

    def __init__(self, tokenizer: Any, special_token: str) -> None:
        """special_token: the text of any special token; "" if the tokenizer has none.

        Raises ValueError if the tokenizer is written in Python (without a backend of the tokenizers library).
        """
        from tokenizers import Tokenizer

        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ValueError(
                f"{tokenizer.name_or_path} has a tokenizer in Python ({type(tokenizer).__name__}); prompts need a "
                "tokenizer.json, so add one with the same vocabulary and remove auto_map from tokenizer_config.json"
            )
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_truncation()
        self.backend.no_padding()
        after_special = self._ids(special_token + "b")[1:]
        self.backend.encode_special_tokens = True
        self.continues_after_special = bool(special_token) and after_special != self._ids("b")
        anchor, continued = self._ids(ANCHOR), self._ids(ANCHOR + "b")
        is_cut = continued[: len(anchor)] == anchor and continued[len(anchor) :] != self._ids("b")
        # Number of ids of the anchor; 0: not used, since it does not change the ids of "b", or "b" changes its own ids.
        self.anchor_length = len(anchor) if is_cut else 0

    def _ids(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def ids(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Return the ids of each (text, whether it continues another text), with one backend call on all cores.

        SentencePiece adds a space before a text, but not before a continuation. A continuation is therefore encoded
        after an anchor, and the ids of the anchor are removed.
        """
        cuts = [self.anchor_length * continues for _, continues in texts]
        given = [ANCHOR + text if cut else text for (text, _), cut in zip(texts, cuts, strict=True)]
        encoded = self.backend.encode_batch_fast(given, add_special_tokens=False)
        return [each.ids[cut:] if cut else each.ids for each, cut in zip(encoded, cuts, strict=True)]


@lru_cache(maxsize=4)
def text_encoder(tokenizer: Any, vocabulary_size: int, special_token: str) -> TextEncoder:
    """Return the encoder of a tokenizer. It is cached, since copying a tokenizer takes 0.25 s.

    vocabulary_size: only a key of the cache, so that a tokenizer gets a new encoder after tokens were added to it.
    """
    return TextEncoder(tokenizer, special_token)
