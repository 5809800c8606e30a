"""Instruction rows as a checkpoint reads them: sampled, rendered with its own template, turned into token ids.

quantize.py calibrates and scores with it. A row is {"instruction", "input", "output"}, {"messages"} or,
for models without a template, {"text"}. What holds in tuning and serving holds here: the answer's ids are appended to
the ids that a server sends for the same question, and user text never becomes a control token.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from chat_prompts.prompt_encoding import PromptEncoder

SHAPE = '{"instruction", "input", "output"}, {"messages"} that end in an answer, or {"text"}'

Row = dict[str, Any]


class Example(NamedTuple):
    """A row as ids: what is given, and what is to be said with the token that ends it; `right` is the answer's text."""

    row: Row
    prompt: list[int]
    answer: list[int]
    right: str | None  # None: plain text, which asks nothing


# --- files ------------------------------------------------------------------------------------------------------------


def placed_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON list or of JSONL, each with the words that say where it stands."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            if (first := next((line for line in file if line.strip()), "")).lstrip()[:1] == "[":
                file.seek(0)
                yield from ((f"{path}, row {number}", row) for number, row in enumerate(json.load(file), 1))
                return
            if not first:
                return
            file.seek(0)
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
    except json.JSONDecodeError as error:
        place = f"{path}:{number}" if first.lstrip()[:1] != "[" else f"{path}:{error.lineno}"
        raise ValueError(f"{place} is not JSON ({error.msg}); a JSON list or one object a line is expected") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it first") from None


def conversation(row: Any) -> list[dict[str, str]] | str | None:
    """A row's messages, the answer last; the text of a row of plain text; None where it is neither."""
    if not isinstance(row, dict):
        return None
    messages = row.get("messages")
    if messages is None and "instruction" in row:
        question = {"role": "user", "content": row["instruction"], "input": row.get("input") or ""}
        messages = [question, {"role": "assistant", "content": row.get("output")}]
    if messages is None:
        return row["text"] if isinstance(row.get("text"), str) and row["text"].strip() else None
    if not isinstance(messages, list) or len(messages) < 2 or not all(isinstance(part, dict) for part in messages):
        return None
    texts = [value for part in messages for value in (part.get("role"), part.get("content"), part.get("input", ""))]
    return messages if all(isinstance(text, str) for text in texts) and messages[-1]["role"] == "assistant" else None


def sample_rows(path: object, option: str, count: int, seed: int) -> tuple[list[Row], int]:
    """At most `count` rows of a file, drawn with `seed`, in the file's order, and how many rows it has.

    JSONL is read line by line and only the drawn rows are held (algorithm R: Vitter 1985); a JSON list is held whole.
    Raises FileNotFoundError or ValueError that names the file and the place.
    """
    file = Path(str(path))
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; {option} takes a JSON or JSONL file of {SHAPE}")
    draw, seen = random.Random(seed), 0
    kept: list[tuple[int, Row]] = []
    for place, row in placed_rows(file):
        if conversation(row) is None:
            raise ValueError(f"{place} is no row of {SHAPE}; correct it or take it out")
        at = seen if seen < count else draw.randint(0, seen)
        if at < len(kept):
            kept[at] = (seen, row)
        elif at < count:
            kept.append((seen, row))
        seen += 1
    if not kept:
        raise ValueError(f"{file} holds no rows; {option} takes a JSON or JSONL file of {SHAPE}")
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])], seen


# --- ids --------------------------------------------------------------------------------------------------------------


class RowEncoder:
    """Rows to ids with one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self.prompts, self.folder = PromptEncoder(tokenizer), folder

    def example(self, row: Row) -> Example:
        """A row's ids; ValueError where the folder has no template for it, or one that changes questions or answers."""
        content = conversation(row)
        assert content is not None, "sample_rows lets no other row through"
        if isinstance(content, str):
            return Example(row, self.prompts.plain(""), self.prompts.text_ids(content), None)
        if not self.prompts.template:
            raise ValueError(
                f"{self.folder} has no chat_template.jinja to render instructions with; add one "
                '(tools/set_template.py), or give rows of {"text"}'
            )
        try:
            [turn] = self.prompts.last_turns([content])
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}; tools/set_template.py puts in another template") from None
        return Example(row, turn.prompt, turn.answer + turn.end, content[-1]["content"])


def encode(encoder: RowEncoder, rows: list[Row], limit: int) -> list[Example]:
    """Rows as ids of at most `limit` tokens; a longer one is cut at its end, first in its answer."""
    examples = []
    for example in map(encoder.example, rows):
        prompt = example.prompt[:limit]
        examples.append(example._replace(prompt=prompt, answer=example.answer[: limit - len(prompt)]))
    return examples


def fitting(encoder: RowEncoder, rows: list[Row], limit: int, path: object) -> list[Example]:
    """The rows that have at most `limit` tokens, as ids; ValueError where none has."""
    examples = [example for example in map(encoder.example, rows) if example.answer]
    kept = [example for example in examples if len(example.prompt) + len(example.answer) <= limit]
    if not kept:
        raise ValueError(f"every row of {path} is empty or longer than {limit} tokens; raise --max_length")
    return kept
