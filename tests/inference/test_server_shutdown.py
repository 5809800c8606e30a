"""Signals to real servers: running requests are finished, and no process remains."""

import http.client
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from guarded_server import Caller, check_end, gone_within, signal_during_responses, wait_until
from server_guard.process_supervisor import CLEAN_UP_SECONDS, ENGINE_ENDED


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_starting_server_ends_at_once_on_a_signal(start_server: Any, tiny_checkpoint: Path, number: int) -> None:
    """The signal comes while the engine's process imports vLLM.

    Without the supervisor, this process would survive or delay the exit.
    """
    server = start_server(tiny_checkpoint, wait=False)
    while len(server.process_ids()) < 4:  # launcher, server, resource tracker, engine
        assert server.process.poll() is None, server.log.read_text()
        time.sleep(0.1)
    time.sleep(1)
    server.process.send_signal(number)
    assert server.process.wait(5) == (-number if number == signal.SIGKILL else 128 + number)
    gone_within(server, 3)


@pytest.mark.slow
def test_several_api_processes_finish_running_requests(start_server: Any, tuned_checkpoint: Path) -> None:
    """SIGINT to the whole process group, as Ctrl-C in a terminal sends it."""
    server = start_server(tuned_checkpoint, "--api-server-count", 2)
    seconds, refused = signal_during_responses(server, signal.SIGINT, group=True)
    check_end(server, seconds, refused)


def kill_until_ended(pid: int) -> None:
    """Kill a process while its parent is suspended, and wait until it is a zombie.

    A killed process closes its pipes before it has an exit code. A parent that is woken in between, as vLLM's is on a
    busy machine, reports the exit code None.
    """
    process = psutil.Process(pid)
    parent = process.parent()
    assert parent
    parent.suspend()
    process.kill()
    wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
    parent.resume()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "title", "line"),
    [
        ("--api-server-count", b"VLLM::APIServer_1", r"error: Process ApiServer_1 \(PID: \d+\) died with exit code -9"),
        ("--tensor-parallel-size", b"VLLM::Worker_TP1", ENGINE_ENDED),
    ],
)
def test_killed_api_process_or_worker_ends_the_launcher_with_status_1(
    start_server: Any, tuned_checkpoint: Path, option: str, title: bytes, line: str
) -> None:
    server = start_server(tuned_checkpoint, option, 2)
    named = [pid for pid in server.process_ids() if title in Path(f"/proc/{pid}/cmdline").read_bytes()]
    (oldest,) = [pid for pid in named if psutil.Process(pid).ppid() not in named]  # the others are its children
    kill_until_ended(oldest)
    assert server.process.wait(60) == 1
    assert re.search(f"^{line}$", server.log.read_text(), re.MULTILINE)
    gone_within(server, 5)


@pytest.mark.slow
def test_killed_launcher_leaves_no_process_and_no_shared_memory(start_server: Any, tuned_checkpoint: Path) -> None:
    server = start_server(tuned_checkpoint, "--api-server-count", 2)
    assert len(server.process_ids()) >= 6  # launcher, server, tracker, engine, two for HTTP, and workers
    shared = {
        Path(line.split()[-1])
        for pid in server.process_ids()
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
        if "/dev/shm/" in line and not line.endswith("(deleted)")
    }
    assert shared
    server.process.kill()
    gone_within(server, 3)
    assert not [path for path in shared if path.exists()]


@pytest.mark.slow
def test_requests_beyond_the_shutdown_timeout_are_aborted(start_server: Any, tuned_checkpoint: Path) -> None:
    """An answer gets 503, a stream is cut, and a client that never completes its body does not delay the exit."""
    server = start_server(tuned_checkpoint, "--shutdown-timeout", 1)
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as idle, ThreadPoolExecutor(2) as pool:
        idle.sendall(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        assert Caller(port).complete(1)[0] == 200
        plain = pool.submit(Caller(port).complete, 480, use_beam_search=True, n=2)
        streamed = pool.submit(Caller(port).stream, 480, n=16, temperature=1)
        wait_until(lambda: server.metric_sum("num_requests_running") == 16)
        began = time.monotonic()
        server.process.terminate()
        status, headers, answer = plain.result()
        assert (status, headers["retry-after"]) == (503, "30")
        assert answer["error"]["message"] == "the server is shutting down; try again in 30 s"
        with pytest.raises(http.client.IncompleteRead):
            streamed.result()
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 2 + CLEAN_UP_SECONDS + 30  # timeout, forced exit, clean-up
