"""The server with a real LLaMA: it answers a question, and extracts under the grammar."""

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def real_server(start_server: Any, real_model: Path) -> Any:
    return start_server(real_model, "--max-model-len", 1024)


def test_generate_answers_and_ends(real_server: Any) -> None:
    answer = real_server.generate("In which city is the Eiffel Tower?", temperature=0, max_tokens=60)
    assert "Paris" in answer["generated_text"]
    assert answer["num_output_tokens_cf"] < 60


def test_extract_returns_grounded_spans_although_the_model_is_not_tuned_to_extract(real_server: Any) -> None:
    text = "Marie Curie was born in Warsaw."
    body = {"task": "ner", "schema": ["person", "location"], "text": text, "max_tokens": 100}
    status, answer = real_server.post("/extract", body)
    assert status == 200 and answer["error"] is None, answer
    for entity in answer["entities"]:
        for start, end in entity["offsets"]:
            assert text[start:end] == entity["name"]
