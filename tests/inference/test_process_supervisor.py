"""process_supervisor.py with real processes, without vLLM: no process outlives the launcher, signals arrive once."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from server_guard import graceful_shutdown
from server_guard.process_supervisor import (
    ALL_ANSWERED,
    CLEAN_UP_SECONDS,
    ENGINE_ENDED,
    MARK,
    SAME_SIGNAL_SECONDS,
    marked_processes,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no supervisor elsewhere")

# A server with a child and a grandchild that are as hard to find as vLLM's: each leads a session and renames itself.
SERVER = """
import os, signal, subprocess, sys, time
from server_guard.process_supervisor import ALL_ANSWERED, MARK, SERVING, notify_supervisor, supervise

supervise(ends_by_itself="finishes" in sys.argv)
HIDDEN = '''
import setproctitle, subprocess, sys, time
if sys.argv[1:]:
    subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
setproctitle.setproctitle("VLLM::EngineCore")
print("hidden", flush=True)
time.sleep(300)
'''

def on_signal(number, frame):
    print("signal", number, flush=True)
    if "leaves" in sys.argv:
        notify_supervisor(ALL_ANSWERED)

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, on_signal)
print(os.getpid(), os.environ[MARK], flush=True)
subprocess.Popen([sys.executable, "-c", HIDDEN, HIDDEN], start_new_session=True)
if "serves" in sys.argv:
    notify_supervisor(SERVING)
if "fails" in sys.argv:
    sys.exit(3)
if {"stops", "finishes"} & set(sys.argv):
    sys.exit(0)
while True:
    time.sleep(300)
"""


class Launcher:
    """A running launcher of SERVER.

    `line` is in the environment of the server's processes, and `trial` in the environment of all processes, launcher
    and watchdog included.
    """

    def __init__(self, script: Path, inference: Path, *words: str) -> None:
        trial = secrets.token_hex(8)
        self.process = subprocess.Popen(
            [sys.executable, str(script), *words],
            env=os.environ | {"PYTHONPATH": str(inference), "TRIAL": trial},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout
        server, mark = self.process.stdout.readline().split()
        self.server, self.line, self.trial = int(server), f"{MARK}={mark}".encode(), f"TRIAL={trial}".encode()
        if not {"fails", "stops", "finishes"} & set(words):
            assert [self.process.stdout.readline() for _ in range(2)] == ["hidden\n"] * 2

    def ended(self, within: float) -> tuple[int, str]:
        """Wait for the launcher; return its exit status and remaining output.

        within: seconds. Asserts that no process of the server and, up to 10 s later, no watchdog remains.
        """
        written, _ = self.process.communicate(timeout=within)
        for _ in range(500):
            if not marked_processes(self.trial):
                break
            time.sleep(0.02)
        assert marked_processes(self.line) == marked_processes(self.trial) == []
        return self.process.returncode, written


@pytest.fixture
def launch(tmp_path: Path, repository: Path) -> Iterator[Callable[..., Launcher]]:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    launched: list[Launcher] = []

    def start(*words: str) -> Launcher:
        launched.append(Launcher(script, repository / "inference", *words))
        return launched[-1]

    yield start
    for launcher in launched:
        launcher.process.kill()


def test_killed_launcher_leaves_no_process(launch: Any) -> None:
    launcher = launch("serves")
    assert len(marked_processes(launcher.line)) == 3
    assert len(marked_processes(launcher.trial)) == 3 + 2
    assert os.getpgid(launcher.server) != os.getpgid(launcher.process.pid)
    launcher.process.kill()
    assert launcher.ended(within=30)[0] == -signal.SIGKILL


def test_ended_server_leaves_no_process_and_passes_its_status_on(launch: Any) -> None:
    killed = launch("serves")
    os.kill(killed.server, signal.SIGKILL)
    assert killed.ended(within=30)[0] == 128 + signal.SIGKILL
    assert launch("fails").ended(within=30)[0] == 3
    assert launch("stops").ended(within=30)[0] == 0


def test_server_that_stops_while_it_serves_is_status_1(launch: Any) -> None:
    """vLLM's server exits with status 0 if its engine is killed."""
    status, written = launch("serves", "stops").ended(within=30)
    assert (status, written.splitlines()[-1]) == (1, ENGINE_ENDED)


def test_command_that_ends_by_itself_is_status_0(launch: Any) -> None:
    """batch.py starts a server, and ends after the last row."""
    status, written = launch("serves", "finishes").ended(within=30)
    assert (status, ENGINE_ENDED in written) == (0, False)


@pytest.mark.parametrize(("number", "line"), [(signal.SIGTERM, ""), (signal.SIGINT, "\ninterrupted\n")])
def test_signal_before_serving_ends_the_server_at_once(launch: Any, number: signal.Signals, line: str) -> None:
    launcher = launch()
    launcher.process.send_signal(number)
    assert launcher.ended(within=30) == (128 + number, line)


def test_first_signal_is_passed_on_and_second_one_kills(launch: Any) -> None:
    """A signal to the process group reaches the server through the launcher only."""
    launcher = launch("serves")
    os.killpg(launcher.process.pid, signal.SIGINT)
    launcher.process.send_signal(signal.SIGINT)
    time.sleep(SAME_SIGNAL_SECONDS + 0.2)
    assert launcher.process.poll() is None
    launcher.process.terminate()
    assert launcher.ended(within=30) == (128 + signal.SIGTERM, f"signal {signal.SIGINT.value}\n")


@pytest.mark.integration
def test_server_gets_time_to_clean_up_after_its_last_response(launch: Any) -> None:
    launcher = launch("serves", "leaves")
    began = time.monotonic()
    launcher.process.terminate()
    assert launcher.ended(within=CLEAN_UP_SECONDS + 30) == (0, f"signal {signal.SIGTERM.value}\n")
    assert time.monotonic() - began >= CLEAN_UP_SECONDS


def test_server_reports_its_last_response_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer of the forced exit may expire while a server that has already reported is exiting."""
    sent: list[int] = []
    monkeypatch.setattr(graceful_shutdown, "notify_supervisor", sent.append)
    shutdown = graceful_shutdown.GracefulShutdown()
    shutdown.server = SimpleNamespace()
    shutdown.report_all_answered()
    shutdown.force_exit()
    assert sent == [ALL_ANSWERED]
