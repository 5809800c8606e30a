"""finetune/ie_run.py with an endpoint: retries, resuming, errors, orders and parts of schemas, and grammars."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import permutations
from pathlib import Path
from typing import Any

import ie_run
import pytest
from answer_generation.answer_schemas import answer_schema, follows
from answer_generation.batched_generation import GeneratedAnswer
from answer_generation.schema_parts import merged_answer, question_parts, rows_in_orders
from conftest import REPOSITORY, RunScript
from endpoint_answers import chat_endpoint
from endpoint_answers.chat_endpoint import completions_url, error_text
from extraction_metrics.scored_files import json_question
from json_rows.row_files import Row

Body = dict[str, Any]
Respond = Callable[[Body, int], tuple[int, Any]]  # (request body, number of the request) -> (status, response)


def completion(text: str | None, reason: str = "stop") -> Body:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]}


class Endpoint:
    """An HTTP server with the routes of an OpenAI-compatible endpoint, and the requests that it has received."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[Body] = []
        self.keys: list[str | None] = []
        self.open = self.most_open = 0


@contextmanager
def serving(respond: Respond) -> Iterator[Endpoint]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(200 if self.path == "/v1/models" else 404, {"data": [{"id": "first"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                endpoint.bodies.append(body)
                endpoint.keys.append(self.headers["Authorization"])
                number = len(endpoint.bodies) - 1
                endpoint.open += 1
                endpoint.most_open = max(endpoint.most_open, endpoint.open)
            status, answer = respond(body, number) if self.path == "/v1/chat/completions" else (404, {})
            with lock:
                endpoint.open -= 1
            self.send(status, answer)

        def send(self, status: int, answer: Any) -> None:
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/v1")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_endpoint, "FIRST_PAUSE", 0.002)
    monkeypatch.delenv("KNOWLM_API_KEY", raising=False)


def question(schema: Any, text: str = "Ann went to Oslo.", **more: Any) -> Body:
    asked = {"instruction": "Extract.", "schema": schema, "input": text}
    return {"instruction": json.dumps(asked, ensure_ascii=False), **more}


def write(path: Path, rows: list[Body]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Body]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(endpoint: Endpoint, folder: Path, rows: list[Body], **options: Any) -> list[Body]:
    data = folder / "d.jsonl"
    if not data.exists() or read(data) != rows:  # a run resumes if its input has not been written again
        write(data, rows)
    ie_run.main(data_path=str(data), output=str(folder / "p.jsonl"), endpoint=endpoint.url, **options)
    return read(folder / "p.jsonl")


def echo(body: Body, _: int) -> tuple[int, Body]:
    return 200, completion(body["messages"][-1]["content"])


def test_rows_are_answered_in_the_order_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWLM_API_KEY", "secret")
    rows: list[Body] = [{"instruction": f"q{number}", "input": "text", "output": "{}"} for number in range(30)]
    rows.append({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "m \ud83d\ude00"}]})

    def respond(body: Body, number: int) -> tuple[int, Body]:
        time.sleep(0.03 if number % 7 == 0 else 0.002)
        return echo(body, number)

    with serving(respond) as endpoint:
        written = run(endpoint, tmp_path, rows, concurrency=4, max_new_tokens=9)
    assert [row["prediction"] for row in written] == [*(f"q{number}\n\ntext" for number in range(30)), "m 😀"]
    assert {row["finish_reason"] for row in written} == {"stop"}
    assert [list(row)[:3] for row in written[:1]] == [["instruction", "input", "output"]]
    assert set(endpoint.keys) == {"Bearer secret"} and 2 <= endpoint.most_open <= 4
    first = endpoint.bodies[0]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("first", 0, 9)
    assert len(endpoint.bodies[-1]["messages"]) in (1, 2) and "structured_outputs" not in first
    assert not (tmp_path / "p.jsonl.partial").exists()


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_busy_endpoint_is_asked_again(tmp_path: Path, status: int) -> None:
    def respond(body: Body, number: int) -> tuple[int, Any]:
        return (status, {"error": {"message": "busy"}}) if number % 3 < 2 else echo(body, number)

    with serving(respond) as endpoint:
        written = run(endpoint, tmp_path, [{"instruction": "q"}], concurrency=1, model="m")
        assert [row["prediction"] for row in written] == ["q"] and len(endpoint.bodies) == 3


def test_slow_endpoint_is_asked_again(tmp_path: Path) -> None:
    def respond(body: Body, number: int) -> tuple[int, Any]:
        if number == 0:
            time.sleep(1)
        return echo(body, number)

    with serving(respond) as endpoint:
        written = run(endpoint, tmp_path, [{"instruction": "q"}], model="m", timeout=0.2)
        assert [row["prediction"] for row in written] == ["q"] and len(endpoint.bodies) == 2


@pytest.mark.parametrize(
    ("status", "response", "message"),
    [
        (500, {"error": "broken"}, r"does not answer \(status 500: broken\); start it"),
        (401, {}, r"does not accept the key \(status 401\); set KNOWLM_API_KEY"),
        (404, {"error": {"message": "no model x"}}, "status 404: no model x; check --endpoint"),
        (302, {}, "status 302; check --endpoint"),
        (200, b"<html>", "does not answer like an OpenAI-compatible endpoint"),
        (200, {"choices": []}, "does not answer like an OpenAI-compatible endpoint"),
    ],
)
def test_endpoint_that_does_not_answer_is_an_error(tmp_path: Path, status: int, response: Any, message: str) -> None:
    with serving(lambda body, number: (status, response)) as endpoint:
        with pytest.raises(ConnectionError, match=message) as caught:
            run(endpoint, tmp_path, [{"instruction": "q"}])
        assert "\n" not in str(caught.value) and str(caught.value).endswith("nothing was answered")
    assert not list(tmp_path.glob("p.jsonl*"))


def test_refused_row_stops_the_run_or_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def respond(body: Body, number: int) -> tuple[int, Any]:
        if "long" in body["messages"][0]["content"]:
            return 400, {"object": "error", "message": "the prompt is\ntoo long"}
        return echo(body, number)

    rows: list[Body] = [{"instruction": each} for each in ("a", "long", "b")]
    with serving(respond) as endpoint:
        expected = (
            r"d\.jsonl:2: the endpoint answered with status 400: the prompt is too long; correct it.*1 answer is in"
        )
        with pytest.raises(ValueError, match=expected):
            run(endpoint, tmp_path, rows, concurrency=1)
        assert [row["prediction"] for row in run(endpoint, tmp_path, rows, on_error="skip")] == ["a", "b"]
        assert [body["messages"][0]["content"] for body in endpoint.bodies].count("a") == 1  # not asked again
    assert f"notice: skipped {tmp_path / 'd.jsonl'}:2: the endpoint answered with status 400" in capsys.readouterr().err


def test_answered_rows_are_not_asked_again_after_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = threading.Event()
    broken.set()

    def respond(body: Body, number: int) -> tuple[int, Any]:
        return (503, {}) if number >= 5 and broken.is_set() else echo(body, number)

    rows: list[Body] = [{"instruction": f"q{number}"} for number in range(12)]
    with serving(respond) as endpoint:
        with pytest.raises(ConnectionError, match=r"5 answers are in .*; the same command resumes"):
            run(endpoint, tmp_path, rows, concurrency=1)
        journal = tmp_path / "p.jsonl.partial/answers.jsonl"
        with journal.open("a") as file:
            file.write('[7, "cut of')  # a line that a killed run has not finished
        broken.clear()
        endpoint.bodies.clear()
        written = run(endpoint, tmp_path, rows, concurrency=3)
    assert [row["prediction"] for row in written] == [row["instruction"] for row in rows]
    asked = Counter(body["messages"][0]["content"] for body in endpoint.bodies)
    assert asked == Counter(f"q{number}" for number in range(5, 12))
    assert "notice: resuming after 5 of 12 answers" in capsys.readouterr().err


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_run_resumes(tmp_path: Path, run_script: RunScript, kill: signal.Signals) -> None:
    reached = threading.Event()

    def respond(body: Body, number: int) -> tuple[int, Any]:
        if number == 6:
            reached.set()
        if number >= 6 and not stopped.is_set():
            time.sleep(30)
        return echo(body, number)

    stopped = threading.Event()
    data = write(tmp_path / "d.jsonl", [{"instruction": f"q{number}"} for number in range(9)])
    with serving(respond) as endpoint:
        options = [
            "--endpoint",
            endpoint.url,
            "--data_path",
            data,
            "--output",
            tmp_path / "p.jsonl",
            "--concurrency",
            "1",
        ]
        command = [sys.executable, str(REPOSITORY / "finetune/ie_run.py"), *map(str, options)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert reached.wait(60)
        process.send_signal(kill)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == (130 if kill == signal.SIGINT else -9)
        if kill == signal.SIGINT:
            last = errors.splitlines()[-1]
            assert last == f"interrupted; 6 answers are in {tmp_path / 'p.jsonl.partial'}; the same command resumes"
        stopped.set()
        endpoint.bodies.clear()
        run_script("finetune/ie_run.py", *options)
        assert {body["messages"][0]["content"] for body in endpoint.bodies} == {"q6", "q7", "q8"}
    assert [row["prediction"] for row in read(tmp_path / "p.jsonl")] == [f"q{number}" for number in range(9)]


def fake_answer(body: Body, _: int) -> tuple[int, Body]:
    """Answer each type of a schema with its own name."""
    schema = json.loads(body["messages"][0]["content"])["schema"]
    return 200, completion(json.dumps({name: [name.upper()] for name in schema}))


def test_rows_are_asked_in_several_orders(tmp_path: Path) -> None:
    rows = [question(["a", "b", "c"], f"text {number}", output="{}") for number in range(2)]
    with serving(fake_answer) as endpoint:
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
    with serving(fake_answer) as endpoint:
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


def test_grammar_is_sent_and_an_endpoint_that_ignores_it_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [question(["a", "b"], task="NER"), question(EVENTS, task="ee")]
    with serving(fake_answer) as endpoint:
        run(endpoint, tmp_path, rows, grammar=True, schema_batch=1, model="m", concurrency=1)
    sent = [body["structured_outputs"] for body in endpoint.bodies]
    assert sent == [{"json": answer_schema("ner", ["a"])}, {"json": answer_schema("ner", ["b"])},
                    {"json": answer_schema("ee", EVENTS)}]  # fmt: skip
    fact = "1 of 3 complete answers do not follow the grammar, so the endpoint ignores structured_outputs"
    assert f"notice: {fact}" in capsys.readouterr().err
    for row, message in (
        (question(["a"]), 'd.jsonl:1 has no "task", which --grammar needs'),
        ({"instruction": "Which persons?", "task": "ner"}, "d.jsonl:1 has no schema in JSON in its instruction"),
        (question([3], task="ner"), "d.jsonl:1 has a schema with '3', which is no type of the task ner"),
        (question(["a"], task="ee"), "has a schema with 'a', which is no type of the task ee"),
    ):
        with serving(fake_answer) as endpoint, pytest.raises(ValueError, match=r"\d") as caught:
            run(endpoint, tmp_path, [row], grammar=True)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"endpoint": ""}, "give either --base_model, the folder of a checkpoint, or --endpoint"),
        ({"base_model": "x"}, "give either --base_model"),
        ({"endpoint": "127.0.0.1:8000"}, "is not the URL of a server"),
        ({"endpoint": "http://a b/"}, "is not the URL of a server"),
        ({"endpoint": "http://host:99999999"}, "is not the URL of a server"),
        ({"endpoint": "http://user:key@host"}, "put a key into KNOWLM_API_KEY"),
        ({"lora_weights": "x"}, "--lora_weights is an option for a checkpoint"),
        ({"concurrency": 0}, "--concurrency 0 is too small"),
        ({"concurrency": 9999}, "--concurrency 9999 is too large"),
        ({"schema_batch": -1}, "--schema_batch -1 is too small"),
        ({"timeout": 0.0}, "--timeout 0.0 is out of range"),
        ({"output": ""}, "--output is missing"),
        ({"endpoint": "", "base_model": "x", "grammar": True}, "--grammar is an option for an endpoint.*batch.py"),
    ],
)
def test_error_for_invalid_options(tmp_path: Path, changed: Body, message: str) -> None:
    data = write(tmp_path / "d.jsonl", [{"instruction": "q"}])
    given: Body = {"data_path": str(data), "output": str(tmp_path / "p"), "endpoint": "http://127.0.0.1:9"} | changed
    with pytest.raises(ValueError, match=message):
        ie_run.main(**given)


def test_urls_and_messages_of_endpoints() -> None:
    expected = "http://h:1/v1/chat/completions"
    for endpoint in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", expected):
        assert completions_url(endpoint) == expected
    assert completions_url("https://h/api/v3") == "https://h/api/v3/chat/completions"
    assert error_text('{"error": {"message": "a\\nb"}}') == ": a b"
    assert error_text('{"detail": [{"x": 1}]}') == ': [{"x": 1}]'
    assert error_text("") == "" and error_text("[" * 10_000).startswith(": [[") and len(error_text("x" * 9999)) == 202
