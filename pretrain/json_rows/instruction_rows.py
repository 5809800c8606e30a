"""Check instruction rows and convert them to conversations, for tuning, inference and calibration alike.

A row is {"instruction", "input", "output"} or {"messages": [{"role", "content", "input"}, ...]}. `input` is optional;
in a conversation only user messages may have it. An {"instruction"} row may also have `system`, the text of a system
message, and `history`, a list of earlier [question, answer] pairs. Other keys of a row are kept. Other keys of a
message are ignored, except UNSUPPORTED keys: they change the meaning of the message, and are refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from json_rows.row_files import Row, iterate_rows

SHAPE = '{"instruction", "input", "output"} or {"messages"}'
ROLES = ("system", "user", "assistant")
EMPTY: tuple[object, ...] = (None, "", [], {})  # values that count as absent
UNSUPPORTED = ("weight", "tool_calls", "function_call", "reasoning_content")  # keys of a message

Message = dict[str, str]
InstructionRow = dict[str, Any]


def checked_rows(path: str | Path, answers: bool, blank_lines: bool = False, plain_text: bool = False) -> Iterator[Row]:
    """Yield the rows of `iterate_rows`; a row that is not an instruction row has an error instead of its content.

    answers: require that every row ends with an answer, as for tuning, and was not rejected by instruct_select.py.
    plain_text: also accept rows of {"text"}.
    """
    for row in iterate_rows(path, blank_lines):
        if row.content is None or (plain_text and is_plain_text(row.content)):
            yield row
            continue
        error = row_error(row.content, answers)
        error = f"{error}; a row is {SHAPE}" if error else ""
        if answers and (name := row.content.get("rejected_by")):
            error = f"was rejected by the filter {name!r:.40} of instruct_select.py; remove the row"
        yield Row(row.location, None, error) if error else row


def iterate_instructions(path: str | Path, answers: bool = True, plain_text: bool = False) -> Iterator[InstructionRow]:
    """Yield the contents of the rows of `checked_rows`; raises ValueError at the first row with an error."""
    for row in checked_rows(path, answers, plain_text=plain_text):
        if row.content is None:
            raise ValueError(f"{row.location} {row.error}")
        yield row.content


def is_plain_text(row: InstructionRow) -> bool:
    """Return whether a row has the form {"text"}: plain text for models without a chat template."""
    text = row.get("text")
    return isinstance(text, str) and bool(text.strip()) and "instruction" not in row and "messages" not in row


def row_error(row: InstructionRow, answers: bool) -> str:
    """Return why a row is not an instruction row, or ""."""
    if row.get("messages") is not None:
        for key in ("instruction", "input", "system", "history", *(("output",) if answers else ())):
            if not is_empty(row.get(key)):
                return f"has both messages and {key!r}"
        return messages_error(row["messages"], answers)
    for key in ("instruction", "output") if answers else ("instruction",):
        if not isinstance(row.get(key), str):
            return f"has no text under {key!r} (keys: {', '.join(map(str, row)) or 'none'})"
    for key in ("input", "system"):
        if row.get(key) is not None and not isinstance(row[key], str):
            return f"has {'an' if key == 'input' else 'a'} {key} that is not text"
    return "" if is_history(row.get("history")) else "has a history that is not a list of [question, answer] pairs"


def is_empty(value: object) -> bool:
    """Return whether a value is absent, or an empty text, list or object; 0 and false are not empty."""
    return any(type(value) is type(empty) and value == empty for empty in EMPTY)


def is_history(value: object) -> bool:
    """Return whether a value is empty, or a list of pairs of texts."""
    pairs = value if isinstance(value, list) else [] if is_empty(value) else [None]
    return all(isinstance(pair, list) and len(pair) == 2 and {*map(type, pair)} == {str} for pair in pairs)


def messages_error(messages: object, answers: bool) -> str:
    """Return why messages are not a conversation, or ""."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return "has messages that are not a list of objects"
    for message in messages:
        if message.get("role") not in ROLES:
            return f"has a message whose role is not one of {', '.join(ROLES)}"
        if not isinstance(message.get("content"), str):
            return "has a message without text under 'content'"
        text = message.get("input")
        if not isinstance(text, str | None) or (text and message["role"] != "user"):
            return "has a message whose input is not text, or an input in a message whose role is not user"
        for key in UNSUPPORTED:
            if not is_empty(message.get(key)) and (key != "weight" or message[key] != 1):
                return f"has a message with {key!r}, which cannot be used; remove it"
    question = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
    if not question or question[0]["role"] == "assistant" or question[-1]["role"] != "user":
        fact = "is empty, begins with an answer or does not end with a user message"
        return f"has messages whose prompt (the messages before the final answer) {fact}"
    return "has messages that do not end with an answer (role assistant)" if answers and question is messages else ""


def messages_of(row: InstructionRow) -> list[Message]:
    """Return the conversation of a row; an {"instruction"} row becomes one user and one assistant message.

    Its `system` and `history` come before these. The answer is "" if `output` is missing or not text, which `row_error`
    accepts if no answers are required.
    """
    if row.get("messages") is None:
        before = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        for question, answer in row.get("history") or ():
            before += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        asked = {"role": "user", "content": row["instruction"], "input": row.get("input") or ""}
        answer = row.get("output")
        return [*before, asked, {"role": "assistant", "content": answer if isinstance(answer, str) else ""}]
    keys = ("role", "content", "input")
    return [{key: message[key] for key in keys if message.get(key) is not None} for message in row["messages"]]


def prompt_messages(row: InstructionRow) -> list[Message]:
    """Return the conversation of a row without its final answer: the messages of the prompt."""
    messages = messages_of(row)
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages
