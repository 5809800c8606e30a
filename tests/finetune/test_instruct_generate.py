"""finetune/instruct_generate.py: the four methods against a server, hostile answers, resumption after kill -9."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, chat_server, completion
from conftest import REPOSITORY, free_port
from endpoint_requests import endpoint_client
from endpoint_requests.endpoint_client import EndpointClient, EndpointOptions, base_url
from endpoint_requests.request_journal import RequestJournal, request_key
from endpoint_requests.request_totals import RequestTotals
from in_process import run_in_process
from text_language.language_detection import language_of

SCRIPT = "finetune/instruct_generate.py"
TRIPLES = "".join(
    f"/p{n}\tPerson {n}\tborn in\t/c{n % 7}\tCity {n % 7}\n"
    f"/c{n % 7}\tCity {n % 7}\tin country\t/n{n % 3}\tNation {n % 3}\n"
    for n in range(40)
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setattr(endpoint_client, "FIRST_PAUSE", 0.01)
    with chat_server() as running:
        yield running


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def record(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(f"{output}.run.json").read_text(encoding="utf-8"))
    return content


def make_client(server: ChatServer, folder: Path, **options: Any) -> EndpointClient:
    settings = {"attempts": 3, "timeout": 5.0, "concurrency": 4} | options
    return EndpointClient(EndpointOptions(server.url, "m", **settings), RequestJournal(folder / "j"), RequestTotals())


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_self_instruct_writes_rows_of_the_language_with_different_instructions(
    server: ChatServer, tmp_path: Path, language: str, api: str
) -> None:
    from instruction_generation.rouge_pool import rouge_l

    output = tmp_path / "new.jsonl"
    options = ("--url", server.url, "--model", "m", "--output", output, "--language", language, "--api", api)
    done = run_in_process(SCRIPT, "--method", "self_instruct", *options, "--count", 30, "--round_size", 4,
                      "--input_price", 2, "--output_price", 10)  # fmt: skip
    rows = read(output)
    assert len(rows) == 30 and all(row["output"] for row in rows)
    assert {language_of(row["instruction"]) for row in rows} == {language}
    instructions = list(dict.fromkeys(row["instruction"] for row in rows))
    assert all(rouge_l(a, b) < 0.7 for at, a in enumerate(instructions) for b in instructions[:at])
    kinds = Counter(row["is_classification"] for row in rows)
    assert kinds[True] and kinds[False]
    told = record(output)
    assert told["rejected"].keys() and told["requests"] == len(server.bodies)
    assert told["cost"] == pytest.approx(told["prompt_tokens"] * 2e-6 + told["completion_tokens"] * 1e-5, abs=1e-6)
    assert f"cost {told['cost']:.4f}" in done.stdout and "api_key" not in told["options"]
    assert {type(body["seed"]) for body in server.bodies} == {int}
    assert ("prompt" in server.bodies[0]) == (api == "completions")


def test_other_seed_tasks_are_the_demonstrations(server: ChatServer, shared_data: Path, tmp_path: Path) -> None:
    seeds = shared_data / "seed_tasks.jsonl"
    run_in_process(SCRIPT, "--method", "self_instruct", "--seeds", seeds, "--url", server.url, "--model", "m",
                   "--output", tmp_path / "o.jsonl", "--count", 3, "--round_size", 1)  # fmt: skip
    known = {" ".join(json.loads(line)["instruction"].split()) for line in seeds.read_text("utf-8").splitlines()}
    shown = server.bodies[0]["messages"][0]["content"].splitlines()
    listed = [line.partition(". ")[2] for line in shown if line[:1].isdigit() and ". " in line]
    assert len(listed) == 8 and set(listed) <= known


def test_evolve_eliminates_failures_and_records_operations(server: ChatServer, tmp_path: Path) -> None:
    output = tmp_path / "evolved.jsonl"

    def respond(body: dict[str, Any], number: int) -> tuple[int, bytes, dict[str, str]]:
        prompt = body["messages"][-1]["content"]
        if prompt.endswith("New instruction:"):
            variant = sum(prompt.encode()) % 4
            if variant == 0:
                return 200, completion(body, "#New instruction#: as given prompt"), {}
        elif not prompt.endswith("Reply:") and sum(prompt.encode()) % 5 == 0:
            return 200, completion(body, "Sorry, I cannot do this."), {}
        return 200, b"", {}

    server.respond = respond
    done = run_in_process(SCRIPT, "--method", "evolve", "--url", server.url, "--model", "m", "--output", output,
                      "--generations", 2)  # fmt: skip
    rows = read(output)
    rejected = record(output)["rejected"]
    assert len(rows) + sum(rejected.values()) == 60
    assert {
        "evolved instruction repeats its prompt",
        "evolved instruction with the same requirements",
        "answer refuses",
    } <= set(rejected)
    assert {len(row["operations"]) for row in rows} == {1, 2} and "rejected:" in done.stdout
    assert len({operation for row in rows for operation in row["operations"]}) == 6


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("columns", [5, 3])
def test_questions_about_a_graph_agree_with_its_paths(
    server: ChatServer, tmp_path: Path, language: str, columns: int
) -> None:
    lines = [line.split("\t") for line in TRIPLES.splitlines()]
    kept = lines if columns == 5 else [[line[1], line[2], line[4]] for line in lines]
    (tmp_path / "kg.tsv").write_text("".join("\t".join(line) + "\n" for line in kept), encoding="utf-8")
    output = tmp_path / "kg.jsonl"
    run_in_process(SCRIPT, "--method", "kg", "--kg", tmp_path / "kg.tsv", "--url", server.url, "--model", "m",
               "--output", output, "--language", language, "--count", 30)  # fmt: skip
    rows = read(output)
    triples = {(line[1], line[2], line[4]) for line in lines}
    assert len(rows) >= 20 and {len(row["path"]) for row in rows} == {2, 3}
    for row in rows:
        assert {tuple(fact) for fact in row["facts"]} <= triples
        assert row["path"][0] in row["instruction"] and all(name in row["output"] for name in row["answers"])
        ends = {row["path"][0]}
        for relation in row["path"][1:]:
            ends = {tail for head, name, tail in triples if name == relation and head in ends}
        assert ends == set(row["answers"])


@pytest.mark.parametrize("way", ["pair", "question"])
def test_translation_keeps_the_form_of_each_row(server: ChatServer, tmp_path: Path, way: str) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Add the numbers {x}.", "input": "1 2", "output": "3"},
        {"conversations": [{"from": "human", "value": "Hi there"}, {"from": "gpt", "value": "Hello you"},
                           {"from": "human", "value": "Go on now"}, {"from": "gpt", "value": "Once more"}]},
        {"instruction": "翻译过的问题是什么？", "input": "", "output": "Answer in English"},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = tmp_path / "zh.jsonl"
    run_in_process(SCRIPT, "--method", "translate", "--translate", way, "--seeds", tmp_path / "rows.jsonl", "--url",
               server.url, "--model", "m", "--output", output, "--language", "zh")  # fmt: skip
    first, second, third = read(output)
    assert set(first) == {"instruction", "input", "output", "method", "source"} and first["input"] == "1 2"
    assert [message["role"] for message in second["messages"]] == ["user", "assistant"] * 2
    assert third["instruction"] == rows[2]["instruction"]
    questions = [first["instruction"], second["messages"][0]["content"], second["messages"][2]["content"]]
    assert all(language_of(text) == "zh" for text in questions)
    asked = [body["messages"] for body in server.bodies]
    if way == "pair":
        assert first["output"] == "3" and second["messages"][1]["content"].startswith("译文")
    else:
        assert first["output"] != "3" and all("Hello you" not in str(messages) for messages in asked)
        assert any(len(messages) == 3 and messages[0]["content"] == questions[1] for messages in asked)
    assert {body["temperature"] for body in server.bodies} == {0}


def command(server: ChatServer, output: Path, *more: object) -> list[str]:
    options = ["--method", "self_instruct", "--url", server.url, "--model", "m", "--output", output, "--count", 40,
               "--round_size", 6, *more]  # fmt: skip
    return [sys.executable, str(REPOSITORY / SCRIPT), *map(str, options)]


def test_killed_run_repeats_no_request_and_writes_the_same_file(server: ChatServer, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    subprocess.run(command(server, whole, "--concurrency", 1), check=True, capture_output=True)
    undisturbed, server.bodies = len(server.bodies), []
    server.delay = 0.02
    journal = Path(f"{output}.journal")
    for kills in (1, 2, 3):
        process = subprocess.Popen(command(server, output, "--concurrency", 5), stderr=subprocess.DEVNULL)
        while process.poll() is None and not (journal.is_file() and len(read_lines(journal)) >= 9 * kills):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not output.exists()
    time.sleep(0.2)  # the server still records requests of the killed process
    with journal.open("ab") as file:
        file.write(b'{"key": "cut')
    answered = {json.loads(line)["key"] for line in read_lines(journal)[:-1]}
    before, server.bodies = server.bodies, []
    subprocess.run(command(server, output, "--concurrency", 3), check=True, capture_output=True)
    keys = [request_key("/chat/completions", body) for body in server.bodies]
    assert answered and not answered & set(keys) and len(keys) == len(set(keys))
    assert len(set(keys) | {request_key("/chat/completions", body) for body in before}) == undisturbed
    assert output.read_bytes() == whole.read_bytes()
    counts = ("requests", "prompt_tokens", "completion_tokens", "rejected")
    assert [record(output)[name] for name in counts] == [record(whole)[name] for name in counts]
    server.bodies = []
    subprocess.run(command(server, output), check=True, capture_output=True)
    assert not server.bodies and output.read_bytes() == whole.read_bytes()


def read_lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def test_interrupted_run_says_how_to_resume(server: ChatServer, tmp_path: Path) -> None:
    server.delay = 0.5
    process = subprocess.Popen(command(server, tmp_path / "o.jsonl"), stderr=subprocess.PIPE, text=True)
    while not server.bodies:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert errors == f"interrupted; the same command resumes from {tmp_path}/o.jsonl.journal\n"


def test_second_process_on_the_same_output_is_refused(server: ChatServer, tmp_path: Path) -> None:
    with RequestJournal(tmp_path / "o.jsonl.journal"):
        done = run_in_process(SCRIPT, *command(server, tmp_path / "o.jsonl")[2:], status=2)
    assert done.stderr.count("\n") == 1 and "is used by another process" in done.stderr and not server.bodies


HOSTILE = {
    "html with status 200": (200, b"<html><body>502 Bad Gateway</body></html>", "status 200: <html>", 3),
    "not json": (200, b'{"choices": [', "status 200", 3),
    "deep json": (200, b"[" * 200_000, "status 200", 3),
    "no choices": (200, b'{"choices": []}', "status 200", 3),
    "number as text": (200, b'{"choices": [{"message": {"content": 5}}]}', "status 200", 3),
    "error object with 200": (200, b'{"error": {"message": "overloaded"}}', "status 200: overloaded", 3),
    "server error": (500, b"<html>boom</html>", "status 500: <html>boom</html>", 3),
    "bad request": (400, b'{"error": {"message": "too long"}}', "status 400: too long", 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_response_is_a_counted_failure(server: ChatServer, tmp_path: Path, kind: str) -> None:
    status, content, error, attempts = HOSTILE[kind]
    server.respond = lambda body, number: (status, content, {"Content-Type": "text/html"})
    with make_client(server, tmp_path) as client:
        (answer,) = client.complete([client.request("x", 1, 0.0, 5)])
    assert answer.text == "" and answer.error.startswith(error) and len(server.bodies) == attempts
    assert (client.totals.failed, client.totals.retries) == (1, attempts - 1)


def test_endless_response_is_cut_and_counted(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_client, "MAX_BODY", 1 << 20)
    server.respond = lambda body, number: (200, b'{"choices": ["aaaaaaaaaaaaaaaa' * 512, {"Transfer": "endless"})
    with make_client(server, tmp_path) as client:
        (answer,) = client.complete([client.request("x", 1, 0.0, 5)])
    assert "more than 1048576 bytes" in answer.error and len(server.bodies) == 1


def test_empty_and_null_answers_are_counted_and_not_repeated(server: ChatServer, tmp_path: Path) -> None:
    server.respond = lambda body, number: (
        200, b'{"choices": [{"message": {"content": null}}]}' if number else completion(body, ""), {}
    )  # fmt: skip
    with make_client(server, tmp_path) as client:
        answers = client.complete([client.request("x", seed, 0.0, 5) for seed in (1, 2, 1)])
    assert [answer.text for answer in answers] == ["", "", ""] and len(server.bodies) == 2
    assert (client.totals.empty, client.totals.uncounted, client.totals.failed) == (2, 1, 0)


def test_slow_answer_fails_after_the_timeout(server: ChatServer, tmp_path: Path) -> None:
    server.delay = 0.6
    with make_client(server, tmp_path, timeout=0.1, attempts=2) as client:
        (answer,) = client.complete([client.request("x", 1, 0.0, 5)])
    assert answer.error == "no response within 0.1 s" and len(server.bodies) == 2


def test_busy_server_is_asked_again_after_its_pause(server: ChatServer, tmp_path: Path) -> None:
    server.respond = lambda body, number: (429, b"{}", {"Retry-After": "1"}) if number < 2 else (200, b"", {})
    began = time.monotonic()
    with make_client(server, tmp_path) as client:
        answers = client.complete([client.request("x", seed, 0.0, 5) for seed in (1, 2)])
    assert all(answer.text for answer in answers) and time.monotonic() - began >= 1
    assert client.totals.retries == 2


def test_concurrency_is_bounded_and_used(server: ChatServer, tmp_path: Path) -> None:
    server.delay = 0.05
    with make_client(server, tmp_path) as client:
        client.complete([client.request("x", seed, 0.0, 5) for seed in range(24)])
    assert server.most_open == 4


@pytest.mark.parametrize("status", [401, 404])
def test_refused_key_or_model_ends_the_run(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    server.respond = lambda body, number: (status, b'{"error": {"message": "no such model"}}', {})
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    done = run_in_process(SCRIPT, *command(server, tmp_path / "o.jsonl")[2:], status=2)
    assert done.stderr.count("\n") == 1 and "no such model" in done.stderr and "secret" not in done.stderr
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("o.jsonl")]


def test_server_that_always_fails_ends_the_run_and_can_be_retried(server: ChatServer, tmp_path: Path) -> None:
    server.respond = lambda body, number: (400, b"broken", {})
    output = tmp_path / "o.jsonl"
    arguments = [*command(server, output)[2:], "--attempts", "1"]
    arguments[arguments.index("--round_size") + 1] = "30"
    done = run_in_process(SCRIPT, *arguments, status=2)
    assert "20 requests in a row failed (status 400: broken)" in done.stderr and "--retry_failed" in done.stderr
    server.respond = None
    run_in_process(SCRIPT, *arguments, "--retry_failed")
    assert len(read(output)) == 40 and not record(output)["failed"]


def test_run_without_rows_names_the_most_frequent_failure(server: ChatServer, tmp_path: Path) -> None:
    server.respond = lambda body, number: (400, b'{"error": "too long"}', {})
    done = run_in_process(SCRIPT, "--method", "evolve", "--limit", 3, "--generations", 1, "--url", server.url,
                          "--model", "m", "--output", tmp_path / "o.jsonl", status=2)  # fmt: skip
    assert done.stderr.count("\n") == 1 and "3 failed (status 400: too long)" in done.stderr


def test_error_for_unreachable_server_is_one_line(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run_in_process(SCRIPT, "--method", "self_instruct", "--url", url, "--model", "m", "--output",
                      tmp_path / "o.jsonl", "--attempts", 2, status=2)  # fmt: skip
    assert done.stderr.count("\n") == 1 and f"{url}/v1 does not answer" in done.stderr


def test_hostile_answers_of_a_whole_run_are_counted(server: ChatServer, tmp_path: Path) -> None:
    texts = ["", "no list", "\x00\ud800", "1. a\n2. b", "9" * 5000, "Label:\nInput:\nLabel:", "{}" * 1000]

    def respond(body: dict[str, Any], number: int) -> tuple[int, bytes, dict[str, str]]:
        variant = sum(json.dumps(body).encode()) % 11
        if variant < len(texts):
            return 200, completion(body, texts[variant], "length" if variant % 2 else "stop"), {}
        return (400, b"<html>", {}) if variant == 8 else (200, b"", {})

    server.respond = respond
    output = tmp_path / "o.jsonl"
    run_in_process(SCRIPT, *command(server, output)[2:])
    told = record(output)
    assert len(read(output)) == 40 and told["failed"] and told["empty"] and told["cut"]
    assert told["errors"] == {"status 400: <html>": told["failed"]}
    assert {"no list of tasks", "no valid instance"} <= set(told["rejected"])


def test_extra_fields_replace_and_remove_fields_of_requests(server: ChatServer, tmp_path: Path) -> None:
    extra = '{"max_tokens": null, "max_completion_tokens": 9, "seed": null}'
    (tmp_path / "kg.tsv").write_text(TRIPLES, encoding="utf-8")
    run_in_process(SCRIPT, "--method", "kg", "--kg", tmp_path / "kg.tsv", "--url", f"{server.url}/v1/", "--model", "m",
               "--output", tmp_path / "o.jsonl", "--count", 3, "--extra_body", extra)  # fmt: skip
    assert {frozenset(body) for body in server.bodies} == {
        frozenset({"model", "messages", "temperature", "max_completion_tokens"})
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "kg"], "needs --kg"),
        (["--method", "translate"], "needs --seeds"),
        (["--method", "self_instruct", "--count", "0"], "--count 0 is too small"),
        (["--method", "self_instruct", "--extra_body", "[1]"], "is not a JSON object"),
        (["--method", "self_instruct", "--url", "localhost:8000"], "is not the URL of a server"),
        (["--method", "self_instruct", "--input_price", "-1"], "is negative"),
        (["--method", "kg", "--kg", "missing.tsv"], "missing.tsv does not exist"),
        (["--method", "kg", "--kg", "README.md"], "README.md:1 is not a triple"),
    ],
)
def test_error_for_wrong_option_is_one_line(
    tmp_path: Path, options: list[str], message: str
) -> None:  # fmt: skip
    url = [] if "--url" in options else ["--url", "http://127.0.0.1:9"]
    done = run_in_process(SCRIPT, *options, *url, "--model", "m", "--output", tmp_path / "o.jsonl", status=2)
    assert done.stderr.count("\n") == 1 and message in done.stderr
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("o.jsonl")]


def test_addresses_of_servers() -> None:
    assert base_url("http://h:1") == base_url("http://h:1/v1/") == base_url("http://h:1/v1/chat/completions")
    for address in ("h:1", "http://", "http://h:99999", "http://a b", "http://u:p@h", "http://h/?q", "http://h#f"):
        with pytest.raises(ValueError, match="--url"):
            base_url(address)
    assert base_url("https://x.org/api/v3") == "https://x.org/api/v3"


def test_answers_of_the_journal_are_never_in_the_wrong_place(server: ChatServer, tmp_path: Path) -> None:
    """Another model, seed or prompt is another request; the order of keys is not."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "seed": 1}
    assert request_key("/c", body) == request_key("/c", dict(reversed(body.items())))
    changes: list[dict[str, Any]] = [{}, {"model": "n"}, {"seed": 2}, {"messages": []}]
    keys = {request_key("/c", body | change) for change in changes}
    assert len(keys) == 4 and request_key("/d", body) not in keys
