"""Responses match the OpenAPI description, and the server answers 500 mixed concurrent requests."""

import json
import random
import socket
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import schemathesis
from fuzzing import run_for, share_of_seconds
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import negative_data_rejection, not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

CHECKS: list[Any] = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection,
]  # fmt: skip


VLLM_PATH = "/v1/chat/completions"  # its description is vLLM's, and does not list all statuses
ALL_CHECKS: list[Any] = [
    *CHECKS,
    response_headers_conformance,
    missing_required_header,
    unsupported_method,
    allow_header_conformance,
]


def random_requests(server: Any, path: str) -> Any:
    """Return a strategy of valid and invalid requests from the OpenAPI description."""
    operation = schemathesis.openapi.from_url(f"{server.url}/openapi.json")[path]["POST"]
    valid, invalid = (operation.as_strategy(generation_mode=mode) for mode in GenerationMode)
    return valid | invalid


def ask_for_short_answers(case: Any) -> Any:
    """Add a token limit to a request without one, since answers of full length would take minutes."""
    if isinstance(body := case.body, dict):
        parameters = body.get("parameters")
        if case.path == "/generate" and (parameters is None or isinstance(parameters, dict)):
            parameters = {} if parameters is None else parameters
            if "max_tokens" not in parameters and "max_new_tokens" not in parameters:
                body["parameters"] = parameters | {"max_tokens": 3}
        if case.path != "/generate" and not {"max_tokens", "max_completion_tokens"} & body.keys():
            body["max_tokens"] = 3
    return case


@pytest.mark.parametrize("path", ["/generate", "/extract"])
def test_responses_match_the_openapi_description(server: Any, path: str) -> None:
    """Valid and invalid bodies get a response with a documented status and schema, and never a server error."""

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(random_requests(server, path))
    def holds(case: Any) -> None:
        ask_for_short_answers(case).call_and_validate(checks=CHECKS)

    holds()


@pytest.mark.slow
@pytest.mark.timeout(share_of_seconds(1) + 1200)
@pytest.mark.parametrize("path", ["/generate", "/extract", "/v1/chat/completions"])
def test_random_requests_pass_all_checks(server: Any, path: str) -> None:
    """All checks of schemathesis except those of stateful resources, authentication and acceptance of valid bodies."""

    def holds(case: Any) -> None:
        ask_for_short_answers(case).call_and_validate(checks=ALL_CHECKS if path != VLLM_PATH else [not_a_server_error])

    run_for(share_of_seconds(0.05), holds, [random_requests(server, path)])
    assert server.generate("still there", max_tokens=3)["num_output_tokens_cf"] <= 3
    assert "Traceback" not in server.log.read_text()


FEW = {"max_tokens": 6}
# (path, body, expected statuses); bytes are sent unchanged, None: the client disconnects after sending a request.
KINDS: list[tuple[str, Any, set[int]]] = [
    ("/generate", {"instruction": "Name a city.", "parameters": FEW}, {200}),
    ("/generate", {"instruction": "写", "input": "山水", "stream": True, "parameters": FEW}, {200}),
    ("/generate", {"instruction": "beams", "parameters": FEW | {"num_beams": 2}}, {200}),
    ("/generate", {"messages": [{"role": "user", "content": "hi"}], "parameters": FEW | {"seed": 1}}, {200}),
    ("/generate", {"instruction": "x", "parameters": {"structured_outputs": {"choice": ["yes", "no"]}}}, {200}),
    ("/extract", {"text": "Dabe was born in Kilo.", "task": "ner", "schema": ["person"], "max_tokens": 9}, {200}),
    ("/v1/completions", {"prompt": "x", "max_tokens": 5}, {200}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}, {200}),
    ("/generate", b'{"instruction": ', {400}),
    ("/generate", b"\xff\xfe", {400, 422}),
    ("/generate", {"instruction": "x", "parameters": {"temprature": 1}}, {422}),
    ("/generate", {"instruction": "x", "parameters": {"top_p": 9}}, {400}),
    ("/generate", {"instruction": "word " * 900}, {400}),
    ("/generate", {"instruction": "x", "model": "none"}, {404}),
    ("/generate", {"instruction": "x", "parameters": {"structured_outputs": {"regex": "(["}}}, {400}),
    ("/extract", {"text": "x", "task": "ner", "schema": []}, {400}),
    ("/extract", {"text": "x", "task": "none", "schema": ["a"]}, {422}),
    ("/nowhere", {}, {404}),
    ("/generate", None, {0}),
    ("/extract", None, {0}),
]


def sent(server: Any, path: str, body: Any) -> int:
    """Send a request; return the status of its complete response, 0 if the client disconnects."""
    if body is None:
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60) as caller:
            text = json.dumps({"instruction": "x", "text": "x", "task": "ner", "schema": ["a"]})
            caller.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode())
            caller.sendall(f"Content-Length: {len(text)}\r\n\r\n{text}".encode())
        return 0
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            content = answer.read().decode()
            if body.get("stream"):
                assert content.endswith("data: [DONE]\n\n")
            else:
                assert json.loads(content).get("error") is None
            return answer.status
    except urllib.error.HTTPError as error:
        assert json.load(error)["error"]
        return error.code


def test_five_hundred_mixed_requests_are_all_answered(server: Any) -> None:
    """Valid, invalid and disconnected requests, 64 at a time, cause no server error, and no sequence keeps running."""
    requests = KINDS * 25
    random.Random(5).shuffle(requests)
    with ThreadPoolExecutor(64) as callers:
        statuses = list(callers.map(lambda kind: sent(server, kind[0], kind[1]), requests))
    wrong = Counter(
        (path, str(body)[:60], status)
        for (path, body, right), status in zip(requests, statuses, strict=True)
        if status not in right
    )
    assert not wrong
    assert server.generate("still there", max_tokens=3)["num_output_tokens_cf"] <= 3
    assert server.metric_sum("num_requests_running", "num_requests_waiting") == 0
    assert "Traceback" not in server.log.read_text()
