"""Sample instruction rows and turn them into token ids with a checkpoint's own chat template.

A row is {"instruction", "input", "output"}, {"messages"} or, for models without a template, {"text"}. Tuning and
serving give the same ids (chat_prompts).
"""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from chat_prompts.prompt_encoding import PromptEncoder
from json_rows.instruction_rows import InstructionRow, is_plain_text, iterate_instructions, messages_of


class CalibrationExample(NamedTuple):
    """A row as token ids: the prompt, and the answer with its end token. expected: the answer's text."""

    prompt: list[int]
    answer: list[int]
    expected: str | None  # None: plain text without a prompt


def sample_rows(path: str | Path, count: int, seed: int) -> tuple[list[InstructionRow], int]:
    """Return a random sample of at most `count` rows in file order, and the number of rows in the file.

    Raises FileNotFoundError, or ValueError with file and line.
    """
    rows = list(iterate_instructions(path, plain_text=True))
    chosen = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    return [rows[index] for index in sorted(chosen)], len(rows)


def encode_row(prompts: PromptEncoder, row: InstructionRow, folder: Path) -> CalibrationExample:
    """Return a row as token ids; ValueError if the folder's template is missing or changes questions or answers."""
    if is_plain_text(row):
        return CalibrationExample(prompts.plain(""), prompts.text_ids(row["text"]), None)
    if not prompts.template:
        raise ValueError(
            f"{folder} has no chat_template.jinja to render instructions with; add one "
            '(tools/set_template.py), or give rows of {"text"}'
        )
    messages = messages_of(row)
    try:
        [turn] = prompts.last_turns([messages])
    except ValueError as error:
        raise ValueError(f"{folder}: {error}; choose another template with tools/set_template.py") from None
    return CalibrationExample(turn.prompt, turn.answer + turn.end, messages[-1]["content"])


def truncate_examples(examples: Iterable[CalibrationExample], limit: int) -> list[list[int]]:
    """Return the ids of prompt and answer of each example, at most `limit`."""
    return [(example.prompt + example.answer)[:limit] for example in examples]


def select_fitting(examples: Iterable[CalibrationExample], limit: int, path: object) -> list[CalibrationExample]:
    """Return the examples with an answer and at most `limit` tokens; ValueError if there are none."""
    kept = [example for example in examples if example.answer and len(example.prompt + example.answer) <= limit]
    if not kept:
        raise ValueError(f"every row of {path} is empty or longer than {limit} tokens; raise --max_length")
    return kept
