"""Encode messages as token ids: prompts for generation, and whole conversations with supervised answers for tuning.

A chat template renders a conversation as text. The text is split at the template's special tokens and before and after
every answer, and each piece is encoded separately. These properties hold for every tokenizer:

- In a training conversation, the ids before each answer equal the ids of the prompt for this answer, since the ids of
  an answer are appended to those of the prompt. (Encoding them together could merge characters across the boundary.)
- In tuning, an answer ends in the special token that the template writes after an answer in a rendered history. If the
  template writes none, the last answer ends in EOS, and earlier answers have no end token, as in the prompts of later
  answers. `stop_ids` are the ids of the tokens on which generation must stop.
- The text of a message never becomes a special token: if it spells one (`<s>`), the first character of the spelling is
  replaced by a placeholder before rendering and restored before encoding.
- If the template ignores the input of a message, the input is appended to the content after a blank line. Without a
  template, BOS is followed by all contents and inputs of the conversation, separated by blank lines.

The running time is linear in the length of the text, except that `turns` renders the history of each answer again.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, NamedTuple, TypedDict

from chat_prompts.chat_templates import MARK, ChatTemplate, Messages
from chat_prompts.text_encoding import TextEncoder, text_encoder

PLACEHOLDERS = 0xD800  # code point of the first placeholder; placeholders are lone surrogates, which no valid text has
REMEDY = "use another template, such as finetune/templates/alpaca.jinja, which never rewrites earlier text"


class Message(TypedDict, total=False):
    """One message of a conversation. input: the text to which a user's instruction applies."""

    role: str
    content: str
    input: str


class Turn(NamedTuple):
    """Token ids of a turn: its prompt (all ids after the previous turn), its answer and the end-of-turn."""

    prompt: list[int]
    answer: list[int]
    end: list[int]


class RenderedText(NamedTuple):
    """A rendered conversation and the character offsets that divide it into regions.

    Regions (prompt, answer, end-of-turn) are encoded separately, and split further at special tokens.
    """

    text: str
    boundaries: list[int]


def instruction_messages(instruction: str, input: str = "") -> list[Message]:
    """Return a conversation that consists of one instruction."""
    return [{"role": "user", "content": instruction, "input": input}]


def content_and_input(message: Any) -> str:
    """Return the content and the input of a message, separated by a blank line."""
    return "\n\n".join(text for text in (message["content"], message.get("input")) if text)


class PromptEncoder:
    """Encodes conversations with a tokenizer and its chat template, or with another template.

    Attributes:
        tokenizer: a transformers tokenizer with a `tokenizers` backend; never modified.
        template: Jinja source; None for a base model without a template.
        special_tokens: text -> id of each special token.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.chat_template = ChatTemplate(tokenizer, template)
        self.template = self.chat_template.source
        special = {index: token for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_tokens = {str(token): index for index, token in special.items() if str(token)}
        self._strips = {str(token): (token.lstrip, token.rstrip) for token in special.values()}
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        self._special_token = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        firsts = sorted({token[0] for token in longest_first})
        rests = "|".join(re.escape(token[1:]) for token in longest_first)
        self._spelling_start = re.compile(f"[{re.escape(''.join(firsts))}](?={rests})" if firsts else r"(?!)")
        self._placeholders = {first: chr(PLACEHOLDERS + number) for number, first in enumerate(firsts)}

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The encoder that treats the spelling of a special token as ordinary text."""
        return text_encoder(self.tokenizer, len(self.tokenizer), next(iter(self.special_tokens), ""))

    def prompt_ids(self, messages: Sequence[Any]) -> list[int]:
        """Return the token ids of the prompt for the next answer of a conversation.

        BOS is added only if there is no template; a template writes BOS itself. Raises ValueError if the template
        rejects the messages or a text is not valid Unicode.
        """
        return self.batch_prompt_ids([messages])[0]

    def batch_prompt_ids(self, conversations: Iterable[Sequence[Any]]) -> list[list[int]]:
        """Return `prompt_ids` of each conversation; with a template, one call encodes all, on all cores."""
        if not self.template:
            texts = ["\n\n".join(filter(None, map(content_and_input, each))) for each in conversations]
            return [self.plain_text_ids(text) for text in texts]
        rendered = []
        for messages in map(self._escape_messages, conversations):
            text, answers = self._render_history(messages)
            rendered.append(RenderedText(text, list(chain(*answers or ()))))
        return [list(chain(*regions)) for regions in self._encode(rendered)]

    def plain_text_ids(self, text: str) -> list[int]:
        """Return BOS (if the tokenizer has one) and the ids of a text to continue, without a template."""
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return bos + self.text_ids(text)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS; the spelling of a special token in it is encoded as ordinary text."""
        return self.text_encoder.ids([(self._checked(text), False)])[0]

    def rendered_prompt(self, messages: Sequence[Any]) -> str:
        """Return the prompt for the next answer of a conversation as text, for display."""
        return self._unescape(self.chat_template.render(self._escape_messages(messages), True))

    @property
    def answer_prefix(self) -> str:
        """White space that the template writes between a prompt and its answer; answers begin with it."""
        layout = self.chat_template.answer_layout
        return layout.prefix if layout else ""

    @cached_property
    def _end_of_turn(self) -> tuple[str, str] | None:
        """The text between an answer and its end-of-turn token, and that token; None if the template writes none.

        `answer_layout` omits the next question if possible, since a special token that begins a question is not an end
        of turn: models with such templates end an answer in EOS (Baichuan 2), or in EOS or another token (GLM-4).
        """
        layout = self.chat_template.answer_layout
        found = self._special_token.search(layout.suffix) if layout else None
        return (found.string[: found.start()], found[0]) if found else None

    @cached_property
    def stop_ids(self) -> list[int]:
        """Ids on which generation must stop: EOS and the template's end-of-turn token."""
        end = [self.special_tokens[self._end_of_turn[1]]] if self._end_of_turn else []
        return sorted({self.tokenizer.eos_token_id, *end} - {None})

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the settings that determine the ids of given messages: tokenizer, special tokens and template."""
        tokenizer = self.tokenizer
        parts = [tokenizer.backend_tokenizer.to_str(), self.template, tokenizer.bos_token, tokenizer.eos_token,
                 sorted(self.special_tokens.items())]  # fmt: skip
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def turns(self, conversations: Iterable[Sequence[Any]]) -> list[list[Turn]]:
        """Return the turns of each conversation, up to its last answer; answers and ends are supervised in tuning.

        Raises ValueError if there is no template, or no token that can end an answer. Also raises ValueError if the ids
        before an answer would differ from those of its prompt, since the template rewrites earlier turns.
        """
        return self._turns(conversations, only_last=False)

    def last_turns(self, conversations: Iterable[Sequence[Any]]) -> list[Turn]:
        """Return the last answer of each conversation with its whole prompt as one turn, for scoring; see `turns`.

        Templates that rewrite earlier turns are accepted.
        """
        return [turns[0] for turns in self._turns(conversations, only_last=True)]

    def _turns(self, conversations: Iterable[Sequence[Any]], only_last: bool) -> list[list[Turn]]:
        if not self.template:
            raise ValueError("the model has no chat template to render a conversation with; add chat_template.jinja")
        rendered = [self._render_training(self._escape_messages(each), only_last) for each in conversations]
        result = []
        for regions in self._encode(rendered):
            history = len(regions) - 4 if only_last else 0  # number of regions that are joined with the last prompt
            regions = [list(chain(*regions[: history + 1])), *regions[history + 1 :]]
            turns = [Turn(*regions[at : at + 3]) for at in range(0, len(regions) - 1, 3)]
            if not turns[-1].end:
                if self.tokenizer.eos_token_id is None:
                    raise ValueError(
                        "neither the template nor the tokenizer ends an answer, so a tuned model could not stop; set "
                        "eos_token in tokenizer_config.json"
                    )
                turns[-1] = turns[-1]._replace(end=[self.tokenizer.eos_token_id])
            result.append(turns)
        return result

    def _render_training(self, messages: Messages, only_last: bool) -> RenderedText:
        """Return a conversation up to its last answer, split before and after each answer and after each end-of-turn.

        The last answer and its end-of-turn are appended to the prompt for it, even if the template renders the end of
        a conversation differently from a history (Qwen3 writes an empty reasoning there).
        """
        last = max(at for at, message in enumerate(messages) if message["role"] == "assistant")
        prompt, answers = self._render_history(messages[:last])
        layout = self.chat_template.answer_layout
        if layout is None:
            raise ValueError(f"the chat template renders a question differently once it has an answer; {REMEDY}")
        if not only_last:
            self._check_history(messages[:last], prompt, answers)
        end_of_turn = "".join(self._end_of_turn or ())
        text = prompt + layout.prefix + messages[last]["content"]
        spans = [*(answers or ()), (len(prompt), len(text))]
        text += end_of_turn
        boundaries = [(start, end, end + text.startswith(end_of_turn, end) * len(end_of_turn)) for start, end in spans]
        return RenderedText(text, list(chain(*boundaries)))

    def _check_history(self, history: Messages, prompt: str, answers: list[tuple[int, int]] | None) -> None:
        """Raise ValueError unless the text before each earlier answer equals the prompt for that answer."""
        places = [at for at, message in enumerate(history) if message["role"] == "assistant"]
        if answers is None or any(
            self.chat_template.render(history[:at], True) != prompt[:start]
            for at, (start, _) in zip(places, answers, strict=True)
        ):
            raise ValueError(f"the chat template rewrites earlier turns of a conversation; {REMEDY}")

    def _render_history(self, messages: Messages) -> tuple[str, list[tuple[int, int]] | None]:
        """Return the text of the prompt and the [start, end) offsets of earlier answers in it, prefixes included.

        The offsets are None if the template changes the answers or the text before them; such a conversation cannot be
        used for training. A second rendering, with a mark on both sides of each answer, finds the offsets.
        """
        text = self.chat_template.render(messages, True)
        answers = sum(message["role"] == "assistant" for message in messages)
        layout = self.chat_template.answer_layout if answers else None
        if layout is None:
            return text, None if answers else []
        marked = [
            message | {"content": MARK + message["content"] + MARK} if message["role"] == "assistant" else message
            for message in messages
        ]
        pieces = self.chat_template.try_render(marked, True).split(MARK)
        has_prefixes = all(piece.endswith(layout.prefix) for piece in pieces[:-1:2])
        if len(pieces) != 2 * answers + 1 or "".join(pieces) != text or not has_prefixes:
            return text, None
        spans, at = [], 0
        for before, answer in zip(pieces[::2], pieces[1::2], strict=False):
            start = at + len(before)
            at = start + len(answer)
            spans.append((start - len(layout.prefix), at))
        return text, spans

    def _escape_messages(self, messages: Sequence[Any]) -> list[dict[str, Any]]:
        """Return messages for the template, in which the spellings of special tokens are escaped.

        If the template ignores inputs, they are appended to the contents. Raises ValueError if a message of a role
        other than user has an input.
        """
        escaped = []
        for message in messages:
            given = {**message, "input": message.get("input") or ""}
            if given["input"] and given["role"] != "user":
                raise ValueError(
                    f"a message of the role {given['role']} has an input, which only user messages may have; remove it"
                )
            if given["input"] and not self.chat_template.uses_input:
                given |= {"content": content_and_input(given), "input": ""}
            if given["role"] == "assistant" and (layout := self.chat_template.answer_layout):
                left, right = layout.strips  # strip as the template does, so that the offsets are known
                given["content"] = given["content"].lstrip() if left else given["content"]
                given["content"] = given["content"].rstrip() if right else given["content"]
            escaped.append(self._escape(given))
        return escaped

    def _escape(self, value: Any) -> Any:
        """Return a value of a message with a placeholder for the first character of each special token's spelling."""
        if isinstance(value, str):
            return self._spelling_start.sub(lambda found: self._placeholders[found[0]], self._checked(value))
        if isinstance(value, dict):
            return {key: self._escape(each) for key, each in value.items()}
        return [self._escape(each) for each in value] if isinstance(value, list) else value

    def _unescape(self, text: str) -> str:
        for first, placeholder in self._placeholders.items():
            text = text.replace(placeholder, first)
        return text

    def _checked(self, text: str) -> str:
        """Return the text; raises ValueError if it is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"character {error.start} of a text is half of a surrogate pair; correct its encoding"
            ) from None
        return text

    def _encode(self, rendered: Sequence[RenderedText]) -> list[list[list[int]]]:
        """Return the ids of each region of each text; one backend call encodes all texts and uses all cores."""
        split = [self._split(each) for each in rendered]
        texts = [piece for regions in split for region in regions for piece in region if not isinstance(piece, int)]
        encoded = iter(self.text_encoder.ids(texts))
        return [
            [
                list(chain(*([piece] if isinstance(piece, int) else next(encoded) for piece in region)))
                for region in regions
            ]
            for regions in split
        ]

    def _split(self, rendered: RenderedText) -> list[list[int | tuple[str, bool]]]:
        """Return the pieces of each region: ids of special tokens, and (text, whether it continues another text)."""
        regions = []
        continues, strip_left = False, False  # strip_left: the last special token removes the white space after it
        for start, end in pairwise([0, *rendered.boundaries, len(rendered.text)]):
            region: list[int | tuple[str, bool]] = []
            for found in chain(self._special_token.finditer(rendered.text, start, end), [None]):
                text = rendered.text[start : found.start() if found else end]
                removes_before, removes_after = self._strips[found[0]] if found else (False, False)
                text = text.lstrip() if strip_left else text
                text = text.rstrip() if removes_before else text
                if text:
                    region.append((self._unescape(text), continues))
                    continues, strip_left = True, False
                if found:
                    region.append(self.special_tokens[found[0]])
                    start, strip_left = found.end(), removes_after
                    continues = self.text_encoder.continues_after_special
            regions.append(region)
        return regions
