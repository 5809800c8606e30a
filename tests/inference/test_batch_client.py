"""batch.py and batch_client.py with servers that are busy, fail or disappear, and with a full disk."""

import hashlib
import json
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import batch
import pytest
from batch_runs import batch_client, batch_file, batch_server
from conftest import RunScript

SCRIPT = "inference/batch.py"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


Reply = tuple[int, dict[str, str], Any]  # status, headers, body


@contextmanager
def fake_server(reply: Callable[[dict[str, Any], dict[str, str]], Reply]) -> Iterator[str]:
    """Yield the URL of an HTTP server that answers /generate with reply(body, headers)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send(200, {}, {"data": [{"id": "base"}, {"id": "adapter", "parent": "base"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send(*reply(body, dict(self.headers)))

        def send(self, status: int, headers: dict[str, str], content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def always(reply: Reply) -> Callable[[dict[str, Any], dict[str, str]], Reply]:
    return lambda body, headers: reply


def envelope(text: str = "", error: str | None = None) -> dict[str, Any]:
    return {"generated_text": text, "num_output_tokens_cf": len(text), "error": error}


def write_rows(path: Path, count: int, **more: Any) -> Path:
    rows = ({"id": number, "instruction": f"Name city {number}."} | more for number in range(1, count + 1))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_requests_to_a_busy_or_failing_server_are_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_client, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("KNOWLM_API_KEY", "very-secret")
    times: dict[str, list[float]] = {}
    keys = set()

    def reply(body: dict[str, Any], headers: dict[str, str]) -> Reply:
        keys.add(headers["Authorization"])
        text = body["instruction"]
        seen = times.setdefault(text, [])
        seen.append(time.monotonic())
        if text.endswith(" 2.") and len(seen) == 1:
            return 429, {"Retry-After": "1"}, envelope(error="slow down")
        if text.endswith(" 3.") and len(seen) < 3:
            return (503 if len(seen) == 1 else 502), {}, "busy"
        if text.endswith(" 4."):
            return 500, {}, envelope(error="broken by this row")
        if text.endswith(" 5."):
            return 400, {}, envelope(error="no such thing")
        if text.endswith(" 6."):
            return 413, {}, "no envelope"
        return 200, {}, envelope(f"{text} {body['model']}")

    source, output = write_rows(tmp_path / "in.jsonl", 8), tmp_path / "out.jsonl"
    with fake_server(reply) as url, pytest.raises(SystemExit) as end:
        batch.main(str(source), str(output), url=f"{url}/generate", model="adapter", concurrency=3)
    assert end.value.code == 1
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["id"] for answer in answers] == list(range(1, 9))
    errors = {4: "broken by this row", 5: "no such thing", 6: "the server answered with status 413"}
    assert {answer["id"]: answer["error"] for answer in answers if answer["error"]} == errors
    assert all(
        answer["generated_text"] == f"Name city {answer['id']}. adapter" for answer in answers if not answer["error"]
    )
    failed = [json.loads(line) for line in (tmp_path / "out.failed.jsonl").read_text().splitlines()]
    assert failed == [{"line": number, "error": error} for number, error in errors.items()]
    assert times["Name city 2."][1] - times["Name city 2."][0] >= 1
    assert [len(times[f"Name city {number}."]) for number in (1, 3, 4, 5)] == [
        1,
        3,
        batch_client.ATTEMPTS,
        1,
    ]
    assert keys == {"Bearer very-secret"}
    assert f"{output}: 8 rows, 3 failed ({tmp_path}/out.failed.jsonl), " in capsys.readouterr().out


def test_run_ends_when_the_server_is_gone_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_client, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("KNOWLM_API_KEY", "very-secret")
    source, output = write_rows(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    requests: list[str] = []

    def dies(body: dict[str, Any], headers: dict[str, str]) -> Reply:
        requests.append(body["instruction"])
        if len(requests) > 10:
            raise ConnectionResetError
        return 200, {}, envelope("x")

    with (
        fake_server(dies) as url,
        pytest.raises(
            ConnectionError,
            match=r"does not answer \(.*\); .*out.jsonl.partial ends with line 10; the same command resumes the run$",
        ),
    ):
        batch.main(str(source), str(output), url=url, concurrency=1, temperature="0")
    kept = (tmp_path / "out.jsonl.partial").read_bytes()
    assert kept.count(b"\n") == 10
    assert not output.exists()
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.iterdir())
    with fake_server(always((200, {}, envelope("x")))) as url:
        with pytest.raises(ValueError, match=r'another run \(parameters was {"temperature": 0}, is now {}\)'):
            batch.main(str(source), str(output), url=url)
        with pytest.raises(ValueError, match="serves no model other; give one of base, adapter"):
            batch.main(str(source), str(output), url=url, model="other")
        batch.main(str(source), str(output), url=url, temperature="0")
    assert output.read_bytes().startswith(kept)
    assert "20 rows (10 from an earlier run), 0 failed, " in capsys.readouterr().out
    assert names(tmp_path) == ["in.jsonl", "out.jsonl"]


def test_complete_partial_output_is_renamed_without_a_server(tmp_path: Path, run_script: RunScript) -> None:
    """The last run was killed after it had written all answers, and before it renamed its output."""
    source, output = write_rows(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    settings: dict[str, object] = {
        "input": hashlib.sha256(source.read_bytes()).hexdigest(), "model": "none/such", "template": None, "engine": [],
        "parameters": {},
    }  # fmt: skip
    (tmp_path / "out.jsonl.partial.json").write_text(json.dumps(settings))
    (tmp_path / "out.jsonl.partial").write_text('{"error": null}\n' * 2)
    done = run_script(SCRIPT, "--model", "none/such", "--input", source, "--output", output)
    assert done.stdout.startswith(f"{output}: 2 rows (2 from an earlier run), ")
    assert done.stderr == ""
    assert names(tmp_path) == ["in.jsonl", "out.jsonl"]


def test_input_and_output_are_checked_before_the_server_is_contacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens at the URL, so an earlier request would fail with another error."""
    monkeypatch.setattr(batch_client, "FIRST_PAUSE", 0.001)
    rows, cut, empty = write_rows(tmp_path / "in.jsonl", 3), tmp_path / "cut.json", tmp_path / "empty.jsonl"
    cut.write_text('[{"instruction": "a"}')
    empty.write_text("")
    (finished := tmp_path / "finished.jsonl").write_text("{}\n")
    for source, output, message in (
        (cut, tmp_path / "o", "cut.json:1, row 2 is not JSON"),
        (empty, tmp_path / "o", "empty.jsonl"),
        (rows, finished, "finished.jsonl exists; choose another --output"),
        (
            rows,
            tmp_path / "o",
            r"127.0.0.1:9 does not answer \(.*\); start the server or wait for it, or give another --url$",
        ),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            batch.main(str(source), str(output), url="http://127.0.0.1:9")
    assert names(tmp_path) == ["cut.json", "empty.jsonl", "finished.jsonl", "in.jsonl"]


def test_run_ends_on_wrong_key_long_wait_or_response_in_another_format(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    replies: list[tuple[Reply, type[Exception], str]] = [
        ((401, {}, envelope(error="no")), ValueError, "does not accept the key"),
        (
            (429, {"Retry-After": "86400"}, envelope(error="no")),
            ConnectionError,
            "busy for 86400 s more; nothing was written$",
        ),
        ((200, {}, {"answer": 42}), ValueError, "does not answer in the format of launch_vllm.py"),
    ]
    for reply, kind, message in replies:
        with fake_server(always(reply)) as url, pytest.raises(kind, match=message):
            batch.main(str(source), str(output), url=url)
    assert names(tmp_path) == ["in.jsonl"]


def test_run_ends_on_a_server_that_stays_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_client, "LONGEST_PAUSE", 1)
    with (
        fake_server(always((429, {"Retry-After": "1"}, envelope(error="no")))) as url,
        pytest.raises(ConnectionError, match=r"has been busy for 1 s; nothing was written$"),
    ):
        batch.main(str(write_rows(tmp_path / "in.jsonl", 3)), str(tmp_path / "out.jsonl"), url=url)


def test_busy_server_that_works_on_a_long_request_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first row takes longer than the longest wait for a busy server, which refuses the other rows meanwhile."""
    monkeypatch.setattr(batch_client, "LONGEST_PAUSE", 1)
    monkeypatch.setattr(batch_client, "REFUSAL_SECONDS", 0.5)
    answered = threading.Event()

    def reply(body: dict[str, Any], headers: dict[str, str]) -> Reply:
        if body["instruction"] == "Name city 1.":
            time.sleep(3.5)
            answered.set()
        return (200, {}, envelope("x")) if answered.is_set() else (503, {"Retry-After": "1"}, envelope(error="busy"))

    output = tmp_path / "out.jsonl"
    with fake_server(reply) as url:
        batch.main(str(write_rows(tmp_path / "in.jsonl", 3)), str(output), url=url)
    assert [json.loads(line)["error"] for line in output.read_text().splitlines()] == [None] * 3


def test_slow_row_limits_the_lines_that_wait_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers to the rows after a slow row wait in memory, so the number of these rows is limited."""
    monkeypatch.setattr(batch_client, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(batch_file, "MAX_WAITING_LINES", 4)
    source, output, requests = write_rows(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl", list[str]()

    def reply(body: dict[str, Any], headers: dict[str, str]) -> Reply:
        requests.append(body["instruction"])
        if body["instruction"] == "Name city 1.":
            time.sleep(0.5)
            assert 4 <= len(requests) <= 4 + 3
        return 200, {}, envelope("x")

    with fake_server(reply) as url:
        batch.main(str(source), str(output), url=url, concurrency=3)
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == list(range(1, 41))


@pytest.mark.integration
def test_run_ends_on_a_full_disk_and_can_be_resumed(run_script: RunScript, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl"

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    with fake_server(always((200, {}, envelope("x")))) as url:
        options = ("--input", source, "--output", output, "--url", url)
        done = run_script(SCRIPT, *options, status=2, preexec_fn=limit_file_size)
        message = "cannot be written (File too large); free space, and run the same command again to resume"
        assert done.stderr == f"error: {output}.partial {message}\n"
        run_script(SCRIPT, *options)
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == list(range(1, 61))


SERVER = """
import json, socketserver, sys, time
from http.server import BaseHTTPRequestHandler

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply({})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({"generated_text": " ".join(sys.argv[1:3]), "num_output_tokens_cf": 1, "error": None})

    def reply(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address_string(self):
        return "batch"

if "--fails" in sys.argv:
    sys.exit(2)
time.sleep(0.5)  # a model is loaded
socketserver.ThreadingUnixStreamServer(sys.argv[-1], Handler).serve_forever()
"""


def test_rows_are_answered_by_a_server_that_is_started_for_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (launcher := tmp_path / "launcher.py").write_text(SERVER)
    monkeypatch.setattr(batch_server, "LAUNCHER", launcher)
    source, output = write_rows(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    batch.main(str(source), str(output), model="org/name")
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["generated_text"] for answer in answers] == ["--model org/name"] * 3
    output.unlink()
    with pytest.raises(SystemExit) as end:
        batch.main(str(source), str(output), model="org/name", engine="--fails")
    assert end.value.code == 2
    assert names(tmp_path) == ["in.jsonl", "launcher.py"]
