"""Published formats of instruction data as instruction rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from instruction_generation.source_rows import convert_row, read_source_rows
from json_rows.instruction_rows import row_error

ANSWER = {"instruction": "Q", "input": "", "output": "A"}
ROWS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "alpaca": ({"instruction": "Q", "input": "", "output": "A"}, [ANSWER]),
    "alpaca without input": ({"instruction": "Q", "output": "A", "id": 3}, [{**ANSWER, "id": 3}]),
    "python code instructions": ({"instruction": "Q", "input": "", "output": "A", "prompt": "Below is"}, [ANSWER]),
    "mol-instructions": (
        {"instruction": "Q", "input": "[C][O]", "output": "A", "metadata": '{"split": "train"}'},
        [{"instruction": "Q", "input": "[C][O]", "output": "A"}],
    ),
    "seed task": (
        {"id": "s", "name": "n", "instruction": "Q", "is_classification": True,
         "instances": [{"input": "x", "output": "A"}, {"input": "", "output": "B"}]},
        [{"instruction": "Q", "input": "x", "output": "A"}, {"instruction": "Q", "input": "", "output": "B"}],
    ),
    "flan cot": ({"inputs": "Q\n", "targets": "Because. The answer is A.", "task": "t"},
                 [{"instruction": "Q", "input": "", "output": "Because. The answer is A."}]),
    "cot collection": ({"source": "Q", "target": "42", "rationale": "Six times seven.", "type": "CoT"},
                       [{"instruction": "Q", "input": "", "output": "Six times seven.\nSo the answer is 42."}]),
    "rationale ends with the answer": ({"question": "Q", "answer": "42", "rationale": "It is 42."},
                                       [{"instruction": "Q", "input": "", "output": "It is 42."}]),
    "chinese cot": ({"question": "六乘七？", "answer": "42", "rationale": "六七四十二。"},
                    [{"instruction": "六乘七？", "input": "", "output": "六七四十二。\n所以答案是42。"}]),
    "code alpaca": ({"prompt": "Q", "completion": "A"}, [ANSWER]),
    "oss instruct": ({"lang": "python", "problem": "Q", "solution": "A"}, [ANSWER]),
    "code feedback": ({"query": "Q", "answer": "A", "resource": "r"}, [ANSWER]),
    "sharegpt": (
        {"id": "x", "conversations": [
            {"from": "gpt", "value": "Hello"}, {"from": "human", "value": "Q"}, {"from": "human", "value": "more"},
            {"from": "gpt", "value": "A"}, {"from": "human", "value": "unanswered"}]},
        [{"messages": [{"role": "user", "content": "Q\n\nmore"}, {"role": "assistant", "content": "A"}]}],
    ),
    "sharegpt with system": (
        {"conversations": [{"from": "system", "value": "S"}, {"from": "user", "value": "Q"},
                           {"from": "chatgpt", "value": "A"}]},
        [{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"},
                       {"role": "assistant", "content": "A"}]}],
    ),
    "sharegpt without answer": ({"conversations": [{"from": "human", "value": "Q"}]}, []),
    "messages": ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
                 [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}]),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_published_row_becomes_instruction_rows(name: str) -> None:
    row, expected = ROWS[name]
    assert convert_row(row) == expected
    assert not any(row_error(converted, answers=True) for converted in expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "rows.jsonl:2 has the keys of no known format (text)"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "rows.jsonl:2 has a turn from 'alien'"),
        ({"conversations": [{"from": "human"}]}, "rows.jsonl:2 has a turn without text"),
        ({"instruction": "Q", "instances": [{"input": "x"}]}, "rows.jsonl:2 has an instance without text"),
        ({"instruction": "Q", "input": 5, "output": "A"}, "rows.jsonl:2 has an input that is not text"),
    ],
)
def test_row_of_no_format_is_an_error_with_its_place(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(ANSWER)}\n{json.dumps(row)}\n")
    with pytest.raises(ValueError) as error:
        list(read_source_rows(path))
    assert message in str(error.value)


def test_seed_tasks_of_alpaca_are_read(shared_data: Path) -> None:
    rows = [row for _, row in read_source_rows(shared_data / "seed_tasks.jsonl")]
    assert len(rows) == 175 and all(row["instruction"] and row["output"] for row in rows)
