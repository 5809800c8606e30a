"""extract_api.py: the answers of any model can be parsed, and have types of the schema and correct offsets."""

import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from routes.extract_api import DECODING, ExtractQueue
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import QueueOverflowError

TEXTS = {
    "en": "Dabe Kilo was born in Marolo in 1950. She works for Atlas Salt Press.",
    "zh": "李山水生于1950年，在国家出版公司工作。他是《日月星光》的作者。",
}
SCHEMAS: dict[str, Any] = {
    "ner": ["person", "地点", 'odd "type" \\ 🤖'],
    "re": ["born in", "任职"],
    "spo": [{"subject_type": "person", "predicate": "born in", "object_type": "place"}, "人物_作者_作品"],
    "ee": {"employment": ["who", "公司"], "出生": []},
}


def ask(server: Any, text: str, task: str, **more: Any) -> dict[str, Any]:
    """Return the answer of /extract; asserts that the request succeeds."""
    body = {"text": text, "task": task, "schema": SCHEMAS[task], "max_tokens": 40} | more
    status, answer = server.post("/extract", body)
    assert (status, answer["error"]) == (200, None), answer
    return answer


def names(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all names of an answer."""
    found = list(answer.get("entities", []))
    for triple in answer.get("triples", []):
        found += [triple["subject"], triple["object"]]
    for event in answer.get("events", []):
        found += [*filter(None, [event["trigger"]]), *event["arguments"]]
    return found


def test_full_queue_refuses_a_request_until_another_has_ended() -> None:
    queue, engine = ExtractQueue(2), SimpleNamespace(check_admission=lambda: None)
    with queue.admitted(engine):
        with queue.admitted(engine), pytest.raises(QueueOverflowError), queue.admitted(engine):
            pass
        with queue.admitted(engine):
            assert queue.requests == 2
    assert queue.requests == 0


def test_settings_of_the_checkpoint_do_not_change_greedy_decoding() -> None:
    """vLLM takes parameters that are missing in a request from the checkpoint's generation_config.json."""
    request = CompletionRequest(prompt=[1], **DECODING)
    checkpoint = {"temperature": 0.7, "repetition_penalty": 1.1, "top_p": 0.8, "top_k": 20}
    used = request.to_sampling_params(10, checkpoint)
    assert (used.temperature, used.repetition_penalty, used.top_p, used.top_k) == (0, 1, 1, 0)


@pytest.mark.parametrize("task", SCHEMAS)
@pytest.mark.parametrize("language", TEXTS)
def test_answer_has_types_of_the_schema_and_offsets_of_the_text(server: Any, task: str, language: str) -> None:
    """The model has random weights, so only the grammar ensures the form of its answers."""
    text = TEXTS[language]
    for tokens, from_text in product((1, 7, 40, 200), (True, False)):
        answer = ask(server, text, task, max_tokens=tokens, names_from_text=from_text)
        assert answer["windows"] == 1
        assert 1 <= answer["num_output_tokens_cf"] <= tokens
        [plural] = {"entities", "triples", "events"} & set(answer)
        assert plural == {"ner": "entities", "ee": "events"}.get(task, "triples")
        for each in names(answer):
            assert each["in_text"] == bool(each["offsets"])
            assert each["in_text"] == (each["name"].strip() in text)
            assert each["in_text"] or not from_text
            assert all(text[start:end] == each["name"].strip() for start, end in each["offsets"])
        kinds = {"born in", "作者"} if task == "spo" else set(SCHEMAS[task])
        assert {each.get("relation") or each["type"] for each in answer[plural]} <= kinds
        if task == "ee":
            roles = {argument["role"] for each in answer[plural] for argument in each["arguments"]}
            assert roles <= {"who", "公司"}
    assert not ask(server, text, task, max_tokens=1)["complete"]


def test_long_text_is_split_and_offsets_refer_to_the_whole(server: Any) -> None:
    text = "".join(f"Dabe number {number} was born in Kilo. 他在公司工作。\n" for number in range(60))
    answer = ask(server, text, "ner", window_tokens=60)
    assert answer["windows"] > 10
    assert answer["num_output_tokens_cf"] > answer["windows"]
    for each in answer["entities"]:
        assert all(text[start:end] == each["name"].strip() for start, end in each["offsets"])
    assert ask(server, text, "ner")["windows"] == 60  # the usual length of the tuning texts: one line
    assert ask(server, text, "ner", window_tokens=120)["windows"] < answer["windows"]
    assert ask(server, text, "re")["windows"] < answer["windows"]


def test_schema_is_asked_in_the_batches_of_the_tuning(server: Any) -> None:
    schema = {f"事件{number}": ["谁"] for number in range(8)}  # 4 of them in a question
    answer = ask(server, TEXTS["zh"], "ee", schema=schema, max_tokens=1)
    assert (answer["windows"], answer["num_output_tokens_cf"]) == (1, 2)
    events = ask(server, TEXTS["zh"], "ee", schema=schema, max_tokens=200)["events"]
    assert {event["type"] for event in events} <= schema.keys()


def test_empty_text_gives_an_empty_answer(server: Any) -> None:
    answer = ask(server, " \n", "re")
    assert answer == {"triples": [], "complete": True, "windows": 0, "num_output_tokens_cf": 0, "error": None}


def test_same_request_gives_the_same_answer(server: Any) -> None:
    first = ask(server, TEXTS["en"], "spo", max_tokens=60)
    assert ask(server, TEXTS["en"], "spo", max_tokens=60, language="auto") == first
    assert ask(server, TEXTS["en"], "spo", max_tokens=60, language="en") == first


def body(**changes: Any) -> dict[str, Any]:
    return {"text": "Dabe was here.", "task": "ner", "schema": ["person"]} | changes


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (b"{", 400, "the body is not JSON: "),
        ([1], 422, "the body must be a JSON object; known fields: text, task, schema, "),
        (body(task="kg"), 422, "task: input should be 'ner', 're', 'spo' or 'ee'"),
        (body(schema=[]), 400, "the schema is empty or not a list; the task ner needs a schema such as "),
        (body(schema={"person": []}), 400, "the schema is empty or not a list"),
        (body(schema=["person"] * 2), 400, "the schema repeats 'person' or one of its roles"),
        (body(schema=[f"type {number}" for number in range(501)]), 400, "more than 500 types and roles"),
        (body(schema=["word " * 30 + str(number) for number in range(40)]), 400, "tokens, the context 512"),
        (body(language="fr"), 422, "language: input should be 'auto', 'en' or 'zh'"),
        (body(parameters={}), 422, "unknown field parameters; known: text, task, schema, language, model, "),
        (body(max_tokens=0), 422, "max_tokens: input should be greater than or equal to 1"),
        (body(model="none"), 404, "there is no model 'none'; served: "),
        (b'{"text": "\\ud800", "task": "ner", "schema": ["x"]}', 422, "half of a surrogate pair"),
    ],
)
def test_errors_come_in_the_envelope(server: Any, sent: Any, status: int, message: str) -> None:
    answered, answer = server.post("/extract", sent)
    assert (answered, set(answer)) == (status, {"complete", "windows", "num_output_tokens_cf", "error"})
    assert message in answer["error"]
    assert "\n" not in answer["error"]


def test_launcher_refuses_a_damaged_extraction_json(run_script: Any, tuned_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tuned_checkpoint, tmp_path / "model")
    for content, fault in (
        ("{", "is damaged"),
        ('{"tasks": {"ner": {"en": {"instruction": 7}}}}', "ner, en: an object"),
    ):
        (folder / "extraction.json").write_text(content)
        error = run_script("inference/launch_vllm.py", "--model", folder, status=2).stderr
        assert error.startswith(f"error: {folder}/extraction.json")
        assert fault in error
        assert error.count("\n") == 1
