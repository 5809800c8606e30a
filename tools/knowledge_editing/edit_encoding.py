"""Encode the prompts and targets of edits as token ids, and find the token that ends a subject.

In completion form a question is plain text that the target continues: "The capital of France is" + " Paris". A space
joins them, except in languages that are written without spaces. In chat form the question is a user message in the
model's chat template and the target is the whole answer, as in tuning and serving (chat_prompts).
"""

import re
from itertools import product
from typing import Any

from chat_prompts.prompt_encoding import Message, PromptEncoder, instruction_messages
from chat_prompts.text_encoding import ANCHOR

FORMATS = ("auto", "completion", "chat")
# Scripts without spaces between words, with their punctuation: Thai to Myanmar, Khmer, Chinese, Japanese, full width.
NO_SPACES = re.compile(
    r"[\u0e00-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
OPENING = tuple("([{“‘«\n\t")  # no space follows these characters
SENTENCE_ENDS = tuple(".!?。！？…")
QUESTION_MARK = "\ue000"  # a private-use character, which stands for the question in a rendered prompt


def separator(question: str, target: str) -> str:
    """Return the text between a prompt and its continuation: a space, or "" where the language has no spaces."""
    written_together = NO_SPACES.match(question[-1:]) or (NO_SPACES.match(target) and NO_SPACES.search(question))
    return "" if not question or question.endswith(OPENING) or written_together else " "


class EditEncoder:
    """Encodes the questions and targets of edits.

    Attributes:
        prompts: the encoder of texts and conversations.
        is_chat: whether questions are sent as user messages through the chat template.
    """

    def __init__(self, tokenizer: Any, template: str | None = None, prompt_format: str = "auto") -> None:
        """template: Jinja source; None for the tokenizer's own template.

        prompt_format: completion, chat, or auto for chat if there is a template. Raises ValueError for another format,
        and for chat without a template.
        """
        if prompt_format not in FORMATS:
            raise ValueError(f"--prompt_format {prompt_format} is unknown; use one of {', '.join(FORMATS)}")
        self.tokenizer = tokenizer
        self.prompts = PromptEncoder(tokenizer, template)
        if prompt_format == "chat" and not self.prompts.template:
            raise ValueError(
                "--prompt_format chat needs a chat template, which the model does not have; use completion"
            )
        self.is_chat = prompt_format != "completion" and bool(self.prompts.template)

    @property
    def stop_ids(self) -> list[int]:
        """Ids on which generation must stop: EOS and the template's end-of-turn token."""
        return self.prompts.stop_ids

    def text_ids(self, text: str) -> list[int]:
        """Return BOS (if the tokenizer has one) and the ids of a plain text."""
        return self.prompts.plain_text_ids(text)

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def prompt_ids(self, question: str) -> list[int]:
        """Return the ids of the prompt that asks a question.

        In completion form, spaces at the end of the question belong to the target. Raises ValueError if the prompt
        becomes no token or the template rejects it.
        """
        if self.is_chat:
            return self.prompts.prompt_ids(instruction_messages(question))
        ids = self.text_ids(question.rstrip(" "))
        if not ids:
            raise ValueError(f"the prompt {question!r} becomes no token; write a question or a text to complete")
        return ids

    def target_ids(self, question: str, target: str) -> list[int]:
        """Return the ids of the target, which continue `prompt_ids(question)`.

        In completion form these are the ids of the joined text if those begin with the prompt's ids; otherwise the
        target is encoded as a continuation. Raises ValueError for a target that becomes no token.
        """
        if not target.strip():
            raise ValueError(f"the target {target!r} of {question!r} becomes no token; write the new answer")
        return self._chat_answer(question, target)[0] if self.is_chat else self._continuation(question, target)

    def answer_ids(self, question: str, target: str) -> list[int]:
        """Return `target_ids` and the ids that end the answer.

        The end is the end-of-turn of a chat template; in completion form a full stop, unless the target ends a
        sentence itself. Raises ValueError as `target_ids`.
        """
        ids = self.target_ids(question, target)
        if self.is_chat:
            return ids + self._chat_answer(question, target)[1]
        if target.rstrip().endswith(SENTENCE_ENDS):
            return ids
        return ids + self._continued_ids("。" if NO_SPACES.match(target.rstrip()[-1]) else ".")

    def _chat_answer(self, question: str, target: str) -> tuple[list[int], list[int]]:
        """Return the ids of an answer and of its end-of-turn."""
        answer: Message = {"role": "assistant", "content": target}
        [turn] = self.prompts.last_turns([[*instruction_messages(question), answer]])
        return turn.answer, turn.end

    def _continuation(self, question: str, target: str) -> list[int]:
        stem = question.rstrip(" ")
        target = target.strip()
        joint = question[len(stem) :] or separator(stem, target)
        prompt, whole = self.prompt_ids(question), self.text_ids(stem + joint + target)
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
            return whole[len(prompt) :]
        return self._continued_ids(joint + target)

    def _continued_ids(self, text: str) -> list[int]:
        """Return the ids of text that continues earlier text: no dummy prefix, no BOS."""
        return self.prompts.text_encoder.ids([(text, True)])[0]

    def subject_end(self, prompt: str, subject: str) -> int:
        """Return the index in `prompt_ids(prompt)` of the last token of the last occurrence of the subject.

        If a token contains the subject's last character and text after it, this is the index of that token. Raises
        ValueError if the subject is empty or not in the prompt.
        """
        ids = self.prompt_ids(prompt)
        text, start, stop = self._question_text(prompt)
        at = text.rfind(subject, start, stop) if subject else -1
        if at < 0:
            raise ValueError(f"the subject {subject!r} is not in the prompt {prompt!r}; correct one of them")
        end = at + len(subject)
        # A special token may remove the white space beside it, and decides whether the text after it is a continuation.
        for part, continues in product((text, text.lstrip(), text.rstrip(), text.strip()), (False, True)):
            removed = text.index(part)
            found, spans = self._ids_and_spans(part, continues)
            first = last_index_of(found, ids)
            covering = [index for index, (since, until) in enumerate(spans) if since < min(end - removed, until)]
            if first >= 0 and covering:
                return first + covering[-1]
        raise ValueError(
            f"the chat template changes the prompt {prompt!r}, so the subject {subject!r} is not found in its tokens; "
            "use --prompt_format completion"
        )

    def _question_text(self, prompt: str) -> tuple[str, int, int]:
        """Return the text between two special tokens that contains the question, and the question's bounds in it."""
        if not self.is_chat:
            return prompt.rstrip(" "), 0, len(prompt)
        rendered = self.prompts.rendered_prompt(instruction_messages(prompt))
        before, _, after = self.prompts.rendered_prompt(instruction_messages(QUESTION_MARK)).rpartition(QUESTION_MARK)
        before, after = before * rendered.startswith(before), after * rendered.endswith(after)
        question = rendered[len(before) : len(rendered) - len(after)]
        longest_first = sorted(self.prompts.special_tokens, key=len, reverse=True)
        special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        prefix = before[max((found.end() for found in special.finditer(before)), default=0) :]
        found = special.search(after)
        suffix = after[: found.start()] if found else after
        return prefix + question + suffix, len(prefix), len(prefix) + len(question)

    def _ids_and_spans(self, text: str, continues: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text and the [start, end) characters of each token."""
        encoder = self.prompts.text_encoder
        cut = encoder.anchor_length * continues
        encoded = encoder.backend.encode(ANCHOR * bool(cut) + text, add_special_tokens=False)
        offset = len(ANCHOR) * bool(cut)
        return encoded.ids[cut:], [(start - offset, end - offset) for start, end in encoded.offsets[cut:]]


def last_index_of(part: list[int], whole: list[int]) -> int:
    """Return where the last occurrence of `part` begins in `whole`; -1 if there is none."""
    places = range(len(whole) - len(part), -1, -1)
    return next((at for at in places if part and whole[at : at + len(part)] == part), -1)
