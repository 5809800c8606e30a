"""A real server with keys and limits: admitted and refused requests, log, shutdown."""

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from server_guard.process_supervisor import CLEAN_UP_SECONDS

KEYS = [f"kivu-{number}" for number in range(250)]
QUEUE = 8
OPTIONS: list[object] = [
    "--api-key", *KEYS, "--limit-requests", "5/3 seconds", "--limit-tokens", "100/hour", "--allowed-origins",
    '["http://page.example"]', "--max-num-queued-reqs", QUEUE,
]  # fmt: skip
FIFTY_MB = 50_000_000
HOSTS = count(2)


@dataclass
class Caller:
    """A client, by default with its own key and address; every address 127.x.x.x is this machine."""

    port: int
    key: str | None = None
    host: str = field(default_factory=lambda: f"127.0.0.{next(HOSTS)}")  # one for each key

    def __post_init__(self) -> None:
        if self.key is None:
            self.key = KEYS[int(self.host.split(".")[-1])]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120, source_address=(self.host, 0))

    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def ask(self, path: str, body: Any = None, method: str = "", **headers: str) -> tuple[int, dict[str, str], Any]:
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
        return self.ask("/v1/completions", completion(tokens, **more))

    def stream(self, tokens: int, read: int | None = None, **more: Any) -> bytes:
        """Return a streamed answer; read: number of events after which the client disconnects."""
        connection = self.connect()
        body = completion(tokens, stream=True, **more)
        connection.request("POST", "/v1/completions", json.dumps(body), self.headers())
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        if read is None:
            return answer.read()
        text = b"".join(answer.readline() for _ in range(2 * read))
        connection.close()
        answer.close()
        return text


def completion(tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": "a", "max_tokens": tokens, "ignore_eos": True, "temperature": 0} | more


def eventually(is_so: Callable[[], bool], pause: float = 0.02, within: float = 60) -> None:
    """Wait until a condition holds; asserts that it holds in time. pause, within: seconds."""
    until = time.monotonic() + within
    while not is_so():
        assert time.monotonic() < until
        time.sleep(pause)


@pytest.fixture(scope="module")
def guarded(start_server: Any, tuned_checkpoint: Path) -> Any:
    return start_server(tuned_checkpoint, *OPTIONS)


@pytest.fixture
def port(guarded: Any) -> int:
    return int(guarded.url.rpartition(":")[2])


# --- access -----------------------------------------------------------------------------------------------------------


def test_only_health_answers_without_a_key(port: int) -> None:
    nobody = Caller(port, key="")
    status, headers, answer = nobody.ask("/generate", {"instruction": "x"})
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    reason = "no valid key; send one in the header Authorization: Bearer KEY"
    assert answer == {"generated_text": "", "num_output_tokens_cf": 0, "error": reason}
    assert nobody.ask("/extract", {})[2] == {
        "complete": False,
        "windows": 0,
        "num_output_tokens_cf": 0,
        "error": reason,
    }
    _, _, answer = nobody.ask("/v1/completions", {"prompt": "x"})
    assert answer == {"error": {"message": reason, "type": "Unauthorized", "param": None, "code": 401}}
    assert nobody.ask("/health")[0] == 200
    assert [nobody.ask(path)[0] for path in ("/metrics", "/docs")] == [401, 401]
    for key in KEYS[:2]:
        assert Caller(port, key).ask("/generate", {"instruction": "x", "parameters": {"max_tokens": 2}})[0] == 200


def test_allowed_origin_can_read_refusals(port: int) -> None:
    page, evil = ({"Origin": f"http://{name}.example"} for name in ("page", "evil"))
    nobody = Caller(port, key="")
    status, headers, _ = nobody.ask("/generate", {}, **page)
    assert (status, headers["access-control-allow-origin"]) == (401, "http://page.example")
    assert "access-control-allow-origin" not in nobody.ask("/generate", {}, **evil)[1]
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    status, headers, _ = nobody.ask("/generate", method="OPTIONS", **page, **preflight)
    assert (status, headers["access-control-allow-headers"]) == (200, "authorization")
    assert nobody.ask("/generate", method="OPTIONS", **evil, **preflight)[0] == 400


# --- size of requests -------------------------------------------------------------------------------------------------


def upload(caller: Caller, head: str, chunked: bool = False, waits: bool = False) -> tuple[bytes, float]:
    """Send 50 MB; return the response and the seconds until the server closed the connection.

    waits: send `Expect: 100-continue`, and the body only after `100 Continue`.
    """
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", caller.port), timeout=20, source_address=(caller.host, 0)) as peer:
        lines = [head, "Host: x", f"Authorization: Bearer {caller.key}", "Content-Type: application/json"]
        lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {FIFTY_MB}")
        peer.sendall("\r\n".join([*lines, *(["Expect: 100-continue"] if waits else []), "", ""]).encode())
        answer = peer.recv(2**16) if waits else b""
        if not waits or answer == b"HTTP/1.1 100 Continue\r\n\r\n":
            for _ in range(FIFTY_MB // 10**6):
                peer.sendall((b"%x\r\n" % 10**6 if chunked else b"") + bytes(10**6) + (b"\r\n" if chunked else b""))
            peer.sendall(b"0\r\n\r\n" if chunked else b"")
            answer = b""
        while more := peer.recv(2**16):
            answer += more
        return answer, time.monotonic() - began


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize(("chunked", "waits"), [(False, False), (False, True), (True, False), (True, True)])
def test_body_of_fifty_megabytes_is_refused(guarded: Any, port: int, path: str, chunked: bool, waits: bool) -> None:
    """Clients that read only after sending the whole body get the response, too; the server does not store the body."""
    before = resident(guarded)
    answer, seconds = upload(Caller(port), f"POST {path} HTTP/1.1", chunked, waits)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the body is longer than the 8 MiB of --max-body-mib; send less at once" in answer
    assert b"\r\nconnection: close\r\n" in answer
    assert (b"generated_text" in answer) == (path == "/generate")
    assert seconds < 10
    assert resident(guarded) - before < 30e6


def test_endless_request_head_is_refused(guarded: Any, port: int) -> None:
    before = resident(guarded)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer, pytest.raises(OSError, match=r"reset|pipe"):
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ")
        for _ in range(100):
            peer.sendall(bytes(b"a" * 10**6))
    assert resident(guarded) - before < 30e6


def resident(server: Any) -> int:
    """Return the resident bytes of the server's processes."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in server.living()]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


# --- rate limits ------------------------------------------------------------------------------------------------------


def test_requests_are_limited_per_key_and_per_address(port: int) -> None:
    caller = Caller(port)
    assert [caller.ask("/v1/models")[0] for _ in range(6)] == [200] * 5 + [429]
    status, headers, answer = caller.ask("/generate", {"instruction": "x"})
    assert status == 429
    wait = int(headers["retry-after"])
    assert 1 <= wait <= 6
    assert answer["error"] == f"the limit of 5 requests per 3 seconds is used up; try again in {wait} s"
    same_key, same_host = Caller(port, caller.key), Caller(port, KEYS[0], caller.host)
    assert same_key.ask("/v1/models")[0] == same_host.ask("/v1/models")[0] == 429
    assert Caller(port, key="wrong", host=caller.host).ask("/v1/models")[0] == 429
    assert caller.ask("/health")[0] == caller.ask("/metrics")[0] == 200
    assert Caller(port).ask("/v1/models")[0] == 200
    time.sleep(int(caller.ask("/v1/models")[1]["retry-after"]))
    assert caller.ask("/v1/models")[0] == 200


def test_forwarded_header_does_not_change_the_address(port: int) -> None:
    """uvicorn's default trusts X-Forwarded-For from 127.0.0.1."""
    statuses = [
        Caller(port, KEYS[-number], "127.0.0.1").ask("/v1/models", **{"X-Forwarded-For": f"192.0.2.{number}"})[0]
        for number in range(1, 7)
    ]
    assert statuses == [200] * 5 + [429]


def used_up(caller: Caller) -> bool:
    status, headers, answer = caller.complete(1)
    assert (status == 429) == ("retry-after" in headers)
    assert status == 200 or answer["error"]["message"].startswith("the limit of 100 tokens per hour is used up; ")
    return status == 429


def test_tokens_are_limited_on_all_routes(port: int) -> None:
    """The limit is 100 tokens per hour: two answers of 60 tokens exceed it, and so does one templated prompt."""
    for ask in (
        lambda caller: caller.complete(60)[0],
        lambda caller: caller.stream(60)[:0] or 200,
        lambda caller: caller.complete(20, n=3, temperature=1)[0],
    ):
        caller = Caller(port)
        assert ask(caller) == 200
        assert not used_up(caller)
        assert ask(caller) == 200
        assert used_up(caller)
    for path, body in (("/generate", {"instruction": "x"}), ("/v1/responses", {"input": "x", "max_output_tokens": 30})):
        caller = Caller(port)
        assert caller.ask(path, body)[0] == 200
        assert used_up(caller)


def test_tokens_of_disconnected_clients_are_counted(guarded: Any, port: int) -> None:
    """Clients disconnect after a third of a stream, and during an unstreamed answer."""
    streams, waits = Caller(port), Caller(port)
    assert streams.stream(300, read=110).count(b"data: ") == 110
    made = guarded.counted("generation_tokens_total", key=KEYS[0])
    connection = waits.connect()
    connection.request("POST", "/v1/completions", json.dumps(completion(400)), waits.headers())
    eventually(lambda: guarded.counted("generation_tokens_total", key=KEYS[0]) > made + 150)
    connection.close()
    for caller in (streams, waits):
        eventually(partial(used_up, caller), pause=1, within=10)  # each of these requests costs a few tokens


def test_full_queue_is_answered_with_retry_after(port: int) -> None:
    """vLLM's own refusals have no Retry-After."""
    callers = [Caller(port) for _ in range(5 * QUEUE)]
    body = {"instruction": "x", "parameters": {"max_tokens": 300, "ignore_eos": True}}
    with ThreadPoolExecutor(len(callers)) as pool:
        answers = list(pool.map(lambda caller: caller.ask("/generate", body), callers))
    refused = [(headers["retry-after"], answer["error"]) for status, headers, answer in answers if status == 503]
    assert {status for status, _, _ in answers} == {200, 503}
    assert {wait for wait, _ in refused} == {"1"}
    assert all(error.startswith("The engine is currently busy") for _, error in refused)


# --- log --------------------------------------------------------------------------------------------------------------


def test_log_has_no_text_of_requests(guarded: Any, port: int) -> None:
    """Valid and invalid requests, with a marker in bodies, headers and queries."""
    marker = "Kiwetu-Marolo"
    bodies: list[Any] = [
        {"instruction": marker, "prompt": marker, "messages": [{"role": "user", "content": marker}], "input": marker},
        {"instruction": 7, "prompt": {"x": marker}, "messages": marker, "input": {"x": marker}, marker: marker},
        {"prompt": marker * 900, "messages": [{"role": marker, "content": marker * 900}], "instruction": marker * 900},
        {"prompt": marker, "max_tokens": marker, "instruction": marker, "parameters": {marker: marker}},
        {"prompt": marker, "structured_outputs": {"regex": f"[{marker}"}, "instruction": marker, "model": marker},
        f'{{"prompt": "{marker}'.encode(),
    ]
    paths = ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize",
             "/invocations", "/generate/x", "/v1/models", "/extract")  # fmt: skip
    for path in paths:
        for body in bodies:
            caller = Caller(port)
            caller.ask(f"{path}?prompt={marker}", body, **{"X-Prompt": marker})
    log = guarded.log.read_text(errors="replace")
    assert "POST /v1/chat/completions HTTP" in log
    assert marker not in log
    assert "kivu-" not in log
    assert "Chat template rejected the request: …" in log


# --- shutdown ---------------------------------------------------------------------------------------------------------


def ending(server: Any, how: int, group: bool = False) -> tuple[float, list[tuple[int, dict[str, str], Any]]]:
    """Signal a server during responses of all kinds; assert that the responses that had begun are complete.

    Returns (seconds from the last response to the exit, refusals of requests that came later).
    """
    port = int(server.url.rpartition(":")[2])
    everyone = [Caller(port) for _ in range(4)]
    late = [Caller(port) for _ in range(3)]
    beams = {"use_beam_search": True, "n": 4}
    generate = {"instruction": "x", "parameters": {"max_tokens": 300, "ignore_eos": True}}
    assert late[1].complete(1)[0] == 200
    with ThreadPoolExecutor(4) as pool:
        beam = pool.submit(everyone[0].complete, 250, **beams)
        plain = pool.submit(everyone[1].complete, 300)
        streamed = pool.submit(everyone[2].stream, 300)
        enveloped = pool.submit(everyone[3].ask, "/generate", generate)
        eventually(lambda: server.counted("num_requests_running", key=KEYS[0]) == 3)  # beam search is not counted
        (os.killpg if group else os.kill)(server.process.pid, how)
        eventually(lambda: all(late[0].ask("/health")[0] == 503 for _ in range(8)))  # each of several API processes
        refused = [caller.complete(2) for caller in late[:2]] + [late[2].ask("/generate", {"instruction": "x"})]
        assert not beam.done()
        assert plain.result()[2]["usage"]["completion_tokens"] == 300
        assert streamed.result().endswith(b"data: [DONE]\n\n")
        assert [choice["finish_reason"] for choice in beam.result()[2]["choices"]] == ["length"] * 4
        assert enveloped.result()[2]["num_output_tokens_cf"] == 300
    last = time.monotonic()
    server.process.wait(60)
    return time.monotonic() - last, refused


def check_end(server: Any, seconds: float, refused: list[tuple[int, dict[str, str], Any]]) -> None:
    assert [(status, headers["retry-after"]) for status, headers, _ in refused] == [(503, "30")] * 3
    assert refused[2][2]["error"] == "the server is shutting down; try again in 30 s"
    assert server.process.returncode == 0
    print(f"ended {seconds:.2f} s after the last answer")
    assert seconds < CLEAN_UP_SECONDS + 3  # Python tears down the worker, the engine and the API process in turn
    gone_within(server, 1)


def test_running_requests_are_finished_before_shutdown(guarded: Any) -> None:
    """SIGTERM ends the server of the fixture `guarded`, so this is its last test."""
    seconds, refused = ending(guarded, signal.SIGTERM)
    check_end(guarded, seconds, refused)


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_starting_server_ends_at_once_on_a_signal(start_server: Any, tiny_checkpoint: Path, how: int) -> None:
    """The signal comes while the engine's process imports vLLM; unsupervised, it would survive or delay the exit."""
    server = start_server(tiny_checkpoint, wait=False)
    while len(server.living()) < 4:  # launcher, server, resource tracker, engine
        assert server.process.poll() is None, server.log.read_text()
        time.sleep(0.1)
    time.sleep(1)
    server.process.send_signal(how)
    assert server.process.wait(5) == (-how if how == signal.SIGKILL else 128 + how)
    gone_within(server, 3)


def gone_within(server: Any, seconds: float) -> None:
    """Assert that no process of the server remains after `seconds`."""
    until = time.monotonic() + seconds
    while server.living() and time.monotonic() < until:
        time.sleep(0.05)
    assert server.living() == []


@pytest.mark.slow
def test_several_api_processes_finish_running_requests(start_server: Any, tuned_checkpoint: Path) -> None:
    """SIGINT to the whole process group, as Ctrl-C in a terminal sends it."""
    server = start_server(tuned_checkpoint, "--api-server-count", 2)
    seconds, refused = ending(server, signal.SIGINT, group=True)
    check_end(server, seconds, refused)


@pytest.mark.slow
def test_killed_launcher_leaves_no_process_and_no_shared_memory(start_server: Any, tuned_checkpoint: Path) -> None:
    server = start_server(tuned_checkpoint, "--api-server-count", 2)
    assert len(server.living()) >= 6  # launcher, server, tracker, engine, two for HTTP, and workers
    shared = {
        Path(line.split()[-1])
        for pid in server.living()
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
        if "/dev/shm/" in line and not line.endswith("(deleted)")
    }
    assert shared
    server.process.kill()
    gone_within(server, 3)
    assert not [path for path in shared if path.exists()]


@pytest.mark.slow
def test_requests_beyond_the_shutdown_timeout_are_aborted(start_server: Any, tuned_checkpoint: Path) -> None:
    """An answer is refused, a stream is aborted, and a client that never completes its body does not delay the exit."""
    server = start_server(tuned_checkpoint, "--shutdown-timeout", 1)
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as idle, ThreadPoolExecutor(2) as pool:
        idle.sendall(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        assert Caller(port).complete(1)[0] == 200
        plain = pool.submit(Caller(port).complete, 480, use_beam_search=True, n=2)
        streamed = pool.submit(Caller(port).stream, 480, n=16, temperature=1)
        eventually(lambda: server.counted("num_requests_running") == 16)
        began = time.monotonic()
        server.process.terminate()
        status, headers, answer = plain.result()
        assert (status, headers["retry-after"]) == (503, "30")
        assert answer["error"]["message"] == "the server is shutting down; try again in 30 s"
        with pytest.raises(http.client.IncompleteRead):
            streamed.result()
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 2 + CLEAN_UP_SECONDS + 2  # timeout, forced exit, clean-up
