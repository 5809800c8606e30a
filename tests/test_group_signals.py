"""SIGTERM and Ctrl-C to a whole process group, as systemd, `timeout`, Slurm and terminals send them.

A command prints at most one line, exits with status 143 or 130, leaves no process running, and keeps files only if the
same command resumes from them. The tests of the trainers are in test_train.py and test_finetune.py, those of clean.py
in test_executors.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import QUANTISED, REPOSITORY, free_port, needs_bitsandbytes
from hub_server import Fault, Hub, serving
from partial_folders.resume_journal import JOURNAL

STATUS: dict[int, int] = {signal.SIGTERM: 143, signal.SIGINT: 130}


def processes_of(session: int) -> list[str]:
    """Return the command lines of the running processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def text_of(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def signalled(
    number: int, log: Path, ready: Callable[[str], bool], *command: object, **environment: str
) -> tuple[int, str]:
    """Run a command, send its group the signal when `ready` accepts its output; return status and later output.

    Fails if the command runs for another minute, or if a process of its session remains.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output, cwd=REPOSITORY, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment,
        )  # fmt: skip
    try:
        while not ready(before := log.read_text()) or (before and not before.endswith("\n")):  # incomplete line
            assert process.poll() is None, before
            time.sleep(0.02)
        os.killpg(process.pid, number)
        status = process.wait(60)
        until = time.monotonic() + 5
        while (left := processes_of(process.pid)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not left
        return status, log.read_text()[len(before) :]
    finally:
        for other in psutil.process_iter():
            try:
                if os.getsid(other.pid) == process.pid:
                    other.kill()
            except (psutil.Error, ProcessLookupError):
                continue


@pytest.mark.integration
@pytest.mark.parametrize("number", STATUS)
def test_interrupted_download_is_one_line_and_keeps_its_files(tmp_path: Path, number: int) -> None:
    hub = Hub({"some/thing": {"config.json": b"{}", "model.safetensors": bytes(1 << 22)}})
    hub.faults["model.safetensors"].append(Fault(cut=1 << 20, hang=True))
    folder = tmp_path / "got.partial"
    with serving(hub, "hub") as url:
        status, printed = signalled(
            number, tmp_path / "log", lambda _: "{}" in text_of(folder / "config.json"),
            sys.executable, "tools/download.py", "--specify", "--repo_name", "some/thing",
            "--download_path", tmp_path / "got", "--endpoint", url,
            HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "home"), NO_PROXY="127.0.0.1",
        )  # fmt: skip
        hub.end_hanging.set()
    line = printed.removeprefix("some/thing at 0123456789, 2 files, 4.19 MB: 2 files, 4.19 MB to download\n")
    assert (status, line.count("\n")) == (STATUS[number], 1)
    assert line.startswith("interrupted: ") and line.endswith(" have arrived; the same command resumes\n")
    assert (folder / JOURNAL).is_file() and not (tmp_path / "got").exists()


@pytest.mark.slow
@needs_bitsandbytes
@pytest.mark.parametrize("number", STATUS)
def test_interrupted_quantisation_is_one_line_and_leaves_nothing(
    tmp_path: Path, tiny_checkpoint: Path, number: int
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{i} is a number"}) + "\n" for i in range(400)))
    status, printed = signalled(
        number, tmp_path / "log", lambda _: (tmp_path / "out.partial").exists(), sys.executable, "tools/quantize.py",
        "--model_path", tiny_checkpoint, "--output_dir", tmp_path / "out", "--method", "nf4", "--eval_path", rows,
        PYTHONPATH=str(QUANTISED),
    )  # fmt: skip
    assert (status, printed) == (STATUS[number], "interrupted; nothing was kept, the same command starts over\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "rows.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("number", STATUS)
def test_interrupted_web_demo_is_one_line(tmp_path: Path, tiny_checkpoint: Path, number: int) -> None:
    status, printed = signalled(
        number, tmp_path / "log", lambda text: "Open http" in text, sys.executable, "examples/generate_lora_web.py",
        "--base_model", tiny_checkpoint, "--template_path", "finetune/templates/alpaca.jinja",
        "--server_port", free_port(),
    )  # fmt: skip
    assert (status, printed) == (STATUS[number], "interrupted\n")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", STATUS)
def test_signal_ends_a_starting_server_with_two_workers(tmp_path: Path, tiny_checkpoint: Path, number: int) -> None:
    """test_server_shutdown.py sends the signals to servers that are serving."""
    status, printed = signalled(
        number, tmp_path / "log", lambda text: "EngineCore pid=" in text, sys.executable, "inference/launch_vllm.py",
        "--model", tiny_checkpoint, "--tensor-parallel-size", 2, "--port", free_port(),
    )  # fmt: skip
    assert status == STATUS[number]
    assert "Traceback" not in printed and "resource_tracker" not in printed
    assert ("\ninterrupted\n" in printed) == (number == signal.SIGINT)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", STATUS)
def test_interrupted_quick_start_says_how_to_continue(tmp_path: Path, extensions: Path, number: int) -> None:
    """The first signal comes during a Python command, the second in training on two ranks, which ends its step."""
    settings = {"SHORT": "1", "OUT": str(tmp_path / "out"), "PORT": str(free_port()), "VENV": sys.prefix}
    settings["TORCH_EXTENSIONS_DIR"] = str(extensions)
    moments: list[Callable[[str], bool]] = [
        lambda _: (tmp_path / "out/world.partial").exists(),
        lambda printed: "\n    step 1/" in printed,
    ]
    for ready in moments:
        status, printed = signalled(number, tmp_path / "log", ready, "bash", "examples/quickstart.sh", **settings)
        assert status == STATUS[number], printed
        assert printed.endswith("quickstart: interrupted; run the same command again to continue from here\n")
        assert "Traceback" not in printed
    assert "stopped by SIGTERM after step" in printed and list((tmp_path / "out/pretrained").glob("checkpoint-*"))
