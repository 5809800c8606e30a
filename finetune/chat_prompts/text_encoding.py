"""Texts to token ids with a tokenizer's own model, in which nothing is a control token."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

ANCHOR = "\ufdd0"  # a noncharacter: no piece of a vocabulary joins it to its neighbours


class TextEncoder:
    """A copy of a tokenizer's backend that takes the spelling of a control token as text.

    A copy, since the switch for this is the backend's state, which other threads of a server may change meanwhile.

    Attributes:
        continues_after_control: whether a text behind a control token counts as one that continues another, so that
            SentencePiece puts no space before it; tokenizers differ in this.
    """

    def __init__(self, tokenizer: Any, control: str) -> None:
        """control: the spelling of any control token, "" where there is none."""
        from tokenizers import Tokenizer

        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_truncation()
        self.backend.no_padding()
        self.size = len(tokenizer)
        behind = self._ids(control + "b")[1:]
        self.backend.encode_special_tokens = True
        self.continues_after_control = bool(control) and behind != self._ids("b")
        anchor, continued = self._ids(ANCHOR), self._ids(ANCHOR + "b")
        is_cut = continued[: len(anchor)] == anchor and continued[len(anchor) :] != self._ids("b")
        self.anchor_ids = len(anchor) if is_cut else 0  # 0: a text has the same ids wherever it stands

    def _ids(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def ids(self, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Ids of texts, each with whether it continues another text; one call of the backend, which uses all cores.

        SentencePiece puts a space before a text, though not before one that continues: an anchor stands in for the text
        before, and its ids are cut off.
        """
        cuts = [self.anchor_ids * continues for _, continues in texts]
        given = [ANCHOR + text if cut else text for (text, _), cut in zip(texts, cuts, strict=True)]
        encoded = self.backend.encode_batch_fast(given, add_special_tokens=False)
        return [each.ids[cut:] if cut else each.ids for each, cut in zip(encoded, cuts, strict=True)]


_made: WeakKeyDictionary[Any, TextEncoder] = WeakKeyDictionary()


def text_encoder(tokenizer: Any, control: str) -> TextEncoder:
    """The text encoder of a tokenizer; a copy takes a quarter of a second, so templates on one tokenizer share it."""
    found = _made.get(tokenizer)
    if found is None or found.size != len(tokenizer):
        found = _made[tokenizer] = TextEncoder(tokenizer, control)
    return found
