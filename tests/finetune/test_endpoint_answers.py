"""finetune/ie_run.py with a server: retries, resuming, errors, orders and parts of schemas, and grammars."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import ie_run
import pytest
from answer_generation.answer_schemas import answer_schema, follows
from answer_generation.batched_generation import GeneratedAnswer
from answer_generation.schema_parts import merged_answer, question_parts, rows_in_orders
from chat_server import ChatServer, chat_server, completion
from conftest import REPOSITORY, RunScript
from endpoint_requests import endpoint_client
from endpoint_requests.endpoint_client import error_text
from extraction_metrics.scored_files import json_question
from json_rows.row_files import Row

Body = dict[str, Any]
Response = tuple[int, bytes, dict[str, str]]  # status, body, headers


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_client, "FIRST_PAUSE", 0.002)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def question(schema: Any, text: str = "Ann went to Oslo.", **more: Any) -> Body:
    asked = {"instruction": "Extract.", "schema": schema, "input": text}
    return {"instruction": json.dumps(asked, ensure_ascii=False), **more}


def write(path: Path, rows: list[Body]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Body]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(server: ChatServer, folder: Path, rows: list[Body], **options: Any) -> list[Body]:
    data = folder / "d.jsonl"
    if not data.exists() or read(data) != rows:  # a run resumes if its input has not been written again
        write(data, rows)
    ie_run.main(data_path=str(data), output=str(folder / "p.jsonl"), url=server.url, **options)
    return read(folder / "p.jsonl")


def echo(body: Body, _: int) -> Response:
    return 200, completion(body, body["messages"][-1]["content"]), {}


def test_rows_are_answered_in_the_order_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    rows: list[Body] = [{"instruction": f"q{number}", "input": "text", "output": "{}"} for number in range(30)]
    rows.append({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "m \ud83d\ude00"}]})

    def respond(body: Body, number: int) -> Response:
        time.sleep(0.03 if number % 7 == 0 else 0.002)
        return echo(body, number)

    with chat_server(respond) as endpoint:
        written = run(endpoint, tmp_path, rows, concurrency=4, max_new_tokens=9)
    assert [row["prediction"] for row in written] == [*(f"q{number}\n\ntext" for number in range(30)), "m 😀"]
    assert {row["finish_reason"] for row in written} == {"stop"}
    assert [list(row)[:3] for row in written[:1]] == [["instruction", "input", "output"]]
    assert {sent["Authorization"] for sent in endpoint.headers} == {"Bearer secret"} and 2 <= endpoint.most_open <= 4
    first = endpoint.bodies[0]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("first", 0, 9)
    assert len(endpoint.bodies[-1]["messages"]) in (1, 2) and not {"structured_outputs", "seed"} & first.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"d.jsonl", "p.jsonl", "p.jsonl.journal"}


@pytest.mark.parametrize("status", [429, 500, 408, 409])
def test_busy_endpoint_is_asked_again(tmp_path: Path, status: int) -> None:
    def respond(body: Body, number: int) -> Response:
        return (status, b'{"error": {"message": "busy"}}', {}) if number % 3 < 2 else echo(body, number)

    with chat_server(respond) as endpoint:
        written = run(endpoint, tmp_path, [{"instruction": "q"}], concurrency=1, model="m")
        assert [row["prediction"] for row in written] == ["q"] and len(endpoint.bodies) == 3


def test_slow_endpoint_is_asked_again(tmp_path: Path) -> None:
    def respond(body: Body, number: int) -> Response:
        if number == 0:
            time.sleep(1)
        return echo(body, number)

    with chat_server(respond) as endpoint:
        written = run(endpoint, tmp_path, [{"instruction": "q"}], model="m", timeout=0.2)
        assert [row["prediction"] for row in written] == ["q"] and len(endpoint.bodies) == 2


@pytest.mark.parametrize(
    ("status", "response", "message"),
    [
        (500, b'{"error": "broken"}', r"d.jsonl:1: the request has failed \(status 500: broken\)"),
        (401, b"no", r"status 401 \(no\); correct --url or --model, or give a valid key in OPENAI_API_KEY"),
        (404, b'{"error": {"message": "no model x"}}', r"status 404 \(no model x\); correct --url"),
        (302, b"moved", r"status 302 \(moved\); correct --url"),
        (200, b"<html>", r"d.jsonl:1: the request has failed \(status 200: <html>\)"),
        (200, b'{"choices": []}', r"d.jsonl:1: the request has failed \(status 200"),
    ],
)
def test_server_that_does_not_answer_is_an_error(tmp_path: Path, status: int, response: bytes, message: str) -> None:
    with chat_server() as other, chat_server(lambda *_: (status, response, {"Location": other.url})) as endpoint:
        with pytest.raises((ConnectionError, ValueError), match=message) as caught:
            run(endpoint, tmp_path, [{"instruction": "q"}])
        assert "\n" not in str(caught.value) and not other.bodies
    assert not list(tmp_path.glob("p.jsonl*"))


def test_refused_row_stops_the_run_or_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def respond(body: Body, number: int) -> Response:
        if "long" in body["messages"][0]["content"]:
            return 400, b'{"object": "error", "message": "the prompt is\\ntoo long"}', {}
        return echo(body, number)

    rows: list[Body] = [{"instruction": each} for each in ("a", "long", "b")]
    with chat_server(respond) as endpoint:
        expected = (
            r"d\.jsonl:2: the request has failed \(status 400: the prompt is too long\); correct it, or give --on"
        )
        with pytest.raises(ValueError, match=expected):
            run(endpoint, tmp_path, rows, concurrency=1)
        assert [row["prediction"] for row in run(endpoint, tmp_path, rows, on_error="skip")] == ["a", "b"]
        assert [body["messages"][0]["content"] for body in endpoint.bodies].count("a") == 1  # not asked again
    fact = "the request has failed (status 400: the prompt is too long); --retry_failed asks it again"
    assert f"notice: skipped {tmp_path / 'd.jsonl'}:2: {fact}\n" in capsys.readouterr().err


def test_answered_rows_are_not_asked_again_after_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = threading.Event()
    broken.set()

    def respond(body: Body, number: int) -> Response:
        return (404, b"", {}) if number >= 5 and broken.is_set() else echo(body, number)

    rows: list[Body] = [{"instruction": f"q{number}"} for number in range(12)]
    with chat_server(respond) as endpoint:
        with pytest.raises(ConnectionError, match=r"; the answers so far are in .*p\.jsonl\.journal"):
            run(endpoint, tmp_path, rows, concurrency=1)
        with (tmp_path / "p.jsonl.journal").open("a") as file:
            file.write('{"key": "cut of')  # a line that a killed run has not finished
        broken.clear()
        endpoint.bodies.clear()
        written = run(endpoint, tmp_path, rows, concurrency=3)
    assert [row["prediction"] for row in written] == [row["instruction"] for row in rows]
    asked = Counter(body["messages"][0]["content"] for body in endpoint.bodies)
    assert asked == Counter(f"q{number}" for number in range(5, 12))
    assert "12 requests (5 from the journal)" in capsys.readouterr().out


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_run_resumes(tmp_path: Path, run_script: RunScript, kill: signal.Signals) -> None:
    reached = threading.Event()

    def respond(body: Body, number: int) -> Response:
        if number == 6:
            reached.set()
        if number >= 6 and not stopped.is_set():
            time.sleep(30)
        return echo(body, number)

    stopped = threading.Event()
    data = write(tmp_path / "d.jsonl", [{"instruction": f"q{number}"} for number in range(9)])
    with chat_server(respond) as endpoint:
        options = ["--url", endpoint.url, "--data_path", data, "--output", tmp_path / "p.jsonl", "--concurrency", "1"]
        command = [sys.executable, str(REPOSITORY / "finetune/ie_run.py"), *map(str, options)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert reached.wait(60)
        process.send_signal(kill)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == (130 if kill == signal.SIGINT else -9)
        if kill == signal.SIGINT:
            last = errors.splitlines()[-1]
            assert last == f"interrupted; the same command resumes from {tmp_path / 'p.jsonl'}.journal"
        stopped.set()
        endpoint.bodies.clear()
        run_script("finetune/ie_run.py", *options)
        assert {body["messages"][0]["content"] for body in endpoint.bodies} == {"q6", "q7", "q8"}
    assert [row["prediction"] for row in read(tmp_path / "p.jsonl")] == [f"q{number}" for number in range(9)]


def fake_answer(body: Body, _: int) -> Response:
    """Answer each type of a schema with its own name."""
    schema = json.loads(body["messages"][0]["content"])["schema"]
    return 200, completion(body, json.dumps({name: [name.upper()] for name in schema})), {}


def test_rows_are_asked_in_several_orders(tmp_path: Path) -> None:
    rows = [question(["a", "b", "c"], f"text {number}", output="{}") for number in range(2)]
    with chat_server(fake_answer) as endpoint:
        written = run(endpoint, tmp_path, rows, orders=3)
        again = run(endpoint, tmp_path, rows, orders=3)
    assert written == again
    assert [row["order"] for row in written] == [0, 1, 2] * 2
    orders = [tuple(json_question(row)["schema"]) for row in written]
    assert len(set(orders[:3])) == 3 and orders[:3] == orders[3:] and set(orders) <= set(permutations("abc"))
    assert [json_question(row)["input"] for row in written] == ["text 0"] * 3 + ["text 1"] * 3
    assert [tuple(json.loads(row["prediction"])) for row in written] == orders


def test_orders_of_objects_and_of_rows_that_have_none() -> None:
    schema = {"layoff": ["company", "date"], "merger": ["buyer"]}
    rows = rows_in_orders([Row("d:1", question(schema))], 4)
    assert all(json_question(row.content or {})["schema"] == schema for row in rows)
    assert {tuple(json_question(row.content or {})["schema"]) for row in rows} == {
        ("layoff", "merger"),
        ("merger", "layoff"),
    }
    for content, message in (
        ({"instruction": "Which persons?"}, "d:1 names its types in a sentence.*--order_augmentation 4"),
        (question(["a"], order=0), 'd:1 has an "order" already'),
    ):
        with pytest.raises(ValueError, match=message):
            rows_in_orders([Row("d:1", content)], 4)
    with pytest.raises(ValueError, match="--orders 1000 is out of range"):
        rows_in_orders([], 1000)


def test_long_schema_is_asked_in_parts_and_merged_in_its_order(tmp_path: Path) -> None:
    row = question(["a", "b", "c", "d", "e"], output="{}")
    with chat_server(fake_answer) as endpoint:
        [whole, short] = run(endpoint, tmp_path, [row, question(["z"])], schema_batch=2)
        schemas = sorted(json.loads(body["messages"][0]["content"])["schema"] for body in endpoint.bodies)
    assert schemas == [["a", "b"], ["c", "d"], ["e"], ["z"]]
    assert whole["prediction"] == json.dumps({each: [each.upper()] for each in "abcde"})
    assert whole["instruction"] == row["instruction"] and whole["finish_reason"] == "stop"
    assert len(whole["part_predictions"]) == 3 and "part_predictions" not in short
    assert question_parts({"instruction": "Which persons?"}, 2) == [{"instruction": "Which persons?"}]


def test_parts_that_cannot_be_merged_are_counted() -> None:
    row = question([{"subject_type": "s", "predicate": "p", "object_type": "o"}, {"event_type": "q"}])
    answers = [GeneratedAnswer('{"q": ["2"], "x": ["3"]}', "stop"), GeneratedAnswer('{"p": [', "length"),
               GeneratedAnswer('{"p": ["1"], "q": ["4"]}', "stop")]  # fmt: skip
    merged = merged_answer(row, answers)
    assert merged["prediction"] == '{"p": ["1"], "q": ["2", "4"], "x": ["3"]}'
    assert (merged["finish_reason"], merged["unparsed_parts"]) == ("length", 1)
    deep = GeneratedAnswer('{"p": ' + "[" * 960 + "]" * 960 + "}", "stop")
    for text in ("[" * 100_000, "9" * 5000, "[]", "\ud800"):
        assert merged_answer(row, [GeneratedAnswer(text, "stop"), deep])["unparsed_parts"] >= 1


def test_schema_batch_and_orders_of_a_checkpoint(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data = write(tmp_path / "d.jsonl", [question(["a", "b", "c"], output="{}")])
    options: Body = {"base_model": str(tiny_checkpoint), "data_path": str(data), "output": str(tmp_path / "p.jsonl")}
    ie_run.main(**options, max_new_tokens=3, orders=2, schema_batch=2)
    written = read(tmp_path / "p.jsonl")
    assert [row["order"] for row in written] == [0, 1]
    assert [(row["prediction"], row["unparsed_parts"]) for row in written] == [("{}", 2)] * 2


EVENTS = {"layoff": ["company", "date"]}
PUBLISHED = [{"event_type": "layoff", "trigger": True, "arguments": ["company", "date"]}]
RIGHT = {"layoff": [{"trigger": "cut", "arguments": {"company": "Ox", "date": ["May", "June"]}}]}


@pytest.mark.parametrize(
    ("task", "schema", "right", "wrong"),
    [
        ("ner", ["a", "b"], {"a": ["x"], "b": []}, [{"a": ["x"]}, {"a": [3], "b": []}, {"a": [], "b": [], "c": []}]),
        ("ner", ["a"], {"a": []}, [[]]),
        ("eet", ["a"], {"a": ["x"]}, [{"a": "x"}]),
        ("re", ["r"], {"r": [{"subject": "x", "object": "y"}]}, [{"r": ["x"]}, {"r": [{"subject": "x"}]}]),
        ("spo", [{"subject_type": "s", "predicate": "r", "object_type": "o"}], {"r": []}, [{}]),
        ("ee", EVENTS, RIGHT, [{"layoff": [{"trigger": "cut"}]}, {"layoff": [{"arguments": {}}]}]),
        ("ee", PUBLISHED, RIGHT, [{"layoff": {}}]),
        ("eea", EVENTS, {"layoff": [{"company": "Ox", "date": "NAN"}]}, [{"layoff": [{"company": "Ox"}]}]),
        ("kg", {"p": ["work"]}, {"p": {"Ann": {"work": ["Dusk"]}, "Bo": {}}}, [{"p": {"Ann": {"x": "y"}}}]),
        ("kg", [{"entity_type": "person", "attributes": ["work"]}], {}, [{"place": {}}]),
    ],
)  # fmt: skip
def test_json_schema_accepts_right_answers_only(task: str, schema: Any, right: Any, wrong: list[Any]) -> None:
    grammar = answer_schema(task, schema)
    assert follows(json.dumps(right), grammar)
    assert not any(follows(json.dumps(each), grammar) for each in wrong)
    assert not follows("no JSON", grammar)
    xgrammar = pytest.importorskip("xgrammar", reason="xgrammar is not installed")
    compiled = xgrammar.Grammar.from_json_schema(json.dumps(grammar))
    from xgrammar.testing import _is_grammar_accept_string as accepts

    assert accepts(compiled, json.dumps(right))
    assert not any(accepts(compiled, json.dumps(each)) for each in wrong)


def test_grammar_is_sent_and_a_server_that_ignores_it_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [question(["a", "b"], task="NER"), question(EVENTS, task="ee")]
    with chat_server(fake_answer) as endpoint:
        run(endpoint, tmp_path, rows, grammar=True, schema_batch=1, model="m", concurrency=1)
    sent = [body["structured_outputs"] for body in endpoint.bodies]
    assert sent == [{"json": answer_schema("ner", ["a"])}, {"json": answer_schema("ner", ["b"])},
                    {"json": answer_schema("ee", EVENTS)}]  # fmt: skip
    fact = "1 of 3 complete answers do not follow the grammar, so the server ignores structured_outputs"
    assert f"notice: {fact}" in capsys.readouterr().err
    for row, message in (
        (question(["a"]), 'd.jsonl:1 has no "task", which --grammar needs'),
        ({"instruction": "Which persons?", "task": "ner"}, 'd.jsonl:1 has no JSON instruction with a "schema"'),
        (question([3], task="ner"), "d.jsonl:1 has a schema with '3', which is not a type of the task ner"),
        (question(["a"], task="ee"), "has a schema with 'a', which is not a type of the task ee"),
    ):
        with chat_server(fake_answer) as endpoint, pytest.raises(ValueError, match=r"\d") as caught:
            run(endpoint, tmp_path, [row], grammar=True)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"url": ""}, "give either --base_model, the folder of a checkpoint, or --url"),
        ({"base_model": "x"}, "give either --base_model"),
        ({"url": "127.0.0.1:8000"}, "is not the URL of a server"),
        ({"url": "http://a b/"}, "is not the URL of a server"),
        ({"url": "http://host:99999999"}, "is not the URL of a server"),
        ({"url": "http://user:key@host"}, "put a key into OPENAI_API_KEY"),
        ({"lora_weights": "x"}, "--lora_weights is an option for a checkpoint"),
        ({"concurrency": 0}, "--concurrency 0 is too small"),
        ({"concurrency": 9999}, "--concurrency 9999 is too large"),
        ({"schema_batch": -1}, "--schema_batch -1 is too small"),
        ({"timeout": 0.0}, "--timeout 0 is out of range"),
        ({"output": ""}, "--output is missing"),
        ({"url": "", "base_model": "x", "grammar": True}, "--grammar is an option for a server.*batch.py"),
        ({"url": "", "base_model": "x", "timeout": 9.0}, "--timeout is an option for a server"),
    ],
)
def test_error_for_invalid_options(tmp_path: Path, changed: Body, message: str) -> None:
    data = write(tmp_path / "d.jsonl", [{"instruction": "q"}])
    given: Body = {"data_path": str(data), "output": str(tmp_path / "p"), "url": "http://127.0.0.1:9"} | changed
    with pytest.raises(ValueError, match=message):
        ie_run.main(**given)


def test_messages_of_servers() -> None:
    assert error_text(b'{"error": {"message": "a\\nb"}}') == "a b"
    assert error_text(b'{"detail": [{"x": 1}]}') == "[{'x': 1}]"
    assert error_text(b"") == "empty response" and error_text(b"[" * 10_000).startswith("[[")
