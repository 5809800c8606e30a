"""A client of a server with keys and limits, and checks of the server's shutdown; used by several test files."""

import http.client
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from server_guard.process_supervisor import CLEAN_UP_SECONDS

KEY_PREFIX = "api-key-of-test-"
KEYS = [f"{KEY_PREFIX}{number}" for number in range(250)]
HOSTS = count(2)


@dataclass
class Caller:
    """A client, by default with its own key and address; every address 127.x.x.x is this machine."""

    port: int
    key: str | None = None
    host: str = field(default_factory=lambda: f"127.0.0.{next(HOSTS)}")  # its last number selects the key

    def __post_init__(self) -> None:
        if self.key is None:
            self.key = KEYS[int(self.host.split(".")[-1])]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120, source_address=(self.host, 0))

    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def request(self, path: str, body: Any = None, method: str = "", **headers: str) -> tuple[int, dict[str, str], Any]:
        """Return status, headers with lower-case names, and the answer, parsed if it is JSON."""
        connection = self.connect()
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method or ("GET" if body is None else "POST"), path, data, self.headers() | headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, named, json.loads(text) if text.startswith(b"{") else text

    def complete(self, tokens: int, **more: Any) -> tuple[int, dict[str, str], Any]:
        return self.request("/v1/completions", completion(tokens, **more))

    def stream(self, tokens: int, disconnect_after: int | None = None, **more: Any) -> bytes:
        """Return a streamed answer; disconnect_after: number of tokens after which the client disconnects.

        vLLM puts the tokens that a client has not read yet into one event, so events are not tokens.
        """
        connection = self.connect()
        usage = {"include_usage": True, "continuous_usage_stats": True}
        body = completion(tokens, stream=True, stream_options=usage, **more)
        connection.request("POST", "/v1/completions", json.dumps(body), self.headers())
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        if disconnect_after is None:
            return answer.read()
        text, received = b"", 0
        while received < disconnect_after:
            line = answer.readline()
            assert line, f"the stream ended after {received} tokens"
            text += line
            if line.startswith(b"data: {"):
                received = json.loads(line.removeprefix(b"data: "))["usage"]["completion_tokens"]
        connection.close()
        answer.close()
        return text


def completion(tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": "a", "max_tokens": tokens, "ignore_eos": True, "temperature": 0} | more


def wait_until(condition: Callable[[], bool], pause: float = 0.02, within: float = 60) -> None:
    """Wait until a condition holds; asserts that it holds in time. pause, within: seconds."""
    until = time.monotonic() + within
    while not condition():
        assert time.monotonic() < until
        time.sleep(pause)


def signal_during_responses(
    server: Any, number: int, group: bool = False
) -> tuple[float, list[tuple[int, dict[str, str], Any]]]:
    """Signal a server during responses of all kinds; assert that the responses that had begun are complete.

    Returns (seconds from the last response to the exit, responses to the requests after the signal).
    """
    port = int(server.url.rpartition(":")[2])
    everyone = [Caller(port) for _ in range(4)]
    late = [Caller(port) for _ in range(3)]
    beams = {"use_beam_search": True, "n": 4}
    generate = {"instruction": "x", "parameters": {"max_tokens": 400, "ignore_eos": True}}
    assert late[1].complete(1)[0] == 200
    finished = partial(server.metric_sum, "request_success_total", key=KEYS[0])
    begun = partial(server.metric_sum, "num_requests_running", "request_success_total", key=KEYS[0])
    before = finished()
    with ThreadPoolExecutor(4) as pool:
        plain = pool.submit(everyone[1].complete, 400)
        streamed = pool.submit(everyone[2].stream, 400)
        enveloped = pool.submit(everyone[3].request, "/generate", generate)
        wait_until(lambda: begun() - before >= 3)
        beam = pool.submit(everyone[0].complete, 450, **beams)
        wait_until(lambda: finished() - before > 3)  # each beam of each step is a request
        (os.killpg if group else os.kill)(server.process.pid, number)
        # Each request can reach another API process.
        wait_until(lambda: all(late[0].request("/health")[0] == 503 for _ in range(8)))
        refused = [caller.complete(2) for caller in late[:2]] + [late[2].request("/generate", {"instruction": "x"})]
        assert plain.result()[2]["usage"]["completion_tokens"] == 400
        assert streamed.result().endswith(b"data: [DONE]\n\n")
        assert [choice["finish_reason"] for choice in beam.result()[2]["choices"]] == ["length"] * 4
        assert enveloped.result()[2]["num_output_tokens_cf"] == 400
    last = time.monotonic()
    server.process.wait(60)
    return time.monotonic() - last, refused


def check_end(server: Any, seconds: float, refused: list[tuple[int, dict[str, str], Any]]) -> None:
    assert [(status, headers["retry-after"]) for status, headers, _ in refused] == [(503, "30")] * 3
    assert refused[2][2]["error"] == "the server is shutting down; try again in 30 s"
    assert server.process.returncode == 0
    print(f"ended {seconds:.2f} s after the last answer")
    # Far below --shutdown-timeout. Python tears down the worker, the engine and the API process in turn.
    assert seconds < CLEAN_UP_SECONDS + 30
    gone_within(server, 1)


def gone_within(server: Any, seconds: float) -> None:
    """Assert that no process of the server remains after `seconds`."""
    until = time.monotonic() + seconds
    while server.process_ids() and time.monotonic() < until:
        time.sleep(0.05)
    assert server.process_ids() == []
