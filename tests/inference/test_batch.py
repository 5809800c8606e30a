"""batch.py, batch_rows.py, batch_file.py, batch_client.py: rows, the output file, failing servers, wrong options."""

import json
import resource
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import batch
import pytest
from batch_runs import batch_client, batch_file, batch_run
from batch_runs.batch_file import AnswerFile
from batch_runs.batch_rows import (
    ANSWER_FIELDS,
    REQUEST_FIELDS,
    BatchRow,
    RowAnswer,
    output_line,
    read_rows,
    request_of,
)
from conftest import RunScript
from hypothesis import given, settings
from hypothesis import strategies as st
from routes.generate_api import GenerateAnswer, GenerateRequest

SCRIPT = "inference/batch.py"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# --- rows and lines ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_row_fields_equal_the_fields_of_generate() -> None:
    assert {*REQUEST_FIELDS, "stream"} == set(GenerateRequest.model_fields)
    assert list(ANSWER_FIELDS) == list(GenerateAnswer.model_fields)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text() | st.sampled_from(ANSWER_FIELDS), JSON), st.text())
def test_output_line_keeps_the_rows_keys_and_adds_the_answer(content: dict[str, Any], text: str) -> None:
    line = output_line(BatchRow(3, content), RowAnswer(text, 3))
    assert line.count(b"\n") == 1
    message = json.loads(line)
    assert message == content | {"generated_text": text, "num_output_tokens_cf": 3, "error": None}
    assert list(message)[-3:] == list(ANSWER_FIELDS)


def test_each_input_line_is_a_row_an_error_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"instruction": "a"}\r\n\n{"a": NaN}\n{"a": 1e999}\n"x"\n{"a": \n\xff{}\n'
        + b"[" * 10**5
        + b'\n{"instruction": "b"}'
    )
    rows = list(read_rows(path))
    assert [row.number for row in rows] == list(range(1, 10))
    assert rows[0].content == {"instruction": "a"}
    assert rows[1] == BatchRow(2, None)
    assert [row.content for row in rows[2:8]] == [None] * 6
    starts = [
        "3 has the number NaN", "4 has the number 1e999", "5 is not a JSON object", "6 is not JSON", "7 is not UTF-8",
        "8, row 1 is nested too deep",
    ]  # fmt: skip
    assert all(row.error.startswith(f"{path}:{start}") for row, start in zip(rows[2:8], starts, strict=True))
    assert rows[8].content == {"instruction": "b"}
    assert list(read_rows(path, 5)) == rows[5:]
    assert [output_line(row, RowAnswer()) for row in rows[:2]][1] == b"\n"
    listed = tmp_path / "in.json"
    listed.write_text(' [{"instruction": "a"},\n 2]')
    assert [row.content for row in read_rows(listed)] == [{"instruction": "a"}, None]


def test_truncated_json_list_is_refused_before_the_first_request(tmp_path: Path) -> None:
    listed = tmp_path / "in.json"
    listed.write_text('[{"instruction": "a"}')
    with pytest.raises(ValueError, match=r"in.json:1, row 2 is not JSON"):
        batch_run.hash_and_count(listed)


@pytest.mark.integration
def test_read_rows_uses_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"instruction": "Name a city.", "id": 1}\n' * 100_000)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path)) == batch_run.hash_and_count(path)[1] == 100_000
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


def test_parameters_of_a_row_override_the_command_line() -> None:
    line = {"temperature": 0, "max_tokens": 9, "top_p": 0.5}
    assert request_of({"instruction": "a", "id": 1}, "", {}) == {"instruction": "a"}
    assert request_of({"instruction": "a", "model": "m", "input": None}, "n", line) == {
        "instruction": "a", "model": "m", "parameters": line,
    }  # fmt: skip
    request = request_of({"parameters": {"max_new_tokens": 3, "do_sample": True, "top_p": None}}, "n", line)
    assert request == {"model": "n", "parameters": {"max_new_tokens": 3, "do_sample": True, "top_p": None}}
    assert request_of({"parameters": [1]}, "", line) == {"parameters": [1]}


def test_command_line_parameters_are_json_or_text() -> None:
    given_ = {"stop": '["a", "\\n"]', "max_tokens": "5", "temperature": "1e-1", "ignore_eos": "True", "seed": "null"}
    read = {"stop": ["a", "\n"], "max_tokens": 5, "temperature": 0.1, "ignore_eos": True}
    assert batch.check_parameters(given_) == read
    assert batch.check_parameters({"stop": "a,b"}) == {"stop": "a,b"}
    with pytest.raises(ValueError, match="unknown option --temprature; did you mean --temperature"):
        batch.check_parameters({"temprature": "1"})
    with pytest.raises(ValueError, match="--max_tokens few: input should be a valid integer"):
        batch.check_parameters({"max_tokens": "few"})


def test_answer_options_ignores_speed_options() -> None:
    line = "--dtype half --max-num-seqs 3 --lora-modules a=b c=d --enforce-eager --gpu_memory_utilization=0.8 --seed 1"
    assert batch_run.answer_options(line.split()) == ["--dtype", "half", "--lora-modules", "a=b", "c=d", "--seed", "1"]


# --- the file of answers ----------------------------------------------------------------------------------------------


def lines(count: int) -> list[bytes]:
    return [output_line(BatchRow(number, {"id": number}), RowAnswer("x" * number)) for number in range(1, count + 1)]


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(1, 13)), st.lists(st.integers(0, 11), max_size=3), st.integers(0, 30))
def test_resumed_file_equals_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], stops: list[int], cut: int
) -> None:
    """Answers arrive in any order; runs are interrupted, the partial file is truncated, and runs are resumed."""
    output, expected, run = tmp_path_factory.mktemp("cut") / "out.jsonl", lines(12), {"input": "1"}
    for stop in [*stops, 12]:
        with AnswerFile(output, run, overwrite=False) as file:
            left = [number for number in order if number > file.lines]
            assert file.partial.read_bytes() == b"".join(expected[: file.lines])
            for number in left if stop == 12 else left[:stop]:
                file.write(number, expected[number - 1])
            if stop == 12:
                assert file.finish() == (12, 0)
        if stop < 12:
            content = file.partial.read_bytes()
            assert b"".join(expected).startswith(content)
            file.partial.write_bytes(content[: len(content) - cut] if cut < len(content) else content)
    assert output.read_bytes() == b"".join(expected)
    assert names(output.parent) == ["out.jsonl"]


def test_files_of_another_run_are_kept_without_overwrite(tmp_path: Path) -> None:
    output, first, second = tmp_path / "out.jsonl", {"input": "1", "parameters": {"seed": 1}}, {"input": "2"}
    with AnswerFile(output, first, overwrite=False) as file:
        file.write(1, b"{}\n")
        with pytest.raises(ValueError, match="another process is writing"):
            in_another_process(output, first)
    with pytest.raises(
        ValueError, match=r'another run \(input: 1 there, 2 here; parameters: {"seed": 1} there, null here'
    ):
        AnswerFile(output, second, overwrite=False)
    assert file.partial.read_bytes() == b"{}\n"
    with AnswerFile(output, first, overwrite=True) as file:
        assert file.lines == 1
    with AnswerFile(output, second, overwrite=True) as file:
        assert file.lines == 0
        file.write(1, output_line(BatchRow(1, {}), RowAnswer(error="no")))
        assert file.finish() == (1, 1)
    assert json.loads((tmp_path / "out.failed.jsonl").read_text()) == {"line": 1, "error": "no"}
    with pytest.raises(FileExistsError, match="replace it with --overwrite"):
        AnswerFile(output, second, overwrite=False)
    with AnswerFile(output, first, overwrite=True) as file:
        file.write(1, lines(1)[0])
        file.finish()
    assert names(tmp_path) == ["out.jsonl"]


def in_another_process(output: Path, run: dict[str, Any]) -> None:
    """Try to open the file in another process; raise its error output as a ValueError."""
    imports = "from pathlib import Path; from batch_runs.batch_file import AnswerFile"
    code = f"{imports}; AnswerFile(Path({str(output)!r}), {run!r}, True)"
    folder = str(Path(batch.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": folder})
    raise ValueError(done.stderr)


# --- servers that are busy, fail or disappear -------------------------------------------------------------------------

Reply = tuple[int, dict[str, str], Any]  # status, headers, body


@contextmanager
def pretended(reply: Callable[[dict[str, Any], dict[str, str]], Reply]) -> Iterator[str]:
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


def test_busy_server_is_waited_for_and_failing_one_retried(
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
    with pretended(reply) as url, pytest.raises(SystemExit) as end:
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

    with pretended(dies) as url, pytest.raises(batch_client.ServerGoneError, match="does not answer"):
        batch.main(str(source), str(output), url=url, concurrency=2, temperature="0")
    kept = (tmp_path / "out.jsonl.partial").read_bytes()
    assert kept.count(b"\n") == 10
    assert not output.exists()
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.iterdir())
    with pretended(always((200, {}, envelope("x")))) as url:
        with pytest.raises(ValueError, match=r'another run \(parameters: {"temperature": 0} there, {} here\)'):
            batch.main(str(source), str(output), url=url)
        with pytest.raises(ValueError, match="serves no model other; it serves base, adapter"):
            batch.main(str(source), str(output), url=url, model="other")
        batch.main(str(source), str(output), url=url, temperature="0")
    assert output.read_bytes().startswith(kept)
    assert "20 rows (10 lines from before), 0 failed, " in capsys.readouterr().out
    assert names(tmp_path) == ["in.jsonl", "out.jsonl"]


def test_run_ends_on_wrong_key_long_wait_or_foreign_server(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    replies: list[tuple[Reply, type[Exception], str]] = [
        ((401, {}, envelope(error="no")), ValueError, "does not accept the key"),
        (
            (429, {"Retry-After": "86400"}, envelope(error="no")),
            batch_client.ServerGoneError,
            "busy for 86400 s more",
        ),
        ((200, {}, {"answer": 42}), ValueError, "does not answer like a server"),
    ]
    for reply, kind, message in replies:
        with pretended(always(reply)) as url, pytest.raises(kind, match=message):
            batch.main(str(source), str(output), url=url)
    assert names(tmp_path) == ["in.jsonl"]


def test_slow_row_limits_the_lines_that_wait_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that arrive early wait in memory, so their number is limited."""
    monkeypatch.setattr(batch_client, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(batch_file, "MAX_WAITING_LINES", 4)
    source, output, requests = write_rows(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl", list[str]()

    def reply(body: dict[str, Any], headers: dict[str, str]) -> Reply:
        requests.append(body["instruction"])
        if body["instruction"] == "Name city 1.":
            time.sleep(0.5)
            assert 4 <= len(requests) <= 4 + 3
        return 200, {}, envelope("x")

    with pretended(reply) as url:
        batch.main(str(source), str(output), url=url, concurrency=3)
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == list(range(1, 41))


def test_run_ends_on_a_full_disk_and_can_be_resumed(run_script: RunScript, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl"

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    with pretended(always((200, {}, envelope("x")))) as url:
        options = ("--input", source, "--output", output, "--url", url)
        done = run_script(SCRIPT, *options, status=2, preexec_fn=small)
        message = "cannot be written (File too large); free space, and run the same command again to resume"
        assert done.stderr == f"error: {output}.partial {message}\n"
        run_script(SCRIPT, *options)
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == list(range(1, 61))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--input in.jsonl", "--output is missing"),
        ("--input none --output o --url u", "none does not exist; --input takes a .json"),
        ("--input in.jsonl --output in.jsonl --url u", "--output in.jsonl is the input"),
        ("--input in.jsonl --output o", "there is no model; give a checkpoint's folder with --model"),
        ("--input in.jsonl --output no/o --model M", "no does not exist; make it before"),
        ("--input in.jsonl --output o --model M --temprature 1", "unknown option --temprature; did you mean --temp"),
        ("--input in.jsonl --output o --model M --api_key K", "--api_key is for a running server"),
        ("--input in.jsonl --output o --model nothing", "nothing does not exist; --model takes a checkpoint folder"),
        ("--input in.jsonl --output o --url 127.0.0.1:1", "is not the URL of a server"),
        ("--input in.jsonl --output o --url http://u:p@h", "--url takes no name, password or query"),
        ("--input in.jsonl --output o --url http://h --concurrency no", "--concurrency takes a whole number, not 'no'"),
        ("--input in.jsonl --output o --url http://h -- --dtype half", "a server has its own template and engine"),
    ],
)  # fmt: skip
def test_wrong_options_give_one_error_line(run_script: RunScript, tmp_path: Path, options: str, message: str) -> None:
    write_rows(tmp_path / "in.jsonl", 1)
    done = run_script(SCRIPT, *options.split(), status=2, cwd=tmp_path)
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert names(tmp_path) == ["in.jsonl"]
