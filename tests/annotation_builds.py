"""Annotated sentences, and builds of their extraction examples with ie_build.py, for tests."""

import json
from pathlib import Path
from typing import Any

import ie_build

ANN: dict[str, Any] = {
    "sentence": "Ann Lee was born in Oslo.",
    "entity_list": [{"name": "Ann Lee", "type": "person"}, {"name": "Oslo", "type": "place"}],
    "relation_list": [{"subject": "Ann Lee", "relation": "born in", "object": "Oslo"}],
}
LI_MING = {
    "sentence": "李明出生于北京。",
    "entity_list": [{"name": "李明", "type": "人物"}, {"name": "北京", "type": "地点"}],
    "relation_list": [{"subject": "李明", "relation": "出生地", "object": "北京"}],
}
TYPES = {
    "entity": {"en": ["place", "person", "work"], "zh": ["人物", "作品", "地点"]},
    "relation": {"en": ["born in"], "zh": ["出生地", "任职"]},
}


def write_json(path: Path, *values: Any, lines: bool = True) -> Path:
    """Write the values as JSON, one per line; with lines=False, write only the first value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values) if lines else json.dumps(values[0])
    path.write_text(text, encoding="utf-8")
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def build_rows(folder: Path, *sentences: Any, types: Any = None, **options: Any) -> list[dict[str, str]]:
    """Return the examples of a build in `folder` from these annotations and types."""
    given = write_json(folder / "annotated.jsonl", *sentences)
    if types is not None:
        options["schema"] = str(write_json(folder / "types.json", types, lines=False))
    ie_build.main(input=str(given), output=str(folder / "rows.jsonl"), **options)
    return read(folder / "rows.jsonl")


def extraction(folder: Path) -> Any:
    return json.loads((folder / "extraction.json").read_text(encoding="utf-8"))["tasks"]
