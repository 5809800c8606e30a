"""Instruction rows as a checkpoint reads them: sampled, rendered with its own template, turned into token ids.

quantize.py calibrates and scores with it. A row is {"instruction", "input", "output"}, {"messages"} or,
for models without a template, {"text"}. What holds in tuning and serving holds here: the answer's ids are appended to
the ids that a server sends for the same question, and user text never becomes a control token.
"""

import random
import re
from pathlib import Path
from typing import Any, NamedTuple

from json_rows.instruction_rows import InstructionRow, is_plain_text, iterate_instructions, messages_of

ANCHOR = "\ufdd0"  # a Unicode noncharacter: no text has it, and no piece of a tokenizer joins it to anything


class Example(NamedTuple):
    """A row as ids: what is given, and what is to be said with the token that ends it; `right` is the answer's text."""

    row: InstructionRow
    prompt: list[int]
    answer: list[int]
    right: str | None  # None: plain text, which asks nothing


# --- files ------------------------------------------------------------------------------------------------------------


def sample_rows(path: str | Path, count: int, seed: int) -> tuple[list[InstructionRow], int]:
    """At most `count` rows of a file, drawn with `seed`, in the file's order, and how many rows it has.

    Only the drawn rows are held in memory (algorithm R: Vitter 1985). Raises FileNotFoundError, or ValueError with file
    and line.
    """
    draw, seen = random.Random(seed), 0
    kept: list[tuple[int, InstructionRow]] = []
    for seen, row in enumerate(iterate_instructions(path, plain_text=True)):
        at = seen if seen < count else draw.randint(0, seen)
        if at < len(kept):
            kept[at] = (seen, row)
        elif at < count:
            kept.append((seen, row))
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])], seen + 1


# --- ids --------------------------------------------------------------------------------------------------------------


class Renderer:
    """Rows to ids with one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self.tokenizer, self.folder = tokenizer, folder
        self.controls = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        longest_first = sorted(filter(None, self.controls), key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def example(self, row: InstructionRow) -> Example:
        """A row's ids; ValueError where the folder has no template for it, or one that cannot tell the answer."""
        if is_plain_text(row):
            ids = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            ids += self.text_ids(row["text"])
            return Example(row, ids[:1], ids[1:], None)
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{self.folder} has no chat_template.jinja to render instructions with; add one "
                '(tools/set_template.py), or give rows of {"text"}'
            )
        content = messages_of(row)
        messages, guard = self.guarded(content)
        prompt, whole = self.render(messages[:-1], True), self.render(messages, False)
        if not whole.startswith(prompt):
            raise ValueError(
                f"the chat template of {self.folder} renders a question differently once it is answered, so answers "
                "cannot be told from prompts; put in another one (tools/set_template.py)"
            )
        rest = whole[len(prompt) :]
        end = self.control.search(rest)
        said = (rest[: end.start()] if end else rest.rstrip()).replace(guard, "")
        last = self.controls[end[0]] if end else self.tokenizer.eos_token_id
        answer = self.continued_ids(said) + ([] if last is None else [last])
        return Example(row, self.rendered_ids(prompt, guard), answer, content[-1]["content"])

    def guarded(self, messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], str]:
        """Messages in which a character that none of them holds breaks up every spelling of a control token."""
        used = {character for message in messages for text in message.values() for character in str(text)}
        guard = next(chr(code) for code in range(0xFDD0, 0x110000) if chr(code) not in used)

        def broken(text: str) -> str:
            return self.control.sub(lambda found: found[0][0] + guard + found[0][1:], text)

        return [
            {key: text if key == "role" else broken(text) for key, text in message.items()} for message in messages
        ], guard

    def render(self, messages: list[dict[str, str]], generate: bool) -> str:
        """The template's text; ValueError where it refuses the messages."""
        from jinja2 import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template of {self.folder} refuses a row: {error}; correct either") from None

    def rendered_ids(self, rendered: str, guard: str) -> list[int]:
        """Ids of a rendering: its control tokens are the template's own, the guards in user text are taken out."""
        ids: list[int] = []
        for part in re.split(f"({self.control.pattern})", rendered):
            if part in self.controls:
                ids.append(self.controls[part])
            elif part:
                ids += self.text_ids(part.replace(guard, ""))
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Ids of text in which nothing is a control token."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def continued_ids(self, text: str) -> list[int]:
        """The same of text that goes on after other text: without the space that SentencePiece puts before it."""
        before, ids = self.text_ids(ANCHOR), self.text_ids(ANCHOR + text)
        return ids[len(before) :] if ids[: len(before)] == before else self.text_ids(text)


def encode(renderer: Renderer, rows: list[InstructionRow], limit: int) -> list[Example]:
    """Rows as ids of at most `limit` tokens; a longer one is cut at its end, first in its answer."""
    examples = []
    for example in map(renderer.example, rows):
        prompt = example.prompt[:limit]
        examples.append(example._replace(prompt=prompt, answer=example.answer[: limit - len(prompt)]))
    return examples


def fitting(renderer: Renderer, rows: list[InstructionRow], limit: int, path: object) -> list[Example]:
    """The rows that have at most `limit` tokens, as ids; ValueError where none has."""
    examples = [example for example in map(renderer.example, rows) if example.answer]
    kept = [example for example in examples if len(example.prompt) + len(example.answer) <= limit]
    if not kept:
        raise ValueError(f"every row of {path} is empty or longer than {limit} tokens; raise --max_length")
    return kept
