"""Read published instruction data as instruction rows: Alpaca, seed tasks, CoT, code, Mol-Instructions and ShareGPT.

| format | keys of a row |
| --- | --- |
| `alpaca` | `instruction`, `input`, `output`; Mol-Instructions (with `metadata`) and code_alpaca have them too |
| `messages` | `messages` of `role` and `content` |
| `seed_tasks` | `instruction`, `instances` of `input` and `output`; each instance becomes a row |
| `cot` | FLAN: `inputs`, `targets`; or a question, its rationale and its answer under one of COT_KEYS |
| `code` | a task and its solution under one of CODE_KEYS |
| `sharegpt` | `conversations` of `from` and `value` |

The format is recognised for each row by its keys, so a file may mix formats.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from json_rows.instruction_rows import InstructionRow, row_error
from json_rows.row_files import iterate_objects

RowFormat = Literal["auto", "alpaca", "messages", "seed_tasks", "cot", "code", "sharegpt"]
# Question, rationale and answer: the CoT collection (kaist-ai), FLAN's sources, GSM8K-like files.
COT_KEYS = (
    ("source", "rationale", "target"), ("question", "rationale", "answer"), ("question", "chain_of_thought", "answer"),
    ("question", "cot", "answer"), ("inputs", "rationale", "targets"),
)  # fmt: skip
PLAIN_COT_KEYS = ("inputs", "targets")  # FLAN's cot_*.jsonl: the rationale is a part of the target
CODE_KEYS = (("prompt", "completion"), ("problem", "solution"), ("query", "answer"), ("instruction", "response"),
             ("question", "response"))  # fmt: skip
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "system": "system",
}  # fmt: skip
FINAL_ANSWER = {"en": "So the answer is", "zh": "所以答案是"}


def read_source_rows(path: str | Path, row_format: RowFormat = "auto") -> Iterator[tuple[str, InstructionRow]]:
    """Yield (location, instruction row) for each row of a file or folder in one of the formats above.

    Rows of alpaca and messages keep most other keys; of other formats, only instruction, input and output, or messages
    are read. Raises FileNotFoundError, or ValueError with file and line for a row of no known format, or without an
    answer.
    """
    for location, row in iterate_objects(path):
        try:
            rows = convert_row(row, row_format)
        except ValueError as error:
            raise ValueError(f"{location} {error}") from None
        for converted in rows:
            if error_text := row_error(converted, answers=True):
                raise ValueError(f"{location} {error_text}")
            yield location, converted


def convert_row(row: dict[str, Any], row_format: RowFormat = "auto") -> list[InstructionRow]:
    """Return the instruction rows of a published row.

    A conversation without an answer gives none, a task with several instances gives several. Raises ValueError, without
    file and line, if the row does not have the keys of its format.
    """
    known = row_format if row_format != "auto" else recognised_format(row)
    if known == "sharegpt":
        messages = sharegpt_messages(row.get("conversations"))
        return [{"messages": messages}] if messages else []
    if known == "seed_tasks":
        return seed_task_rows(row)
    if known == "cot":
        return [cot_row(row)]
    if known == "code" and not has_texts(row, "instruction", "output"):
        question, answer = next((keys for keys in CODE_KEYS if has_texts(row, *keys)), ("", ""))
        if not question:
            raise ValueError(
                f"has no task and solution (keys: {', '.join(map(str, row))}); see the formats in README.md"
            )
        return [{"instruction": row[question], "input": "", "output": row[answer]}]
    if known == "alpaca" or known == "code":
        kept = {name: value for name, value in row.items() if name not in ("prompt", "metadata", "text")}
        return [{**kept, "input": row.get("input") or ""}]
    return [row]


def recognised_format(row: dict[str, Any]) -> RowFormat:
    """Return the format of a row by its keys; raises ValueError for unknown keys."""
    if row.get("messages") is not None:
        return "messages"
    if row.get("conversations") is not None:
        return "sharegpt"
    if isinstance(row.get("instances"), list):
        return "seed_tasks"
    if has_texts(row, "instruction", "output"):
        return "alpaca"
    if any(has_texts(row, *keys) for keys in (*COT_KEYS, PLAIN_COT_KEYS)):
        return "cot"
    if any(has_texts(row, *keys) for keys in CODE_KEYS):
        return "code"
    formats = ", ".join(get_args(RowFormat)[1:])
    raise ValueError(f"has the keys of no known format ({', '.join(map(str, row)) or 'no keys'}); known: {formats}")


def has_texts(row: dict[str, Any], *keys: str) -> bool:
    """Return whether a row has a text under each key."""
    return all(isinstance(row.get(key), str) for key in keys)


def seed_task_rows(row: dict[str, Any]) -> list[InstructionRow]:
    """Return one row for each instance of a seed task; raises ValueError if it is not one."""
    instances = row.get("instances")
    if not isinstance(row.get("instruction"), str) or not isinstance(instances, list):
        raise ValueError("is not a seed task; it must have instruction and instances")
    if not all(isinstance(one, dict) and has_texts(one, "output") for one in instances):
        raise ValueError("has an instance without text under 'output'; correct it")
    return [
        {"instruction": row["instruction"], "input": one.get("input") or "", "output": one["output"]}
        for one in instances
    ]


def cot_row(row: dict[str, Any]) -> InstructionRow:
    """Return a chain-of-thought row: the answer is the rationale, followed by the final answer.

    The final answer is not repeated if the rationale already ends with it. Raises ValueError if keys are missing.
    """
    question, rationale, answer = next((keys for keys in COT_KEYS if has_texts(row, *keys)), ("", "", ""))
    if not question:
        if not has_texts(row, *PLAIN_COT_KEYS):
            raise ValueError(f"has no question with rationale and answer (keys: {', '.join(map(str, row))})")
        return {"instruction": row["inputs"].strip(), "input": "", "output": row["targets"].strip()}
    from text_language.language_detection import language_of

    reasons, final = row[rationale].strip(), row[answer].strip()
    if not reasons.rstrip(" .。").endswith(final.rstrip(" .。")):
        end = "。" if language_of(row[question]) == "zh" else "."
        lead = FINAL_ANSWER[language_of(row[question])]
        separator = "" if end == "。" else " "
        reasons = f"{reasons}\n{lead}{separator}{final}{'' if final.endswith(('.', '。')) else end}"
    return {"instruction": row[question].strip(), "input": "", "output": reasons}


def sharegpt_messages(conversations: object) -> list[dict[str, str]]:
    """Return ShareGPT's turns as messages that begin with a question and end with an answer; [] if nothing is left.

    Successive turns of one role are joined; answers before the first question and questions after the last answer are
    dropped. Raises ValueError for turns of another form.
    """
    if not isinstance(conversations, list):
        raise ValueError("has conversations that are not a list of turns")
    messages: list[dict[str, str]] = []
    for turn in conversations:
        if not isinstance(turn, dict) or not has_texts(turn, "from", "value"):
            raise ValueError("has a turn without text under 'from' and 'value'; correct it")
        role = SHAREGPT_ROLES.get(turn["from"])
        if role is None:
            raise ValueError(f"has a turn from {turn['from'][:40]!r}; known are {', '.join(SHAREGPT_ROLES)}")
        if not turn["value"].strip() or (role == "assistant" and not any(m["role"] == "user" for m in messages)):
            continue
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{turn['value']}"
        else:
            messages.append({"role": role, "content": turn["value"]})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages
