"""Generated instruction rows: a sentence about two names, and the triple that it states."""

import json
import random
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def rows() -> list[dict[str, str]]:
    """Sixty rows of different lengths; every third is about entities."""
    draw = random.Random(3)
    syllables = [a + b for a in "bdfklmnrstv" for b in "aeiou"]
    rows: list[dict[str, str]] = []
    for number in range(60):
        person, place = ("".join(draw.choices(syllables, k=draw.randint(2, 5))).title() for _ in range(2))
        answer: dict[str, object] = {"born in": [{"subject": person, "object": place}]}
        if number % 3 == 0:
            answer = {"person": [person], "place": [place]}
        rows.append(
            {
                "instruction": "Extract the entities." if number % 3 == 0 else "Extract the relations.",
                "input": f"{person} was born in {place}." * draw.randint(1, 3) if number % 5 else "",
                "output": json.dumps(answer),
            }
        )
    return rows


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
