"""Examples with the types in several orders: the permutations, complete sets of examples, and readers of the rows."""

import json
from itertools import permutations
from math import factorial
from pathlib import Path
from typing import Any

import ie_build
import numpy as np
import pytest
from conftest import RunScript
from instruction_data.type_orders import random_orders
from json_rows.instruction_rows import iterate_instructions

TYPES = ["person", "place", "work", "award"]
SENTENCES: list[dict[str, Any]] = [
    {"sentence": "Ann Lee was born in Oslo.",
     "entity_list": [{"name": "Ann Lee", "type": "person"}, {"name": "Oslo", "type": "place"}]},
    {"sentence": "Nobody came.", "entity_list": []},
    {"sentence": "李明出生于北京。",
     "entity_list": [{"name": "李明", "type": "person"}, {"name": "北京", "type": "place"}]},
]  # fmt: skip


@pytest.mark.parametrize("types", [1, 2, 3, 4, 60])
@pytest.mark.parametrize("count", [1, 5, 16])
def test_orders_are_distinct_if_there_are_enough_permutations(types: int, count: int) -> None:
    names = [f"t{number}" for number in range(types)]
    orders = random_orders(names, count, "0 ner en")
    distinct = min(count, factorial(types))
    assert len(orders) == count
    assert len({*map(tuple, orders)}) == len({*map(tuple, orders[:distinct])}) == distinct
    assert all(sorted(order) == sorted(names) for order in orders)
    assert orders[:distinct] == random_orders(names, 16, "0 ner en")[:distinct]


def test_orders_are_drawn_by_seed_and_are_uniform() -> None:
    assert random_orders(TYPES, 16, "0 ner en") == random_orders(TYPES, 16, "0 ner en")
    assert random_orders(TYPES, 16, "0 ner en") != random_orders(TYPES, 16, "1 ner en")
    assert random_orders(TYPES, 16, "0 ner en") != random_orders(TYPES, 16, "0 ner zh")
    firsts = [tuple(random_orders(TYPES[:3], 2, str(seed))[0]) for seed in range(3000)]
    counts = np.array([firsts.count(order) for order in permutations(TYPES[:3])])
    assert abs(counts - 500).max() < 4.5 * (3000 / 6 * 5 / 6) ** 0.5


def build(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Return the examples of a build from SENTENCES and TYPES."""
    (folder / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in SENTENCES))
    (folder / "types.json").write_text(json.dumps(TYPES))
    ie_build.main(str(folder / "in.jsonl"), str(folder / "rows.jsonl"), schema=str(folder / "types.json"), **options)
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_order_is_a_complete_set_of_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = build(tmp_path)
    rows = build(tmp_path, order_augmentation=5, seed=3)
    printed = capsys.readouterr().out
    assert "orders: 5 sets of examples" in printed
    assert printed.count("texts: en 2 (types: 4), zh 1 (types: 4), 1 of them without any item") == 2
    assert [row["order"] for row in rows] == [0, 1, 2, 3, 4] * 3
    sets = [[row for row in rows if row["order"] == number] for number in range(5)]
    assert len({row["instruction"] for row in rows if row["input"].isascii()}) == 5
    for examples in sets:
        english, nobody = examples[:2]
        assert [row["input"] for row in examples] == [one["sentence"] for one in SENTENCES]
        assert english["instruction"] == nobody["instruction"]
        for row, separator, original in zip(examples, (", ", ", ", "、"), given, strict=True):
            answer = json.loads(row["output"])
            assert separator.join(answer) in row["instruction"]
            assert answer == json.loads(original["output"])
            assert "order" not in original
    assert [*json.loads(sets[0][0]["output"])] == random_orders(TYPES, 1, "3 ner en")[0]
    assert rows == build(tmp_path, order_augmentation=5, seed=3)
    larger = build(tmp_path, order_augmentation=16, seed=3)
    assert [row for row in larger if row["order"] < 5] == rows


@pytest.mark.integration
def test_tuning_and_answering_read_rows_with_an_order(
    tmp_path: Path, tiny_checkpoint: Path, run_script: RunScript
) -> None:
    rows = build(tmp_path, order_augmentation=2)
    assert list(iterate_instructions(tmp_path / "rows.jsonl")) == rows
    run_script(
        "finetune/finetune.py", "--base_model", tiny_checkpoint, "--data_path", tmp_path / "rows.jsonl", "--output_dir",
        tmp_path / "adapter", "--max_steps", 1, "--batch_size", 6, "--micro_batch_size", 6, "--cache_dir",
        tmp_path / "cache",
    )  # fmt: skip
    run_script(
        "finetune/ie_run.py", "--base_model", tiny_checkpoint, "--lora_weights", tmp_path / "adapter", "--data_path",
        tmp_path / "rows.jsonl", "--output", tmp_path / "predictions.jsonl", "--max_new_tokens", 2,
    )  # fmt: skip
    answered = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    added = ("prediction", "finish_reason")
    assert [{key: value for key, value in row.items() if key not in added} for row in answered] == rows
    assert all(isinstance(row["prediction"], str) for row in answered)
