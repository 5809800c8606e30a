"""A real server with keys and limits: admitted and refused requests, log."""

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from guarded_server import KEY_PREFIX, KEYS, Caller, check_end, completion, signal_during_responses, wait_until

QUEUE = 8
OPTIONS: list[object] = [
    "--api-key", *KEYS, "--limit-requests", "5/3 seconds", "--limit-tokens", "100/hour", "--allowed-origins",
    '["http://page.example"]', "--max-num-queued-reqs", QUEUE,
]  # fmt: skip
FIFTY_MB = 50_000_000


@pytest.fixture(scope="module")
def guarded(start_server: Any, tuned_checkpoint: Path) -> Any:
    return start_server(tuned_checkpoint, *OPTIONS)


@pytest.fixture
def port(guarded: Any) -> int:
    return int(guarded.url.rpartition(":")[2])


def test_only_health_answers_without_a_key(port: int) -> None:
    nobody = Caller(port, key="")
    status, headers, answer = nobody.request("/generate", {"instruction": "x"})
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    reason = "no valid key; send one in the header Authorization: Bearer KEY"
    assert answer == {"generated_text": "", "num_output_tokens_cf": 0, "error": reason}
    assert nobody.request("/extract", {})[2] == {
        "complete": False,
        "windows": 0,
        "num_output_tokens_cf": 0,
        "error": reason,
    }
    _, _, answer = nobody.request("/v1/completions", {"prompt": "x"})
    assert answer == {"error": {"message": reason, "type": "Unauthorized", "param": None, "code": 401}}
    assert nobody.request("/health")[0] == 200
    assert [nobody.request(path)[0] for path in ("/metrics", "/docs")] == [401, 401]
    for key in KEYS[:2]:
        assert Caller(port, key).request("/generate", {"instruction": "x", "parameters": {"max_tokens": 2}})[0] == 200


def test_allowed_origin_can_read_refusals(port: int) -> None:
    page, evil = ({"Origin": f"http://{name}.example"} for name in ("page", "evil"))
    nobody = Caller(port, key="")
    status, headers, _ = nobody.request("/generate", {}, **page)
    assert (status, headers["access-control-allow-origin"]) == (401, "http://page.example")
    assert "access-control-allow-origin" not in nobody.request("/generate", {}, **evil)[1]
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    status, headers, _ = nobody.request("/generate", method="OPTIONS", **page, **preflight)
    assert (status, headers["access-control-allow-headers"]) == (200, "authorization")
    assert nobody.request("/generate", method="OPTIONS", **evil, **preflight)[0] == 400


def upload(caller: Caller, head: str, chunked: bool = False, expect_continue: bool = False) -> tuple[bytes, float]:
    """Send 50 MB; return the response and the seconds until the server closed the connection.

    expect_continue: send `Expect: 100-continue`, and the body only after `100 Continue`.
    """
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", caller.port), timeout=20, source_address=(caller.host, 0)) as peer:
        lines = [head, "Host: x", f"Authorization: Bearer {caller.key}", "Content-Type: application/json"]
        lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {FIFTY_MB}")
        peer.sendall("\r\n".join([*lines, *(["Expect: 100-continue"] if expect_continue else []), "", ""]).encode())
        answer = peer.recv(2**16) if expect_continue else b""
        if not expect_continue or answer == b"HTTP/1.1 100 Continue\r\n\r\n":
            for _ in range(FIFTY_MB // 10**6):
                peer.sendall((b"%x\r\n" % 10**6 if chunked else b"") + bytes(10**6) + (b"\r\n" if chunked else b""))
            peer.sendall(b"0\r\n\r\n" if chunked else b"")
            answer = b""
        while more := peer.recv(2**16):
            answer += more
        return answer, time.monotonic() - began


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize(("chunked", "expect_continue"), [(False, False), (False, True), (True, False), (True, True)])
def test_body_of_fifty_megabytes_is_refused(
    guarded: Any, port: int, path: str, chunked: bool, expect_continue: bool
) -> None:
    """A client that reads only after sending the whole body gets the response, too; the server drops the body."""
    before = resident_bytes(guarded)
    answer, seconds = upload(Caller(port), f"POST {path} HTTP/1.1", chunked, expect_continue)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the body is longer than the 8 MiB of --max-body-mib; send less at once" in answer
    assert b"\r\nconnection: close\r\n" in answer
    assert (b"generated_text" in answer) == (path == "/generate")
    assert seconds < 10
    assert resident_bytes(guarded) - before < 30e6


def test_endless_request_head_is_refused(guarded: Any, port: int) -> None:
    before = resident_bytes(guarded)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer, pytest.raises(OSError, match=r"reset|pipe"):
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: ")
        for _ in range(100):
            peer.sendall(bytes(b"a" * 10**6))
    assert resident_bytes(guarded) - before < 30e6


def resident_bytes(server: Any) -> int:
    """Return the resident bytes of the server's processes."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in server.process_ids()]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def test_requests_are_limited_per_key_and_per_address(port: int) -> None:
    caller = Caller(port)
    assert [caller.request("/v1/models")[0] for _ in range(6)] == [200] * 5 + [429]
    status, headers, answer = caller.request("/generate", {"instruction": "x"})
    assert status == 429
    wait = int(headers["retry-after"])
    assert 1 <= wait <= 6
    assert answer["error"] == f"the limit of 5 requests per 3 seconds is used up; try again in {wait} s"
    same_key, same_host = Caller(port, caller.key), Caller(port, KEYS[0], caller.host)
    assert same_key.request("/v1/models")[0] == same_host.request("/v1/models")[0] == 429
    assert Caller(port, key="wrong", host=caller.host).request("/v1/models")[0] == 429
    assert caller.request("/health")[0] == caller.request("/metrics")[0] == 200
    assert Caller(port).request("/v1/models")[0] == 200
    time.sleep(int(caller.request("/v1/models")[1]["retry-after"]))
    assert caller.request("/v1/models")[0] == 200


def test_forwarded_header_does_not_change_the_address(port: int) -> None:
    """uvicorn's default trusts X-Forwarded-For from 127.0.0.1."""
    statuses = [
        Caller(port, KEYS[-number], "127.0.0.1").request("/v1/models", **{"X-Forwarded-For": f"192.0.2.{number}"})[0]
        for number in range(1, 7)
    ]
    assert statuses == [200] * 5 + [429]


def request_hits_token_limit(caller: Caller) -> bool:
    status, headers, answer = caller.complete(1)
    assert (status == 429) == ("retry-after" in headers)
    assert status == 200 or answer["error"]["message"].startswith("the limit of 100 tokens per hour is used up; ")
    return status == 429


def test_tokens_are_limited_on_all_routes(port: int) -> None:
    """The limit is 100 tokens per hour: two answers of 60 tokens exceed it, and so does one templated prompt."""
    for send in (
        lambda caller: caller.complete(60)[0],
        lambda caller: caller.stream(60)[:0] or 200,  # stream() returns bytes: it has succeeded
        lambda caller: caller.complete(20, n=3, temperature=1)[0],
    ):
        caller = Caller(port)
        assert send(caller) == 200
        assert not request_hits_token_limit(caller)
        assert send(caller) == 200
        assert request_hits_token_limit(caller)
    for path, body in (("/generate", {"instruction": "x"}), ("/v1/responses", {"input": "x", "max_output_tokens": 30})):
        caller = Caller(port)
        assert caller.request(path, body)[0] == 200
        assert request_hits_token_limit(caller)


def test_tokens_of_disconnected_clients_are_counted(guarded: Any, port: int) -> None:
    """Clients disconnect after 110 of 300 streamed tokens, and during an unstreamed answer."""
    streaming, unstreamed = Caller(port), Caller(port)
    assert b"[DONE]" not in streaming.stream(300, disconnect_after=110)
    tokens_before = guarded.metric_sum("generation_tokens_total", key=KEYS[0])
    connection = unstreamed.connect()
    connection.request("POST", "/v1/completions", json.dumps(completion(400)), unstreamed.headers())
    wait_until(lambda: guarded.metric_sum("generation_tokens_total", key=KEYS[0]) > tokens_before + 150)
    connection.close()
    for caller in (streaming, unstreamed):
        wait_until(
            partial(request_hits_token_limit, caller), pause=1, within=60
        )  # each of these requests uses a few tokens


def test_full_queue_is_answered_with_retry_after(port: int) -> None:
    """vLLM's own refusals have no Retry-After."""
    callers = [Caller(port) for _ in range(5 * QUEUE)]
    body = {"instruction": "x", "parameters": {"max_tokens": 300, "ignore_eos": True}}
    with ThreadPoolExecutor(len(callers)) as pool:
        answers = list(pool.map(lambda caller: caller.request("/generate", body), callers))
    refused = [(headers["retry-after"], answer["error"]) for status, headers, answer in answers if status == 503]
    assert {status for status, _, _ in answers} == {200, 503}
    assert {wait for wait, _ in refused} == {"1"}
    assert all(error.startswith("The engine is currently busy") for _, error in refused)


def test_extract_with_more_windows_than_the_queue_waits_for_room(port: int) -> None:
    """Twenty windows, while another client's answers take half of the queue."""
    text = " ".join(f"Ann Lee met number {at} in Oslo." for at in range(20))
    body = {"text": text, "task": "ner", "schema": ["person"], "language": "en", "max_tokens": 8, "window_tokens": 16}
    with ThreadPoolExecutor(QUEUE // 2) as pool:
        others = [pool.submit(Caller(port).request, "/v1/completions", completion(300)) for _ in range(QUEUE // 2)]
        status, _, answer = Caller(port).request("/extract", body)
    assert (status, answer["error"]) == (200, None)
    assert answer["windows"] >= 20
    assert {other.result()[0] for other in others} == {200}


def test_more_beams_than_the_queue_has_places_are_a_clients_error(port: int) -> None:
    body = {"instruction": "x", "parameters": {"num_beams": QUEUE + 1}}
    status, headers, answer = Caller(port).request("/generate", body)
    assert (status, "retry-after" in headers) == (400, False)
    assert answer["error"] == "num_beams is 9, the server accepts 8 sequences at once; lower num_beams"


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
            caller.request(f"{path}?prompt={marker}", body, **{"X-Prompt": marker})
    log = guarded.log.read_text(errors="replace")
    assert "POST /v1/chat/completions HTTP" in log
    assert marker not in log
    assert KEY_PREFIX not in log
    assert "Chat template rejected the request: …" in log


def test_running_requests_are_finished_before_shutdown(guarded: Any) -> None:
    """SIGTERM ends the server of the fixture `guarded`, so this is its last test."""
    seconds, refused = signal_during_responses(guarded, signal.SIGTERM)
    check_end(guarded, seconds, refused)
