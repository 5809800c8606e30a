"""batch.py with a new server and with a running server: both runs write the same lines, also after kills."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, RunScript

SCRIPT = "inference/batch.py"
GREEDY = ("--temperature", 0, "--max_tokens", 16)
RESUMABLE = re.compile(
    r"^interrupted; .*\.partial ends with line \d+; the same command resumes the run\n\Z", re.MULTILINE
)
# Kinds of rows; the last six fail.
TALK = [("user", "a"), ("assistant", "b"), ("user", "c")]
KINDS: list[dict[str, Any]] = [
    {"instruction": "Where was Dabe Kilo born?", "input": "", "output": "kept"},
    {"instruction": "写出首都", "input": "李白生于701年。", "parameters": {"max_new_tokens": 9}},
    {"messages": [{"role": role, "content": content} for role, content in TALK]},
    {"instruction": "a </s> in <s> text", "parameters": {"temperature": 1, "seed": 7}, "number": 10**30},
    {"instruction": "Name a city.", "parameters": {"stop": "e", "ignore_eos": True, "min_tokens": 3}},
    {"instruction": "Name a city.", "parameters": {"structured_outputs": {"choice": ["Oslo", "Rome"]}}},
    {"instruction": "word " * 600},
    {"instruction": "x", "parameters": {"temprature": 1}},
    {"instruction": "x", "parameters": {"max_tokens": 10**6}},
    {"instruction": "x", "parameters": [1]},
    {"instruction": "x", "model": "none"},
    {"input": "x"},
]  # fmt: skip


def write_rows(path: Path, count: int, failing: bool = True) -> Path:
    """Write `count` different rows of all kinds; failing: include failing rows, an invalid line and a blank line."""
    kinds = KINDS if failing else KINDS[:6]
    lines = []
    for number in range(count):
        row = {"id": number} | kinds[number % len(kinds)]
        if row.get("instruction"):
            row["instruction"] = f"{number} {row['instruction']}"
        lines.append(json.dumps(row, ensure_ascii=False))
    if failing:
        lines[3] = "not JSON"
        lines[5] = ""
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


class BatchProcess:
    """A run of batch.py in its own session."""

    def __init__(self, source: Path, output: Path, *options: object) -> None:
        command = [sys.executable, REPOSITORY / SCRIPT, "--input", source, "--output", output, *options]
        self.partial = Path(f"{output}.partial")
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={"OMP_NUM_THREADS": "1"} | os.environ,
        )  # fmt: skip

    def lines(self) -> int:
        return self.partial.read_bytes().count(b"\n") if self.partial.exists() else 0

    def stop_after(self, lines: int, number: int) -> tuple[int, str]:
        """Send the signal `number` once `lines` lines are written; return the exit status and stderr."""
        for _ in range(60_000):
            if self.lines() >= lines or self.process.poll() is not None:
                break
            time.sleep(0.005)
        self.process.send_signal(number)
        stderr = self.process.communicate(timeout=60)[1]
        return self.process.returncode, stderr

    def process_ids(self) -> list[int]:
        """Return the ids of the session's processes, without zombies."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.process.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) if line.strip() else {} for line in path.read_text().splitlines()]


def test_killed_and_resumed_run_writes_the_same_file(server: Any, run_script: RunScript, tmp_path: Path) -> None:
    """The run is killed twice, its last line is truncated, and it is interrupted by Ctrl-C.

    The answers of the first lines are compared with the server's.
    """
    source, whole, killed = write_rows(tmp_path / "in.jsonl", 480), tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    done = run_script(SCRIPT, "--input", source, "--output", whole, "--url", server.url, *GREEDY, status=1)
    assert done.stdout.startswith(f"{whole}: 479 rows, 241 failed ({tmp_path}/whole.failed.jsonl), ")
    assert done.stdout.endswith(" output tokens/s\n")
    assert done.stderr == ""

    options = ("--url", server.url, "--concurrency", 3, *GREEDY)
    assert BatchProcess(source, killed, *options).stop_after(20, signal.SIGKILL)[0] == -signal.SIGKILL
    run = BatchProcess(source, killed, *options)
    assert run.stop_after(60, signal.SIGKILL)[0] == -signal.SIGKILL
    kept = run.partial.read_bytes()
    assert len(kept) > 5
    assert whole.read_bytes().startswith(kept)
    run.partial.write_bytes(kept[:-5])
    resumed_lines = kept.count(b"\n") + 20
    status, stderr = BatchProcess(source, killed, *options).stop_after(resumed_lines, signal.SIGINT)
    assert status == 130
    assert RESUMABLE.search(stderr)
    run_script(SCRIPT, "--input", source, "--output", killed, *options, status=1)
    assert killed.read_bytes() == whole.read_bytes()
    assert (tmp_path / "killed.failed.jsonl").read_bytes() == (tmp_path / "whole.failed.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))

    rows = answers(source.with_name("whole.jsonl"))
    for row, line in list(zip(rows, source.read_text().splitlines(), strict=True))[:40]:
        if row and "instruction" in row and not row["error"]:
            request = json.loads(line)
            assert {name: row[name] for name in request} == request
            parameters = {"temperature": 0, "max_tokens": 16} | request.get("parameters", {})
            if "max_new_tokens" in parameters:
                del parameters["max_tokens"]
            answer = server.generate(request["instruction"], request.get("input", ""), **parameters)
            assert [row[name] for name in answer] == list(answer.values())


EXTRACTION = {"task": "ner", "schema": ["person", "地点"], "text": "Dabe Kilo was born in Marolo. 她在公司工作。"}
TRIPLES = {"task": "re", "schema": ["born in"], "text": EXTRACTION["text"], "max_tokens": 20, "entities": "kept"}
LONG_TEXT = "".join(f"Dabe number {number} was born in Kilo. 他在公司工作。\n" for number in range(60))
EXTRACTIONS: list[dict[str, Any]] = [
    EXTRACTION,
    TRIPLES,
    {"instruction": "Name a city.", "parameters": {"temperature": 0}},
    EXTRACTION | {"text": LONG_TEXT, "window_tokens": 60},
    EXTRACTION | {"text": " "},
    EXTRACTION | {"schema": []},
    EXTRACTION | {"model": "none"},
    EXTRACTION | {"instruction": "Name a city."},
]
EXTRACT_FIELDS = ("task", "schema", "text", "max_tokens", "window_tokens", "model")


def test_killed_run_with_rows_of_both_routes_is_resumed_to_the_same_file(
    server: Any, run_script: RunScript, tmp_path: Path
) -> None:
    """The first lines are compared with answers of the row's route."""
    source, whole, killed = tmp_path / "in.jsonl", tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    rows = [{"id": number} | EXTRACTIONS[number % len(EXTRACTIONS)] for number in range(80)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--url", f"{server.url}/extract", "--max_tokens", 8)
    done = run_script(SCRIPT, "--input", source, "--output", whole, *options, status=1)
    assert done.stdout.startswith(f"{whole}: 80 rows, 30 failed ({tmp_path}/whole.failed.jsonl), ")
    for row, line in zip(rows[:7], answers(whole), strict=False):
        is_extraction = "task" in row
        default: dict[str, Any] = {"max_tokens": 8} if is_extraction else {"parameters": {"max_tokens": 8}}
        body = {name: row[name] for name in EXTRACT_FIELDS if name in row} if is_extraction else {
            "instruction": row["instruction"], "parameters": row["parameters"] | default["parameters"]
        }  # fmt: skip
        answer = server.post("/extract" if is_extraction else "/generate", default | body)[1]
        assert list(line.items()) == [*row.items(), *answer.items()]
    lines = answers(whole)
    assert [bool(line["error"]) for line in lines[:8]] == [False] * 5 + [True] * 3
    assert lines[3]["windows"] > 10
    assert lines[5]["error"].startswith("the schema is empty or not a list; the task ner needs a schema such as ")
    assert "has 'task', 'schema' and 'text', and also 'instruction'" in lines[7]["error"]

    run = BatchProcess(source, killed, *options, "--concurrency", 3)
    assert run.stop_after(20, signal.SIGKILL)[0] == -signal.SIGKILL
    kept = run.partial.read_bytes()
    assert kept and whole.read_bytes().startswith(kept)
    done = run_script(SCRIPT, "--input", source, "--output", killed, *options, status=1)
    assert " from an earlier run), 30 failed" in done.stdout
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_lines_of_long_texts_are_written_during_the_run(
    start_server: Any, tuned_checkpoint: Path, tmp_path: Path
) -> None:
    """Together, the rows have thousands of windows for a queue of 16 places, so few texts are answered at a time."""
    server = start_server(tuned_checkpoint, "--max-num-seqs", 16, "--max-num-queued-reqs", 16)
    source, output, seen = tmp_path / "in.jsonl", tmp_path / "out.jsonl", set[int]()
    row = EXTRACTION | {"text": LONG_TEXT * 6, "max_tokens": 4}
    source.write_text("".join(json.dumps({"id": number} | row) + "\n" for number in range(12)))
    run = BatchProcess(source, output, "--url", server.url, "--concurrency", 12)
    while run.process.poll() is None:
        seen.add(run.lines())
        time.sleep(0.02)
    assert (run.process.returncode, run.process.communicate()[1]) == (0, "")
    assert any(0 < lines <= 6 for lines in seen)
    assert [(each["id"], each["error"]) for each in answers(output)] == [(number, None) for number in range(12)]


def served_rows(server: Any, run_script: RunScript, folder: Path, count: int) -> tuple[Path, bytes]:
    """Return a file of `count` rows, and the server's output for it."""
    source, output = write_rows(folder / "in.jsonl", count), folder / "url.jsonl"
    run_script(SCRIPT, "--input", source, "--output", output, "--url", server.url, *GREEDY, status=1)
    return source, output.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_with_a_new_server_writes_the_lines_of_a_run_with_a_running_server(
    server: Any, tiny_checkpoint: Path, tuned_checkpoint: Path, run_script: RunScript, tmp_path: Path
) -> None:
    """The running server's checkpoint has the template; the new server gets it with --template_path."""
    source, served = served_rows(server, run_script, tmp_path, 150)
    template = REPOSITORY / "finetune/templates/alpaca.jinja"
    computed, options = tmp_path / "own.jsonl", ("--model", tiny_checkpoint, "--template_path", template, *GREEDY)
    done = run_script(SCRIPT, "--input", source, "--output", computed, *options, status=1, timeout=500)
    named = str(tuned_checkpoint).encode()  # in the error of a row with an unknown model
    assert computed.read_bytes().replace(str(tiny_checkpoint).encode(), named) == served
    assert done.stdout.startswith(f"{computed}: 149 rows, 73 failed ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_run_with_a_new_server_leaves_no_process_and_is_resumed(
    server: Any, tuned_checkpoint: Path, run_script: RunScript, tmp_path: Path
) -> None:
    source, served = served_rows(server, run_script, tmp_path, 2000)
    computed, options = tmp_path / "own.jsonl", ("--model", tuned_checkpoint, *GREEDY)
    run = BatchProcess(source, computed, *options, "--", "--max-num-seqs", 16)
    assert run.stop_after(100, signal.SIGKILL)[0] == -signal.SIGKILL
    kept = run.partial.read_bytes()
    before = run.lines()
    assert 100 <= before < 2000
    for _ in range(100):
        if not run.process_ids():
            break
        time.sleep(0.1)
    assert run.process_ids() == []
    done = run_script(SCRIPT, "--input", source, "--output", computed, *options, status=1, timeout=500)
    assert computed.read_bytes().startswith(kept)
    assert computed.read_bytes() == served
    failed = sum(bool(json.loads(line)["error"]) for line in served.splitlines() if line.strip())
    assert f"1999 rows ({before} from an earlier run), {failed} failed" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_at_random_moments_give_the_same_file(server: Any, run_script: RunScript, tmp_path: Path) -> None:
    source, whole, killed = write_rows(tmp_path / "in.jsonl", 1500), tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    run_script(SCRIPT, "--input", source, "--output", whole, "--url", server.url, *GREEDY, status=1)
    draw = random.Random(3)
    for _ in range(20):
        run = BatchProcess(source, killed, "--url", server.url, *GREEDY)
        time.sleep(draw.uniform(0.1, 1.5))
        run.process.kill()
        run.process.communicate()
        if killed.exists():
            killed.rename(run.partial)  # the run had finished before the kill
            break
        content = run.partial.read_bytes() if run.partial.exists() else b""
        assert whole.read_bytes().startswith(content)
    run_script(SCRIPT, "--input", source, "--output", killed, "--url", server.url, "--overwrite", *GREEDY, status=1)
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_with_a_new_server_exits_cleanly_on_signals(
    tuned_checkpoint: Path, run_script: RunScript, tmp_path: Path
) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", 3000, failing=False), tmp_path / "out.jsonl"
    for number in (signal.SIGINT, signal.SIGTERM):
        before = len(output.with_name("out.jsonl.partial").read_bytes()) if number == signal.SIGTERM else 0
        run = BatchProcess(source, output, "--model", tuned_checkpoint, *GREEDY)
        status, stderr = run.stop_after(run.lines() + 50, number)
        assert status == 128 + number
        assert RESUMABLE.search(stderr)
        assert "Traceback" not in stderr
        assert run.process_ids() == []
        assert len(run.partial.read_bytes()) > before
    done = run_script(SCRIPT, "--input", source, "--output", output, "--model", tuned_checkpoint, *GREEDY, timeout=500)
    assert "3000 rows (" in done.stdout
    assert [row["id"] for row in answers(output)] == list(range(3000))
