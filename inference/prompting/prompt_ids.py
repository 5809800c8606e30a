"""Messages to the token ids of a prompt: what /generate, /extract and the batch client hand to vLLM.

The checkpoint's chat template is rendered on {"role", "content", "input"} and encoded here, because a text prompt would
get a second BOS and vLLM's own chat path drops the input. Two things hold for every tokenizer: a control token's
spelling in somebody's text never becomes the control token, and a conversation has the ids that tuning trained it with.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, TypedDict

GUARDS = tuple(map(chr, range(0xFDD0, 0xFDF0)))  # Unicode noncharacters: never part of a text that is meant as text
TAKES_INPUT = re.compile(r"""\.input\b|["']input["']""")  # message.input, message["input"], message.get("input")


class Message(TypedDict, total=False):
    """A turn; `input` is what an instruction is about, and only users have it."""

    role: str
    content: str
    input: str


def one_turn(instruction: str, input: str = "") -> list[Message]:
    """The conversation of a single instruction."""
    return [{"role": "user", "content": instruction, "input": input}]


class Prompt:
    """Turns messages into token ids, in the checkpoint's (or the given) chat template.

    Before the template is rendered, a guard character breaks every spelling of a control token up; afterwards only what
    the template itself wrote still matches.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        """tokenizer: of transformers; template: Jinja source that overrides the tokenizer's own."""
        self.tokenizer = tokenizer
        self.template = template or tokenizer.chat_template
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        longest_first = sorted(set(special), key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.control_ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}

    @cached_property
    def takes_input(self) -> bool:
        """Whether an input is part of the prompt; without a template it follows the instruction."""
        return not self.template or bool(TAKES_INPUT.search(str(self.template)))

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt, BOS included where the template (or, without one, the tokenizer) has it.

        messages: a conversation that ends in the user's turn. Raises ValueError where the template cannot render it or
        would drop an input.
        """
        if not self.template:
            if len(messages) > 1:
                raise ValueError(
                    "this checkpoint has no chat template, so it takes one instruction, not a conversation"
                )
            text = messages[0]["content"] + ("\n" + messages[0]["input"] if messages[0].get("input") else "")
            bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            return bos + self.text_ids(text)
        if any(message.get("input") for message in messages) and not self.takes_input:
            raise ValueError("this checkpoint's chat template takes no input; put it into the instruction")
        said = set().union(*(message["content"] + message.get("input", "") for message in messages))
        unused = [guard for guard in GUARDS if guard not in said]
        if len(unused) < 2:
            raise ValueError("the text holds nearly all of the noncharacters U+FDD0 to U+FDEF; take two of them out")
        guard, mark = unused[:2]
        guarded = [self.guarded(message, guard) for message in messages]
        rendered = self.render(guarded)
        return self.encode(rendered, self.answers(guarded, rendered, mark), guard)

    def guarded(self, message: Message, guard: str) -> Message:
        """The message with a guard behind the first character of every spelled control token."""

        def safe(text: str) -> str:
            return self.control.sub(lambda found: found[0][0] + guard + found[0][1:], text)

        return {"role": message["role"], "content": safe(message["content"]), "input": safe(message.get("input", ""))}

    @cached_property
    def lead(self) -> str | None:
        """White space that the template puts before an answer; None where it rewrites what was answered."""
        asked = one_turn("a")
        prompt = self.render(asked)
        before, found, _ = self.render([*asked, {"role": "assistant", "content": "b"}])[len(prompt) :].partition("b")
        return before if found and not before.strip() else None

    def answers(self, messages: Sequence[Message], rendered: str, mark: str) -> list[int]:
        """Where earlier answers begin and end in the rendering, in order: tuning encodes a prompt and its answer apart.

        A mark on either side shows where they come to stand. None where the template changes what it is given, or turns
        that are over; nothing could be tuned on it either.
        """
        if self.lead is None or all(message["role"] != "assistant" for message in messages):
            return []
        marked: list[Message] = [
            {**message, "content": mark + message["content"] + mark} if message["role"] == "assistant" else message
            for message in messages
        ]
        pieces = self.render(marked).split(mark)
        if "".join(pieces) != rendered or not all(before.endswith(self.lead) for before in pieces[:-1:2]):
            return []
        ends = list(accumulate(map(len, pieces[:-1])))
        return [end - len(self.lead) if place % 2 == 0 else end for place, end in enumerate(ends)]

    def encode(self, rendered: str, cuts: Sequence[int], guard: str) -> list[int]:
        """Ids of a rendering: control tokens as such, the text between them in pieces that end at the cuts.

        A piece behind another goes on with it: it gets no leading space of SentencePiece's.
        """
        ids: list[int] = []
        start, follows = 0, False
        places = [(cut, cut, None) for cut in cuts]
        places += [(found.start(), found.end(), found[0]) for found in self.control.finditer(rendered)]  # type: ignore[misc]
        for at, behind, token in [*sorted(places, key=lambda place: place[:2]), (len(rendered), len(rendered), None)]:
            piece = rendered[start:at].replace(guard, "")
            ids += self.text_ids(piece, follows)
            if token is not None:
                ids.append(self.control_ids[token])
            start, follows = behind, token is None and (follows or bool(piece))
        return ids

    def render(self, messages: Sequence[Message]) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # jinja2's errors, and whatever a template's own expressions raise
            raise ValueError(f"the chat template cannot render the message: {' '.join(str(error).split())}") from error

    def text_ids(self, text: str, follows: bool = False) -> list[int]:
        """Ids of a text in which nothing is a control token; follows: of one that goes on after another text."""
        if not text:
            return []
        if not follows:
            return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        before = self.text_ids(GUARDS[0])  # no piece joins it to anything, so it stands in for what came before
        ids = self.text_ids(GUARDS[0] + text)
        return ids[len(before) :] if ids[: len(before)] == before else self.text_ids(text)
