"""Instruction rows as a checkpoint reads them: sampled, rendered with its own template, turned into token ids.

quantize.py calibrates and scores with it. A row is {"instruction", "input", "output"}, {"messages"} or,
for models without a template, {"text"}. What holds in tuning and serving holds here: the answer's ids are appended to
the ids that a server sends for the same question, and user text never becomes a control token.
"""

import random
from pathlib import Path
from typing import Any, NamedTuple

from chat_prompts.prompt_encoding import PromptEncoder
from json_rows.instruction_rows import InstructionRow, is_plain_text, iterate_instructions, messages_of


class Example(NamedTuple):
    """A row as ids: what is given, and what is to be said with the token that ends it; `right` is the answer's text."""

    row: InstructionRow
    prompt: list[int]
    answer: list[int]
    right: str | None  # None: plain text, which asks nothing


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


class RowEncoder:
    """Rows to ids with one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self.prompts, self.folder = PromptEncoder(tokenizer), folder

    def example(self, row: InstructionRow) -> Example:
        """A row's ids; ValueError where the folder has no template for it, or one that changes questions or answers."""
        if is_plain_text(row):
            return Example(row, self.prompts.plain(""), self.prompts.text_ids(row["text"]), None)
        if not self.prompts.template:
            raise ValueError(
                f"{self.folder} has no chat_template.jinja to render instructions with; add one "
                '(tools/set_template.py), or give rows of {"text"}'
            )
        content = messages_of(row)
        try:
            [turn] = self.prompts.last_turns([content])
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}; tools/set_template.py puts in another template") from None
        return Example(row, turn.prompt, turn.answer + turn.end, content[-1]["content"])


def encode(encoder: RowEncoder, rows: list[InstructionRow], limit: int) -> list[Example]:
    """Rows as ids of at most `limit` tokens; a longer one is cut at its end, first in its answer."""
    examples = []
    for example in map(encoder.example, rows):
        prompt = example.prompt[:limit]
        examples.append(example._replace(prompt=prompt, answer=example.answer[: limit - len(prompt)]))
    return examples


def fitting(encoder: RowEncoder, rows: list[InstructionRow], limit: int, path: object) -> list[Example]:
    """The rows that have at most `limit` tokens, as ids; ValueError where none has."""
    examples = [example for example in map(encoder.example, rows) if example.answer]
    kept = [example for example in examples if len(example.prompt) + len(example.answer) <= limit]
    if not kept:
        raise ValueError(f"every row of {path} is empty or longer than {limit} tokens; raise --max_length")
    return kept
