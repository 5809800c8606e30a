"""inference/batch.py and its parts: rows and lines, the file that grows, a server that fails, mistakes of a user."""

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
from batch_runs import batch_client, batch_file
from batch_runs.batch_file import AnswerFile
from batch_runs.batch_rows import ANSWERED, ASKED, Answer, Row, line_of, parse, read_rows, request_of
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


def test_the_fields_are_those_of_generate() -> None:
    assert {*ASKED, "stream"} == set(GenerateRequest.model_fields)
    assert list(ANSWERED) == list(GenerateAnswer.model_fields)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text() | st.sampled_from(ANSWERED), JSON), st.booleans(), st.text())
def test_a_row_keeps_its_keys_and_gets_the_answers(content: dict[str, Any], escaped: bool, text: str) -> None:
    row = parse(3, json.dumps(content, ensure_ascii=escaped).encode("utf-8", "surrogatepass"))
    if row.content is None:  # half of a surrogate pair, not escaped, is no UTF-8
        assert "not UTF-8" in row.error
        return
    line = line_of(row, Answer(text, 3))
    assert line.count(b"\n") == 1
    said = json.loads(line)
    assert said == content | {"generated_text": text, "num_output_tokens_cf": 3, "error": None}
    assert list(said)[-3:] == list(ANSWERED)


def test_every_line_of_the_input_is_a_row_an_error_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"instruction": "a"}\r\n\n{"a": NaN}\n{"a": 1e999}\n"x"\n{"a": \n\xff{}\n'
        + b"[" * 10**5
        + b'\n{"b": 1}'
    )
    rows = list(read_rows(path))
    assert [row.number for row in rows] == list(range(1, 10))
    assert rows[0].content == {"instruction": "a"}
    assert rows[1] == Row(2, None)
    assert [row.content for row in rows[2:8]] == [None] * 6
    no_json = "the line is no JSON"
    starts = [f"{no_json}: NaN", f"{no_json}: 1e999", "the row must be", no_json, "the line is not UTF-8", no_json]
    assert all(row.error.startswith(start) for row, start in zip(rows[2:8], starts, strict=True))
    assert rows[8].content == {"b": 1}
    assert list(read_rows(path, 5)) == rows[5:]
    assert [line_of(row, Answer()) for row in rows[:2]][1] == b"\n"
    listed = tmp_path / "in.json"
    listed.write_text(' [{"instruction": "a"},\n 2]')
    assert [row.content for row in read_rows(listed)] == [{"instruction": "a"}, None]
    listed.write_text('[{"instruction": "a"}')
    with pytest.raises(ValueError, match="begins as a JSON list and is none"):
        list(read_rows(listed))


def test_rows_are_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"instruction": "Name a city.", "id": 1}\n' * 100_000)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path)) == batch.look_through(path)[1] == 100_000
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


def test_a_rows_own_parameters_go_before_the_command_lines() -> None:
    line = {"temperature": 0, "max_tokens": 9, "top_p": 0.5}
    assert request_of({"instruction": "a", "id": 1}, "", {}) == {"instruction": "a"}
    assert request_of({"instruction": "a", "model": "m", "input": None}, "n", line) == {
        "instruction": "a", "model": "m", "parameters": line,
    }  # fmt: skip
    asked = request_of({"parameters": {"max_new_tokens": 3, "do_sample": True, "top_p": None}}, "n", line)
    assert asked == {"model": "n", "parameters": {"max_new_tokens": 3, "do_sample": True, "top_p": None}}
    assert request_of({"parameters": [1]}, "", line) == {"parameters": [1]}


def test_parameters_of_the_command_line_are_json_or_text() -> None:
    given_ = {"stop": '["a", "\\n"]', "max_tokens": "5", "temperature": "1e-1", "ignore_eos": "True", "seed": "null"}
    read = {"stop": ["a", "\n"], "max_tokens": 5, "temperature": 0.1, "ignore_eos": True}
    assert batch.check_parameters(given_) == read
    assert batch.check_parameters({"stop": "a,b"}) == {"stop": "a,b"}
    with pytest.raises(ValueError, match="unknown option --temprature; did you mean --temperature"):
        batch.check_parameters({"temprature": "1"})
    with pytest.raises(ValueError, match="--max_tokens few: input should be a valid integer"):
        batch.check_parameters({"max_tokens": "few"})


def test_options_that_only_decide_how_fast_do_not_tell_runs_apart() -> None:
    words = "--dtype half --max-num-seqs 3 --lora-modules a=b c=d --enforce-eager --gpu_memory_utilization=0.8 --seed 1"
    assert batch.deciding(words.split()) == ["--dtype", "half", "--lora-modules", "a=b", "c=d", "--seed", "1"]


# --- the file of answers ----------------------------------------------------------------------------------------------


def lines(count: int) -> list[bytes]:
    return [line_of(Row(number, {"id": number}), Answer("x" * number)) for number in range(1, count + 1)]


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(1, 13)), st.lists(st.integers(0, 11), max_size=3), st.integers(0, 30))
def test_the_file_is_the_same_however_often_it_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], stops: list[int], cut: int
) -> None:
    """Answers in any order; a run that is cut off, within a line too, is gone on with where its whole lines end."""
    output, expected, run = tmp_path_factory.mktemp("cut") / "out.jsonl", lines(12), {"input": "1"}
    for stop in [*stops, 12]:
        with AnswerFile(output, run, overwrite=False) as file:
            left = [number for number in order if number > file.lines]
            assert file.partial.read_bytes() == b"".join(expected[: file.lines])
            for number in left if stop == 12 else left[:stop]:
                file.put(number, expected[number - 1])
            if stop == 12:
                assert file.finish() == (12, 0)
        if stop < 12:
            content = file.partial.read_bytes()
            assert b"".join(expected).startswith(content)
            file.partial.write_bytes(content[: len(content) - cut] if cut < len(content) else content)
    assert output.read_bytes() == b"".join(expected)
    assert names(output.parent) == ["out.jsonl"]


def test_another_runs_rest_and_a_finished_file_are_not_touched_untold(tmp_path: Path) -> None:
    output, first, second = tmp_path / "out.jsonl", {"input": "1", "parameters": {"seed": 1}}, {"input": "2"}
    with AnswerFile(output, first, overwrite=False) as file:
        file.put(1, b"{}\n")
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
        file.put(1, line_of(Row(1, {}), Answer(error="no")))
        assert file.finish() == (1, 1)
    assert json.loads((tmp_path / "out.failed.jsonl").read_text()) == {"line": 1, "error": "no"}
    with pytest.raises(FileExistsError, match="replace it with --overwrite"):
        AnswerFile(output, second, overwrite=False)
    with AnswerFile(output, first, overwrite=True) as file:
        file.put(1, lines(1)[0])
        file.finish()
    assert names(tmp_path) == ["out.jsonl"]


def in_another_process(output: Path, run: dict[str, Any]) -> None:
    """Try to write the file there; raises the ValueError that was raised there."""
    code = (
        "from pathlib import Path; from batch_runs.batch_file import AnswerFile; "
        f"AnswerFile(Path({str(output)!r}), {run!r}, True)"
    )
    folder = str(Path(batch.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": folder})
    raise ValueError(done.stderr)


# --- a server that is busy, fails, is gone ----------------------------------------------------------------------------

Reply = tuple[int, dict[str, str], Any]  # status, headers, and what is sent as JSON


@contextmanager
def pretended(reply: Callable[[dict[str, Any], dict[str, str]], Reply]) -> Iterator[str]:
    """URL of an HTTP server that answers /generate as `reply` says of a body and its headers."""

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


def test_a_busy_server_is_waited_for_and_a_failing_one_tried_again(
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
        batch.main(str(source), str(output), url=f"{url}/generate", model="adapter", concurrency="3")
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
    assert [len(times[f"Name city {number}."]) for number in (1, 3, 4, 5)] == [1, 3, batch_client.TRIES, 1]
    assert keys == {"Bearer very-secret"}
    assert f"{output}: 8 rows, 3 failed ({tmp_path}/out.failed.jsonl), " in capsys.readouterr().out


def test_a_server_that_is_gone_ends_the_run_which_goes_on_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_client, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("KNOWLM_API_KEY", "very-secret")
    source, output = write_rows(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    asked: list[str] = []

    def dies(body: dict[str, Any], headers: dict[str, str]) -> Reply:
        asked.append(body["instruction"])
        if len(asked) > 10:
            raise ConnectionResetError
        return 200, {}, envelope("x")

    with pretended(dies) as url, pytest.raises(batch_client.ServerGoneError, match="does not answer"):
        batch.main(str(source), str(output), url=url, concurrency="2", temperature="0")
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


def test_a_server_that_does_not_let_in_or_asks_for_too_long_ends_the_run(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl"
    replies: list[tuple[Reply, type[Exception], str]] = [
        ((401, {}, envelope(error="no")), ValueError, "does not take the key"),
        ((429, {"Retry-After": "86400"}, envelope(error="no")), batch_client.ServerGoneError, "come again in 86400 s"),
        ((200, {}, {"answer": 42}), ValueError, "does not answer as launch_vllm"),
    ]
    for reply, kind, said in replies:
        with pretended(always(reply)) as url, pytest.raises(kind, match=said):
            batch.main(str(source), str(output), url=url)
    assert names(tmp_path) == ["in.jsonl"]


def test_a_slow_row_does_not_let_the_others_run_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is early waits in memory, so there is a bound to it."""
    monkeypatch.setattr(batch_client, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(batch_file, "WAITING_LINES", 4)
    source, output, asked = write_rows(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl", list[str]()

    def reply(body: dict[str, Any], headers: dict[str, str]) -> Reply:
        asked.append(body["instruction"])
        if body["instruction"] == "Name city 1.":
            time.sleep(0.5)
            assert 4 <= len(asked) <= 4 + 3
        return 200, {}, envelope("x")

    with pretended(reply) as url:
        batch.main(str(source), str(output), url=url, concurrency="3")
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == list(range(1, 41))


def test_a_full_disk_ends_the_run_which_goes_on_later(run_script: RunScript, tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 60), tmp_path / "out.jsonl"

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    with pretended(always((200, {}, envelope("x")))) as url:
        options = ("--input", source, "--output", output, "--url", url)
        done = run_script(SCRIPT, *options, status=2, preexec_fn=small)
        said = "cannot be written (File too large); make room, and the same command goes on"
        assert done.stderr == f"error: {output}.partial {said}\n"
        run_script(SCRIPT, *options)
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == list(range(1, 61))


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--input in.jsonl", "--output is missing"),
        ("--input none --output o --url u", "none does not exist; --input takes JSONL"),
        ("--input in.jsonl --output in.jsonl --url u", "--output in.jsonl is the input"),
        ("--input in.jsonl --output o", "nothing to ask; give a checkpoint's folder with --model"),
        ("--input in.jsonl --output no/o --model M", "no does not exist; make it before"),
        ("--input in.jsonl --output o --model M --temprature 1", "unknown option --temprature; did you mean --temp"),
        ("--input in.jsonl --output o --model M --concurrency 3", "--concurrency and --api_key are for servers"),
        ("--input in.jsonl --output o --model nothing", "nothing does not exist; --model takes a checkpoint folder"),
        ("--input in.jsonl --output o --url 127.0.0.1:1", "is no URL of a server"),
        ("--input in.jsonl --output o --url http://u:p@h", "--url takes no name, password or query"),
        ("--input in.jsonl --output o --url http://h --concurrency no", "--concurrency no is no number"),
        ("--input in.jsonl --output o --url http://h -- --dtype half", "a server has its own template and engine"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(run_script: RunScript, tmp_path: Path, options: str, said: str) -> None:
    write_rows(tmp_path / "in.jsonl", 1)
    done = run_script(SCRIPT, *options.split(), status=2, cwd=tmp_path)
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert names(tmp_path) == ["in.jsonl"]
