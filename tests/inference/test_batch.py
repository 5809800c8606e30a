"""batch.py, batch_rows.py, batch_file.py: rows, the output file, wrong options."""

import json
import signal
import socket
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import batch
import pytest
from batch_runs import batch_run
from batch_runs.batch_file import AnswerFile
from batch_runs.batch_rows import (
    EXTRACT_FIELDS,
    ITEM_FIELDS,
    NO_ANSWER,
    REQUEST_FIELDS,
    BatchRow,
    generate_request,
    output_line,
    read_rows,
    row_answer,
)
from conftest import RunScript
from extraction.text_windows import CONCURRENT_WINDOWS
from hypothesis import given, settings
from hypothesis import strategies as st
from routes import extract_api
from routes.generate_api import GenerateAnswer, GenerateRequest
from routes.response_envelope import field_names

SCRIPT = "inference/batch.py"


FIELDS = list(NO_ANSWER["/generate"])


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_row_fields_equal_the_fields_of_the_routes() -> None:
    assert {*REQUEST_FIELDS, "stream"} == set(GenerateRequest.model_fields)
    assert set(EXTRACT_FIELDS) == set(field_names(extract_api.ExtractRequest))
    assert NO_ANSWER["/generate"] == GenerateAnswer().model_dump()
    assert NO_ANSWER["/extract"] == extract_api.ExtractAnswer().model_dump(exclude=set(ITEM_FIELDS))
    assert [*ITEM_FIELDS, *NO_ANSWER["/extract"]] == list(extract_api.ExtractAnswer.model_fields)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text() | st.sampled_from(FIELDS), JSON), st.text())
def test_output_line_keeps_the_rows_keys_and_adds_the_answer(content: dict[str, Any], text: str) -> None:
    line = output_line(
        BatchRow(3, content), NO_ANSWER["/generate"] | {"generated_text": text, "num_output_tokens_cf": 3}
    )
    assert line.count(b"\n") == 1
    message = json.loads(line)
    assert message == content | {"generated_text": text, "num_output_tokens_cf": 3, "error": None}
    assert list(message)[-3:] == FIELDS


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
    assert [output_line(row, NO_ANSWER["/generate"]) for row in rows[:2]][1] == b"\n"
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
    path.write_bytes(b'{"instruction": "Name a city.", "id": 1}\n' * 20_000)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path)) == batch_run.hash_and_count(path)[1].total() == 20_000
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


def test_parameters_of_a_row_override_the_command_line() -> None:
    line = {"temperature": 0, "max_tokens": 9, "top_p": 0.5}
    assert generate_request({"instruction": "a", "id": 1}, "", {}) == {"instruction": "a"}
    assert generate_request({"instruction": "a", "model": "m", "input": None}, "n", line) == {
        "instruction": "a", "model": "m", "parameters": line,
    }  # fmt: skip
    request = generate_request({"parameters": {"max_new_tokens": 3, "do_sample": True, "top_p": None}}, "n", line)
    assert request == {"model": "n", "parameters": {"max_new_tokens": 3, "do_sample": True, "top_p": None}}
    assert generate_request({"parameters": [1]}, "", line) == {"parameters": [1]}


def test_rows_with_task_schema_and_text_are_requests_of_extract(tmp_path: Path) -> None:
    extraction = {"text": "Ann.", "task": "ner", "schema": ["person"]}
    metadata = {"task": "ner", "schema": ["person"]}
    rows: list[dict[str, Any]] = [
        extraction | {"id": 1, "input": "kept", "instruction": None},
        extraction | {"model": "m", "max_tokens": 3, "language": "en", "window_tokens": 9},
        {"instruction": "a"} | metadata,
        extraction | {"instruction": "a"},
        extraction | {"messages": []},
        extraction | {"parameters": {"max_tokens": 3}},
        metadata,
    ]
    (path := tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = list(read_rows(path, model="n", parameters={"max_tokens": 9, "top_p": 0.5}))
    assert [row.route for row in read[:3]] == ["/extract", "/extract", "/generate"]
    assert [row.content for row in read] == [*rows[:3], *[None] * 4]
    assert read[0].request == extraction | {"model": "n", "max_tokens": 9}
    assert read[1].request == rows[1]
    assert read[2].request == {"instruction": "a", "model": "n", "parameters": {"max_tokens": 9, "top_p": 0.5}}
    for row, key in zip(read[3:6], ("instruction", "messages", "parameters"), strict=True):
        assert row.error.startswith(f"{path}:{row.number} has 'task', 'schema' and 'text', and also '{key}'; a row is ")
    assert read[6].error.endswith(', or {"task", "schema", "text"}')
    assert batch_run.hash_and_count(path)[1] == {"/extract": 2, "/generate": 1, "": 4}


def test_extraction_line_has_the_items_of_the_response_and_ends_with_the_error(tmp_path: Path) -> None:
    response: dict[str, Any] = {
        "error": None, "complete": True, "windows": 1, "num_output_tokens_cf": 5, "entities": [], "new": 1,
    }  # fmt: skip
    row = BatchRow(1, {"text": "Ann.", "windows": 7, "triples": [1]}, route="/extract")
    line = output_line(row, row_answer("/extract", response))
    fields = '"entities": [], "complete": true, "windows": 1, "num_output_tokens_cf": 5, "error": null}\n'
    assert line.decode() == '{"text": "Ann.", "triples": [1], ' + fields
    for wrong in ({"generated_text": "", "error": None}, [1], "text", 3, None):
        with pytest.raises((KeyError, TypeError)):
            row_answer("/extract", wrong)


def test_long_text_counts_as_several_sequences() -> None:
    rows = [BatchRow(1, {}, "", {"text": "x" * count}, "/extract") for count in (0, 4000, 9000, 10**6)]
    assert [row.sequences() for row in rows] == [1, 1, 3, CONCURRENT_WINDOWS]
    assert BatchRow(1, {}, "", {"text": 10**6}, "/extract").sequences() == 1
    assert BatchRow(1, {}, "", {"instruction": "x" * 10**6}).sequences() == 1


def test_command_line_parameters_are_json_or_text() -> None:
    given_ = {"stop": '["a", "\\n"]', "max_tokens": "5", "temperature": "1e-1", "ignore_eos": "True", "seed": "null"}
    read = {"stop": ["a", "\n"], "max_tokens": 5, "temperature": 0.1, "ignore_eos": True}
    assert batch.check_parameters(given_) == read
    assert batch.check_parameters({"stop": "a,b"}) == {"stop": "a,b"}
    with pytest.raises(ValueError, match="unknown option --temprature; did you mean --temperature"):
        batch.check_parameters({"temprature": "1"})
    with pytest.raises(ValueError, match="--max_tokens few: input should be a valid integer"):
        batch.check_parameters({"max_tokens": "few"})


def as_options(name: str, value: float) -> dict[str, Any]:
    return {name: value}


def test_ranges_of_command_line_parameters_are_those_of_vllm() -> None:
    """vLLM and the command accept the lowest value of each range, and refuse values outside the range."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    steps = {"top_k": 1, "max_tokens": 1, "min_tokens": 1}
    for name, (lowest, highest) in batch.RANGES.items():
        if name in ("seed", "max_new_tokens"):  # only CompletionRequest checks a seed; max_new_tokens is max_tokens
            continue
        step = steps.get(name, 0.5)
        inside = lowest + (0.5 if name in batch.EXCLUSIVE_MINIMUM else 0)
        outside = [lowest - (0 if name in batch.EXCLUSIVE_MINIMUM else step)]
        outside += [highest + step] if highest != float("inf") else []
        SamplingParams(**as_options(name, inside))
        assert batch.check_parameters({name: str(inside)}) == {name: inside}
        for value in outside:
            with pytest.raises(VLLMValidationError, match=name):
                SamplingParams(**as_options(name, value))
            with pytest.raises(ValueError, match=f"--{name} {value} is out of range; give a number "):
                batch.check_parameters({name: str(value)})


def test_identity_of_run_ignores_speed_options() -> None:
    line = "--dtype half --max-num-seqs 3 --lora-modules a=b c=d --enforce-eager --gpu_memory_utilization=0.8 --seed 1"
    assert batch_run.without_speed_options(line.split()) == [
        "--dtype",
        "half",
        "--lora-modules",
        "a=b",
        "c=d",
        "--seed",
        "1",
    ]


def lines(count: int) -> list[bytes]:
    return [
        output_line(BatchRow(number, {"id": number}), NO_ANSWER["/generate"] | {"generated_text": "x" * number})
        for number in range(1, count + 1)
    ]


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
        ValueError, match=r'another run \(input was 1, is now 2; parameters was {"seed": 1}, is now null'
    ):
        AnswerFile(output, second, overwrite=False)
    assert file.partial.read_bytes() == b"{}\n"
    with AnswerFile(output, first, overwrite=True) as file:
        assert file.lines == 1
    with AnswerFile(output, second, overwrite=True) as file:
        assert file.lines == 0
        file.write(1, output_line(BatchRow(1, {}), NO_ANSWER["/generate"] | {"error": "no"}))
        assert file.finish() == (1, 1)
    assert json.loads((tmp_path / "out.failed.jsonl").read_text()) == {"line": 1, "error": "no"}
    with pytest.raises(FileExistsError, match="replace it with --overwrite"):
        AnswerFile(output, second, overwrite=False)
    with AnswerFile(output, first, overwrite=True) as file:
        file.write(1, lines(1)[0])
        file.finish()
    assert names(tmp_path) == ["out.jsonl"]


def test_run_that_waited_for_a_run_with_the_same_output_leaves_the_finished_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, lock = tmp_path / "out.jsonl", AnswerFile.lock
    first = AnswerFile(output, {"input": "1"}, overwrite=False)
    first.write(1, lines(1)[0])

    def lock_after_the_first_run(file: AnswerFile) -> None:
        with first:
            first.finish()
        lock(file)

    monkeypatch.setattr(AnswerFile, "lock", lock_after_the_first_run)
    with pytest.raises(ValueError, match=r"another process has just finished .*out\.jsonl; choose another --output"):
        AnswerFile(output, {"input": "2"}, overwrite=True)
    assert output.read_bytes() == lines(1)[0] and names(tmp_path) == ["out.jsonl"]


def in_another_process(output: Path, run: dict[str, Any]) -> None:
    """Try to open the file in another process; raise its error output as a ValueError."""
    imports = "from pathlib import Path; from batch_runs.batch_file import AnswerFile"
    code = f"{imports}; AnswerFile(Path({str(output)!r}), {run!r}, True)"
    folder = str(Path(batch.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": folder})
    raise ValueError(done.stderr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--input in.jsonl", "--output is missing"),
        ("--input none --output o --url u", "none does not exist; --input takes a .json"),
        ("--input . --output o --url u", ". is a folder; --input takes a .json"),
        ("--input in.jsonl --output in.jsonl --url u", "--output in.jsonl is the input"),
        ("--input in.jsonl --output o", "no model is given; give a checkpoint folder with --model"),
        ("--input in.jsonl --output no/o --model M", "no does not exist; create this folder for --output no/o"),
        ("--input in.jsonl --output o --model M --temprature 1", "unknown option --temprature; did you mean --temp"),
        ("--input in.jsonl --output o --model M --api_key K", "--api_key is for a running server"),
        ("--input in.jsonl --output o --model M --temperature -1", "-1 is out of range; give a number of 0 or more"),
        ("--input in.jsonl --output o --model nothing", "nothing does not exist; --model takes a checkpoint folder"),
        ("--input in.jsonl --output o --url 127.0.0.1:1", "is not the URL of a server"),
        ("--input in.jsonl --output o --url http://u:p@h", "--url takes no user name, password or query"),
        ("--input in.jsonl --output o --url http://h --concurrency no", "--concurrency takes a whole number, not 'no'"),
        ("--input in.jsonl --output o --url http://h -- --dtype half", "--url uses a server that is already running"),
        ("--input texts.jsonl --output o --model M --max_tokens 9 --temperature 0",
         "--temperature is a parameter of /generate, but texts.jsonl has only rows of /extract; remove it"),
        ("--input texts.jsonl --output o --model nothing --max_tokens 9", "nothing does not exist; --model takes"),
    ],
)  # fmt: skip
@pytest.mark.integration
def test_wrong_options_give_one_error_line(run_script: RunScript, tmp_path: Path, options: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"instruction": "Name a city."}\n')
    (tmp_path / "texts.jsonl").write_text('{"text": "Ann.", "task": "ner", "schema": ["person"]}\n')
    done = run_script(SCRIPT, *options.split(), status=2, cwd=tmp_path)
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert names(tmp_path) == ["in.jsonl", "texts.jsonl"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_run_with_its_own_exit_status(tmp_path: Path, repository: Path, number: signal.Signals) -> None:
    """The run waits for a server that never answers."""
    (source := tmp_path / "in.jsonl").write_text('{"instruction": "x"}\n')
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, repository / SCRIPT, "--input", source, "--output", tmp_path / "out", "--url", url]
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)  # the request has been sent
            process.send_signal(number)
            assert process.communicate(timeout=60)[1] == "interrupted\n"
    assert process.returncode == 128 + number
