"""The server that batch.py starts for a run: launch_vllm.py on a Unix socket."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from server_guard.process_supervisor import kill_others, supervisor_pid

LAUNCHER = Path(__file__).resolve().parent.parent / "launch_vllm.py"
# Limits that no run reaches, since only this run can use the socket; no log of requests.
OPTIONS = ("--max-num-queued-reqs", str(10**9), "--max-body-mib", "4096", "--disable-uvicorn-access-log",
           "--uvicorn-log-level", "warning")  # fmt: skip
STOP_SECONDS = 5  # longest wait for the server's end; after that the supervisor kills it


@contextmanager
def started_server(model: str, template_path: str, options: Sequence[str]) -> Iterator[str]:
    """Start a server, yield the path of its socket once the server answers, and stop the server.

    options: further options of launch_vllm.py. If the server does not start, the server prints the error, and this
    function raises SystemExit with the server's exit status.
    """
    template = ["--template_path", template_path] if template_path else []
    environment = {"VLLM_LOGGING_LEVEL": "WARNING"} | os.environ
    environment.pop("VLLM_API_KEY", None)
    with TemporaryDirectory(prefix="knowlm-") as folder:
        path = f"{folder}/http"
        command = [sys.executable, str(LAUNCHER), "--model", model, *template, *OPTIONS, *options, "--uds", path]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment)
        try:
            while not is_healthy(path):
                if (status := process.poll()) is not None:
                    raise SystemExit(status or 2)
                time.sleep(0.2)
            yield path
        except BaseException:
            if supervisor_pid():
                kill_others()  # before the error is printed, so that the server prints nothing after it
            else:
                process.terminate()
            raise
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)


def is_healthy(path: str) -> bool:
    """Return whether a server answers /health on a socket file."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(5)
        peer.connect(path)
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: batch\r\nConnection: close\r\n\r\n")
        return peer.recv(12) == b"HTTP/1.1 200"
    return False
