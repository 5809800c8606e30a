"""ie_build.py in the style schema_json gives the rows of IEPile's published converter, except for its defects."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import ie_build
import pytest

HEAD_TAIL = {"<relation>": [{"head": "<name>", "tail": "<name>"}]}


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def content(row: Any) -> Any:
    return json.loads(row["instruction"])


def build(folder: Path, source: Path, task: Any, published: list[Any], **options: Any) -> list[Any]:
    """Return the rows for the published input, in the wording and answer shape of the published rows."""
    entry: dict[str, Any] = {"instruction": content(published[0])["instruction"]}
    if task == "re":
        entry["answer"] = {"shape": HEAD_TAIL}
    elif task == "eet":
        entry["answer"] = {"shape": {"<event>": ["<trigger>"]}, "absent": "empty list"}
    wording = folder / "wording.json"
    wording.write_text(json.dumps({"tasks": {task: {"zh": entry}}}))
    ie_build.main(
        str(source / "sample.json"), str(folder / "rows.jsonl"), str(source / "schema.json"), task=task,
        style="schema_json", language="zh", wording=str(wording), strict=True, **options,
    )  # fmt: skip
    return read(folder / "rows.jsonl")


@pytest.mark.parametrize("task", ["ner", "re", "eet", "spo"])
def test_training_rows_are_those_of_the_published_converter(tmp_path: Path, shared_data: Path, task: str) -> None:
    source = shared_data / "iepile" / task.upper()
    published = read(source / "train_sorted.zh.json")
    rows = build(tmp_path, source, task, published)
    assert [(row["task"], row["instruction"], row["output"]) for row in rows] == [
        (task, row["instruction"], row["output"]) for row in published
    ]


def entry_text(entry: Any) -> str:
    """Return a schema entry as text, without the order of its roles or attributes."""
    parts = {key: sorted(value) if isinstance(value, list) else value for key, value in entry.items()} if (
        isinstance(entry, dict)
    ) else entry  # fmt: skip
    return json.dumps(parts, sort_keys=True, ensure_ascii=False)


def asked(rows: list[Any]) -> dict[str, Counter[str]]:
    """Return input -> multiset of the schema entries in its rows."""
    texts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        texts[content(row)["input"]].update(map(entry_text, content(row)["schema"]))
    return texts


def answered(rows: list[Any]) -> dict[str, Counter[str]]:
    """Return input -> multiset of the events in the answers of its rows, without the order of their roles."""
    texts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for label, events in json.loads(row["output"]).items():
            texts[content(row)["input"]].update(json.dumps([label, event], sort_keys=True) for event in events)
    return texts


@pytest.mark.parametrize("task", ["ee", "eea"])
def test_training_rows_of_events_are_those_of_the_published_converter(
    tmp_path: Path, shared_data: Path, task: str
) -> None:
    """The published converter writes roles in an order of a hash, and drops an event without arguments in EEA."""
    source = shared_data / "iepile" / task.upper()
    published = read(source / "train_sorted.zh.json")
    rows = build(tmp_path, source, task, published)
    assert asked(rows) == asked(published)
    without_arguments = json.dumps(["组织关系-裁员", {}], sort_keys=True)
    ours, theirs = answered(rows), answered(published)
    added = {text: found - theirs[text] for text, found in ours.items()}
    assert [dict(items) for items in added.values() if items] == ([{without_arguments: 1}] if task == "eea" else [])
    assert not any(theirs[text] - found for text, found in ours.items())


@pytest.mark.parametrize("task", ["ner", "re", "spo", "ee", "eet", "eea", "kg"])
def test_test_rows_ask_for_the_types_of_the_published_converter(tmp_path: Path, shared_data: Path, task: str) -> None:
    source = shared_data / "iepile" / task.upper()
    published = read(source / "test.zh.json")
    rows = build(tmp_path, source, task, published, split="test")
    assert asked(rows) == asked(published)
    assert [len(content(row)["schema"]) for row in rows] == [len(content(row)["schema"]) for row in published]


def test_knowledge_graph_rows_have_the_stated_attributes(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "iepile/KG"
    rows = build(tmp_path, source, "kg", read(source / "test.zh.json"))
    for row, entry in zip(rows, read(source / "sample.json"), strict=True):
        triples = {
            (head, attribute, value)
            for head, attributes in json.loads(row["output"]).get("人物", {}).items()
            for attribute, values in attributes.items()
            for value in ([values] if isinstance(values, str) else values)
        }
        assert triples == {(item["head"], item["relation"], item["tail"]) for item in entry["relation"]}
    first = json.loads(rows[0]["output"])["人物"]
    assert first["明治天皇"] == {"别名": "睦仁", "父母": ["孝明天皇", "英照皇太后", "权大纳言"]}


def test_a_positive_is_asked_with_its_hard_negatives(tmp_path: Path, shared_data: Path) -> None:
    """The published rows are not reproduced: they shuffle positives, hard and other negatives into one list."""
    source = shared_data / "iepile/SPO"
    published = read(source / "train_hard.zh.json")
    hard = tmp_path / "hard.json"
    confusable = ["文学作品_主角_人物", "影视作品_编剧_人物", "影视作品_导演_人物"]
    hard.write_text(json.dumps({"图书作品_作者_人物": confusable}))
    rows = build(tmp_path, source, "spo", published, hard_negatives=str(hard), negative_batches=1)
    first = [row for row in rows if content(row)["input"] == content(rows[0])["input"]]
    batches = [["_".join(entry.values()) for entry in content(row)["schema"]] for row in first]
    assert batches[0] == ["图书作品_作者_人物", "影视作品_导演_人物", "影视作品_编剧_人物", "文学作品_主角_人物"]
    assert len(batches) == 2 and not any(json.loads(first[1]["output"]).values())
