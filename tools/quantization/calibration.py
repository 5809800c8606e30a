"""Sample instruction rows and turn them into token ids with a checkpoint's own chat template.

A row is {"instruction", "input", "output"}, {"messages"} or, for models without a template, {"text"}. Tuning and
serving give the same ids (chat_prompts).
"""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from chat_prompts.prompt_encoding import PromptEncoder
from json_rows.instruction_rows import InstructionRow, is_plain_text, iterate_instructions, messages_of


class CalibrationExample(NamedTuple):
    """A row as token ids: the prompt, and the answer with its end token. expected: the answer's text."""

    row: InstructionRow
    prompt: list[int]
    answer: list[int]
    expected: str | None  # None: plain text without a prompt


def sample_rows(path: str | Path, count: int, seed: int) -> tuple[list[InstructionRow], int]:
    """Return a random sample of at most `count` rows in file order, and the number of rows in the file.

    Only the sample is held in memory (algorithm R: Vitter 1985). Raises FileNotFoundError, or ValueError with file and
    line.
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
    """Encodes rows with one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self.prompts, self.folder = PromptEncoder(tokenizer), folder

    def example(self, row: InstructionRow) -> CalibrationExample:
        """Return a row as token ids; ValueError if the template is missing or changes questions or answers."""
        if is_plain_text(row):
            return CalibrationExample(row, self.prompts.plain(""), self.prompts.text_ids(row["text"]), None)
        if not self.prompts.template:
            raise ValueError(
                f"{self.folder} has no chat_template.jinja to render instructions with; add one "
                '(tools/set_template.py), or give rows of {"text"}'
            )
        messages = messages_of(row)
        try:
            [turn] = self.prompts.last_turns([messages])
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}; choose another template with tools/set_template.py") from None
        return CalibrationExample(row, turn.prompt, turn.answer + turn.end, messages[-1]["content"])


def truncated_examples(encoder: RowEncoder, rows: Iterable[InstructionRow], limit: int) -> list[CalibrationExample]:
    """Return the rows as examples of at most `limit` tokens; longer ones are truncated at the end."""
    examples = []
    for example in map(encoder.example, rows):
        prompt = example.prompt[:limit]
        examples.append(example._replace(prompt=prompt, answer=example.answer[: limit - len(prompt)]))
    return examples


def fitting_examples(
    encoder: RowEncoder, rows: Iterable[InstructionRow], limit: int, path: object
) -> list[CalibrationExample]:
    """Return the rows of at most `limit` tokens as examples; ValueError if there are none."""
    examples = [example for example in map(encoder.example, rows) if example.answer]
    kept = [example for example in examples if len(example.prompt) + len(example.answer) <= limit]
    if not kept:
        raise ValueError(f"every row of {path} is empty or longer than {limit} tokens; raise --max_length")
    return kept
