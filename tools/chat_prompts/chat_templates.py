"""A chat template and its properties, found by rendering short conversations with it.

Published templates differ in more than their words: many ignore a message's `input`, some strip an answer's white
space, some render an answer differently once another question follows it (Qwen3 removes the reasoning), some move the
system message into the last question (Mistral). The probes below say which of these a template does.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

Messages = Sequence[dict[str, Any]]

# Lone surrogates are in no valid text, so a probe or a mark cannot be confused with what somebody wrote.
MARK = "\udfff"
QUESTION = {"role": "user", "content": "a", "input": ""}
QUESTIONS = ([QUESTION], [{"role": "system", "content": "s", "input": ""}, QUESTION])  # some templates want a system's


class AnswerLayout(NamedTuple):
    """The text that a template writes around an answer."""

    lead: str  # white space between the prompt and the answer
    tail: str  # everything behind the answer
    strips: tuple[bool, bool]  # whether white space at the answer's beginning and end is removed


class ChatTemplate:
    """Renders conversations with one tokenizer's template, or with a given one instead of it."""

    def __init__(self, tokenizer: Any, source: str | None = None) -> None:
        """source: Jinja; None: the tokenizer's own."""
        self.tokenizer = tokenizer
        own = tokenizer.chat_template
        self.source: str | None = source or (own.get("default") if isinstance(own, dict) else own)

    def render(self, messages: Messages, generate: bool) -> str:
        """The text of a conversation, with the beginning of an answer if `generate`.

        Raises ValueError where the template refuses the messages.
        """
        try:
            return self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.source, tokenize=False, add_generation_prompt=generate
            )
        except Exception as error:  # jinja2's errors and whatever a template's own expressions raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"the chat template cannot render these messages: {reason}") from error

    def try_render(self, messages: Messages, generate: bool) -> str:
        """As `render`; "" where the template refuses the messages."""
        try:
            return self.render(messages, generate)
        except ValueError:
            return ""

    @cached_property
    def uses_input(self) -> bool:
        """Whether the input of a question comes out in the text."""
        return any(
            MARK in self.try_render([*question[:-1], QUESTION | {"input": MARK}], True) for question in QUESTIONS
        )

    @cached_property
    def answer_layout(self) -> AnswerLayout | None:
        """None where answers do not follow their prompts: the template rewrites a question once it is answered."""
        for question in QUESTIONS:
            prompt = self.try_render(question, True)
            for following in ([], [QUESTION]):  # a template may render the end of a conversation in its own way
                before, found, tail = self._around_answer(question, MARK, following)
                lead = before[len(prompt) :]
                if not (prompt and found and before.startswith(prompt)) or lead.strip():
                    continue
                padded_before, _, padded_tail = self._around_answer(question, f" \n{MARK}\n ", following)
                return AnswerLayout(lead, tail, (padded_before == before, padded_tail == tail))
        return None

    def _around_answer(self, question: Messages, answer: str, following: Messages) -> tuple[str, str, str]:
        """The text before and behind the mark in an answer, the mark between them ("" where it does not come out)."""
        talk = [*question, {"role": "assistant", "content": answer, "input": ""}, *following]
        return self.try_render(talk, bool(following)).partition(MARK)
