"""Detect the properties of a chat template by rendering short conversations with it.

Published templates differ in more than their wording: many ignore a message's `input`, some strip the white space
around an answer, some render the last answer differently from earlier ones (Qwen3). Some templates rewrite earlier
turns (Mistral moves the system message into the last question); `PromptEncoder.turns` detects this for each
conversation.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

Messages = Sequence[dict[str, Any]]

# Marks a position in rendered text. A lone surrogate never occurs in valid text, so no message contains it.
MARK = "\udfff"
UNSET_TOKEN = re.compile(r"'(\w+_token)' is undefined")  # jinja2's message for a special token that is not set
QUESTION = {"role": "user", "content": "a", "input": ""}
# Some templates require a system message.
QUESTIONS = ([QUESTION], [{"role": "system", "content": "s", "input": ""}, QUESTION])


class AnswerLayout(NamedTuple):
    """The text that a template writes before and after an answer."""

    prefix: str  # white space between the prompt and the answer
    suffix: str  # all text after the answer
    strips: tuple[bool, bool]  # whether the template strips white space before the answer, after it


class ChatTemplate:
    """Renders conversations with the chat template of a tokenizer, or with another template."""

    def __init__(self, tokenizer: Any, source: str | None = None) -> None:
        """source: Jinja source; None for the tokenizer's own main template."""
        self.tokenizer = tokenizer
        own = tokenizer.chat_template
        own = own.get("default") if isinstance(own, dict) else own
        self.source: str | None = source or (own.removeprefix("\ufeff") if own else None)  # byte order mark

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        """Return the text of a conversation; with `add_generation_prompt`, followed by the text that begins an answer.

        Raises ValueError if the template rejects the messages.
        """
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # jinja2's errors, and all errors of expressions in the template
            reason = " ".join(str(error).split()) or type(error).__name__
            if found := UNSET_TOKEN.search(reason):
                reason = (
                    f"the template writes {found[1]}, which the tokenizer does not have; use another template, or set "
                    f"{found[1]} in tokenizer_config.json if the model was trained with such a token"
                )
            raise ValueError(f"the chat template cannot render these messages: {reason}") from error

    def try_render(self, messages: Messages, add_generation_prompt: bool) -> str:
        """Return the text as `render` does, or "" if the template rejects the messages."""
        try:
            return self.render(messages, add_generation_prompt)
        except ValueError:
            return ""

    @cached_property
    def uses_input(self) -> bool:
        """Whether the template renders the input of a question."""
        return any(
            MARK in self.try_render([*question[:-1], QUESTION | {"input": MARK}], True) for question in QUESTIONS
        )

    @cached_property
    def answer_layout(self) -> AnswerLayout | None:
        """The text around an answer; None if the template renders a question differently once it has an answer.

        In that case, the text of a conversation does not begin with the prompt for its answer.
        """
        for question in QUESTIONS:
            prompt = self.try_render(question, True)
            for following in ([], [QUESTION]):  # some templates render the end of a conversation differently
                before, found, after = self._around_answer(question, MARK, following)
                prefix = before[len(prompt) :]
                if not (prompt and found and before.startswith(prompt)) or prefix.strip():
                    continue
                padded_before, _, padded_after = self._around_answer(question, f" \n{MARK}\n ", following)
                return AnswerLayout(prefix, after, (padded_before == before, padded_after == after))
        return None

    def _around_answer(self, question: Messages, answer: str, following: Messages) -> tuple[str, str, str]:
        """Return the text before the mark in `answer`, the mark ("" if it is not rendered), and the text after it."""
        conversation = [*question, {"role": "assistant", "content": answer, "input": ""}, *following]
        return self.try_render(conversation, bool(following)).partition(MARK)
