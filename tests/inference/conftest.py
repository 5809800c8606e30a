"""One real server for the whole folder: the launcher, vLLM's engine on the CPU, a tiny tuned checkpoint."""

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
    """A running launcher; it leads a session of its own, so its processes can be told from all others."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def post(self, path: str, body: Any, content_type: str = "application/json") -> tuple[int, dict[str, Any]]:
        """Status and answer to a body, which is sent as JSON unless it is bytes already."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": content_type})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def generate(self, instruction: str, input: str = "", **parameters: Any) -> dict[str, Any]:
        """The answer of /generate, which must be a success."""
        body = {"instruction": instruction, "input": input, "parameters": parameters}
        status, answer = self.post("/generate", body)
        assert (status, answer["error"]) == (200, None), answer
        return answer

    def counted(self, *names: str, key: str = "") -> float:
        """The sum of these numbers of vLLM's at /metrics, without their prefix (there from the first answer on)."""
        asked = urllib.request.Request(f"{self.url}/metrics", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(asked, timeout=120) as answer:
            lines = answer.read().decode().splitlines()
        found = {name: [line for line in lines if line.startswith(f"vllm:{name}{{")] for name in names}
        assert all(found.values()), names
        return sum(float(line.split()[-1]) for each in found.values() for line in each)

    def living(self) -> list[int]:
        """Process ids of the session that are not dead (zombies wait for their parent and do nothing)."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return found

    def stop(self) -> float:
        """SIGTERM; seconds until the launcher has ended. Kills what is left of the session."""
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
    """start_server(folder, option, …): a server that answers /health; all are ended with the session.

    wait=False: it is only just starting.
    """
    started: list[Server] = []

    def start(model: Path, *options: object, wait: bool = True) -> Server:
        port, log = free_port(), tmp_path_factory.mktemp("server") / "server.log"
        command = [sys.executable, repository / "inference/launch_vllm.py", "--model", model, "--port", port, *options]
        with log.open("wb") as out:
            process = subprocess.Popen(
                list(map(str, command)), stdout=out, stderr=out, start_new_session=True,
                env={"OMP_NUM_THREADS": "1"} | os.environ,
            )  # fmt: skip
        server = Server(process, f"http://127.0.0.1:{port}", log)
        started.append(server)
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
    for server in started:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def tuned_checkpoint(repository: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as tuning leaves it: with the alpaca template, and Chinese texts of 70 characters."""
    folder = tmp_path_factory.mktemp("served") / "tuned"
    shutil.copytree(tiny_checkpoint, folder)
    shutil.copyfile(repository / "finetune/templates/alpaca.jinja", folder / "chat_template.jinja")
    asked = json.loads((repository / "inference/extraction/extraction.json").read_text(encoding="utf-8"))["tasks"][
        "ner"
    ]["zh"]
    told = {"tasks": {"ner": {"zh": asked | {"text_characters": 70}}}}
    (folder / "extraction.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def server(start_server: StartServer, tuned_checkpoint: Path) -> Server:
    return start_server(tuned_checkpoint)
