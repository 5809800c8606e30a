"""A real server for the tests of this folder: the launcher, vLLM's engine on the CPU, a tiny tuned checkpoint."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port

START_SECONDS = 570  # about 25 s on two idle cores; test machines are seldom idle
STOP_SECONDS = 15


@dataclass
class Server:
    """A running launcher in a session of its own, which contains all processes of the server."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def post(self, path: str, body: Any, content_type: str = "application/json") -> tuple[int, dict[str, Any]]:
        """Send a body, as JSON unless it is bytes; return the status and the parsed JSON response."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": content_type})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def generate(self, instruction: str, input: str = "", **parameters: Any) -> dict[str, Any]:
        """Return the answer of /generate; asserts that the request succeeds."""
        body = {"instruction": instruction, "input": input, "parameters": parameters}
        status, answer = self.post("/generate", body)
        assert (status, answer["error"]) == (200, None), answer
        return answer

    def metric_sum(self, *names: str, key: str = "") -> float:
        """Return the sum of vLLM metrics, named without the prefix `vllm:` (they exist after the first answer)."""
        request = urllib.request.Request(f"{self.url}/metrics", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            lines = answer.read().decode().splitlines()
        found = {name: [line for line in lines if line.startswith(f"vllm:{name}{{")] for name in names}
        assert all(found.values()), names
        return sum(float(line.split()[-1]) for each in found.values() for line in each)

    def process_ids(self) -> list[int]:
        """Return the ids of the session's processes, without zombies."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return found

    def stop(self) -> float:
        """Send SIGTERM; return the seconds until the launcher has ended. Kills the session if it does not end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        return time.monotonic() - began


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[StartServer]:
    """Return start(folder, option, …), which starts a server and waits until it answers /health.

    wait=False: do not wait. All servers are stopped at the end of the session.
    """
    servers: list[Server] = []

    def start(model: Path, *options: object, wait: bool = True) -> Server:
        port, log = free_port(), tmp_path_factory.mktemp("server") / "server.log"
        command = [sys.executable, repository / "inference/launch_vllm.py", "--model", model, "--port", port, *options]
        with log.open("wb") as out:
            process = subprocess.Popen(
                list(map(str, command)), stdout=out, stderr=out, start_new_session=True,
                env={"OMP_NUM_THREADS": "1"} | os.environ,
            )  # fmt: skip
        server = Server(process, f"http://127.0.0.1:{port}", log)
        servers.append(server)
        if not wait:
            return server
        for _ in range(START_SECONDS * 5):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.url}/health", timeout=5):
                return server
            if process.poll() is not None:
                break
            time.sleep(0.2)
        pytest.fail(f"the server did not start (exit status {process.poll()})\n{log.read_text()[-4000:]}")

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def tuned_checkpoint(repository: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny checkpoint with the alpaca template, and with an extraction.json for ner and ee in Chinese.

    The `text_characters` of this extraction.json for ner is 70. The style for ee is schema_json.
    """
    folder = tmp_path_factory.mktemp("served") / "tuned"
    shutil.copytree(tiny_checkpoint, folder)
    shutil.copyfile(repository / "finetune/templates/alpaca.jinja", folder / "chat_template.jinja")
    default = json.loads((repository / "inference/extraction/extraction.json").read_text(encoding="utf-8"))
    entry = default["tasks"]["ner"]["zh"] | {"text_characters": 70}
    events = {"instruction": "请抽取事件，按照JSON字符串的格式回答。", "style": "schema_json"}
    tasks = {"ner": {"zh": entry}, "ee": {"zh": events}}
    (folder / "extraction.json").write_text(json.dumps({"tasks": tasks}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def server(start_server: StartServer, tuned_checkpoint: Path) -> Server:
    return start_server(tuned_checkpoint)
