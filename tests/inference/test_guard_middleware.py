"""guard_middleware.py: every route of vLLM's real application requires a key."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_guard import body_structure
from server_guard.guard_middleware import GuardMiddleware, api_keys

# Builds the application as the server does, without an engine; sends requests with each route's methods and other
# methods to each route's path and variants of the path; prints the responses as JSON.
ALL_ROUTES = """
import asyncio, json, os, re, sys
from routes.routes_middleware import add_routes
from server_launch.launch_args import parse_server_args
from vllm.entrypoints.launchers.app import build_app

def paths_like(path):
    path = re.sub(r"{[^}]*}", "x", path)
    yield from (path, path + "/", "/" + path, path.upper(), path + "/.", "/x/.." + path, path + "//", "/api" + path)
    yield from (path.replace("/v1", "/./v1"), path + "%00", path + ";x", "/health/.." + path, "/health" + path)

async def send(app, path, method, headers=()):
    sent = []
    kind = "http" if method else "websocket"
    scope = {
        "type": kind, "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in headers], "client": ("127.0.0.1", 5),
        "root_path": "", "http_version": "1.1", "server": ("127.0.0.1", 80), "state": {}, "asgi": {"version": "3.0"},
        "extensions": {"websocket.http.response": {}} if not method else {},
    }
    async def receive():
        return {"type": "http.request", "body": b"{}"} if method else {"type": "websocket.connect"}
    async def keep(message):
        sent.append(message)
    try:
        await app(scope, receive, keep)
    except Exception as error:
        if not sent:
            return f"{type(error).__name__}: {error}", {}
    start = sent[0]
    return start.get("status", start["type"]), {n.decode(): v.decode() for n, v in start.get("headers", [])}

def errors(options):
    parse_server_args([*options, "--host", "0.0.0.0"])
    for more in json.loads(os.environ["WRONG"]):
        try:
            parse_server_args([*options, *more])
        except ValueError as error:
            yield str(error)

async def main(options):
    args = parse_server_args(options)
    app = build_app(args, ("generate", "realtime", "transcription"))
    app.state.args = args
    add_routes(app)
    routes = set()
    def walk(holder, before=""):
        for route in holder.routes:
            path = before + getattr(route, "path", "")
            routes.add((path, tuple(sorted(getattr(route, "methods", None) or ("", "GET", "POST")))))
            if getattr(route, "app", None) is not None and hasattr(route.app, "routes"):
                walk(route.app, path)
    walk(app)
    open_without, tried = [], 0
    for path, methods in sorted(routes):
        for variant in paths_like(path):
            for method in {*methods, "GET", "HEAD", "POST", "OPTIONS", "DELETE", ""}:
                for headers in ((), [("authorization", "Bearer wrong")], [("authorization", "Basic second")]):
                    status, _ = await send(app, variant, method, headers)
                    tried += 1
                    if status != 401:
                        open_without.append((method, variant, status))
    key, origin = ("authorization", "bearer second"), ("origin", "http://page.example")
    hosts = ("page", "evil")
    preflight = [origin, ("access-control-request-method", "POST")]
    print(json.dumps({
        "paths": sorted({path for path, _ in routes}), "tried": tried, "open": sorted(set(open_without)),
        "with a key": [(await send(app, path, "GET", [key]))[0] for path in ("/version", "/openapi.json", "/docs")],
        "refused": [await send(app, "/generate", "POST", [("origin", f"http://{o}.example")]) for o in hosts],
        "preflight": [await send(app, "/generate", "OPTIONS", headers) for headers in (preflight, preflight[1:])],
        "errors": list(errors(options[:4])),
        "settings": {name: getattr(app.state.args, name) for name in os.environ["SHOWN"].split()},
        "trusted": os.environ["FORWARDED_ALLOW_IPS"],
        "user_middleware": [middleware.cls.__name__ for middleware in app.user_middleware],
    }))

asyncio.run(main(sys.argv[1:]))
"""

SERVED = (
    "/generate /v1/completions /invocations /tokenize /metrics /docs /openapi.json /ping /version /collective_rpc "
    "/tokenizer_info /v1/realtime"
)
SAFE = {"trust_remote_code": False, "enable_log_requests": False, "shutdown_timeout": 600, "host": "127.0.0.1"}
WRONG = {
    ("--limit-requests", "60"): "--limit-requests 60 is not a limit; give a number of 1 or more per period, such as",
    ("--max-body-mib", "0"): "--max-body-mib 0 would refuse every request; give 1 or more",
    ("--api-key", ""): "--api-key is empty; give a key, or remove it",
    ("--grpc",): "--grpc and VLLM_USE_RUST_FRONTEND bypass keys, limits and /generate; remove them",
}


@pytest.mark.integration
def test_every_route_of_vllms_application_requires_a_key(repository: Path, tiny_checkpoint: Path) -> None:
    """Includes vLLM's routes for developers; only GET and HEAD of /health need no key."""
    options = ["--model", tiny_checkpoint, "--port", "0", "--api-key", "first", "second", "--root-path", "/api"]
    more = ["--allowed-origins", '["http://page.example"]', "--enable-offline-docs", "--enable-tokenizer-info-endpoint"]
    environment = {"PYTHONPATH": repository / "inference", "SHOWN": " ".join(SAFE), "WRONG": json.dumps(list(WRONG))}
    done = subprocess.run(
        [sys.executable, "-c", ALL_ROUTES, *map(str, options), *more], capture_output=True, text=True, timeout=300,
        env=os.environ | {name: str(value) for name, value in environment.items()} | {"VLLM_SERVER_DEV_MODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert set(SERVED.split()) <= set(seen["paths"])
    assert seen["tried"] > 5000
    health = {(method, path) for method in ("GET", "HEAD") for path in ("/health", "/api/health")}
    assert {(method, path) for method, path, _ in seen["open"]} == health
    assert seen["with a key"] == [200, 200, 200]
    (status, headers), (_, elsewhere) = seen["refused"]
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert headers["access-control-allow-origin"] == "http://page.example"
    assert "access-control-allow-origin" not in elsewhere
    (allowed, headers), (no_preflight, _) = seen["preflight"]
    assert (allowed, headers["access-control-allow-origin"], no_preflight) == (200, "http://page.example", 401)
    assert seen["user_middleware"][0] == "GuardMiddleware"
    assert seen["settings"] == SAFE
    assert seen["trusted"] == ""
    for error, expected in zip(seen["errors"], WRONG.values(), strict=True):
        assert error.startswith(expected)
    assert f"--max-num-queued-reqs {4 * 128}: further requests get" in done.stderr or "no GPU" not in done.stderr
    assert done.stderr.count("no key is required") == 1
    assert "notice: --host 0.0.0.0: no key is required" in done.stderr


@pytest.mark.parametrize(
    ("options", "environment", "keys"),
    [(None, None, []), (["a", "b"], "c", ["a", "b"]), (None, "c", ["c"]), (["a"], None, ["a"])],
)
def test_api_keys_prefers_the_option_over_the_environment(
    options: list[str] | None, environment: str | None, keys: list[str]
) -> None:
    assert api_keys(options, environment) == keys


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ([""], None, "--api-key is empty; give a key, or remove it"),
        (["a", ""], None, "--api-key is empty"),
        (None, "", "VLLM_API_KEY is empty"),
        (["a b"], None, "the key of --api-key has spaces"),
        (None, "a\n", "the key of VLLM_API_KEY has spaces"),
        (["schlüssel"], None, "characters that are not ASCII; choose one without"),
    ],
)
def test_api_keys_refuses_empty_and_unsendable_keys(
    options: list[str] | None, environment: str | None, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        api_keys(options, environment)


def application(**changed: Any) -> Any:
    """Return an application whose state has the arguments that the guard reads."""
    usual: dict[str, Any] = {
        "api_key": None, "max_body_mib": 8, "limit_requests": None, "limit_tokens": None, "allowed_origins": [],
        "allow_credentials": False,
    }  # fmt: skip
    return SimpleNamespace(state=SimpleNamespace(args=argparse.Namespace(**(usual | changed))))


def test_websocket_without_key_is_closed() -> None:
    """Without the extension websocket.http.response, a websocket cannot be refused with an HTTP status."""
    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "client": ("::1", 1)}
    asyncio.run(GuardMiddleware(never)(scope | {"app": application(api_key=["k"])}, never, keep))
    assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 1008)]


async def never(*_: Any) -> Any:
    pytest.fail("the guard called the application or received an event")


def counted(value: Any) -> dict[str, int]:
    """Return the numbers of objects, lists and elements (objects, lists, and the commas between their items)."""
    objects = lists = commas = 0
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, dict | list):
            objects, lists = objects + isinstance(each, dict), lists + isinstance(each, list)
            commas += max(0, len(each) - 1)
            pending += each.values() if isinstance(each, dict) else each
    return {"objects": objects, "lists": lists, "elements": objects + lists + commas}


TEXTS = st.text(alphabet='a,[{"\\ 中😀\n')
VALUES = st.recursive(
    TEXTS | st.integers(), lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5)
)


@given(value=VALUES, ascii_only=st.booleans())
def test_structure_of_a_body_is_counted_outside_strings(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert body_structure.count_structure(body) == counted(value)


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/completions"])
def test_body_of_many_objects_is_refused_on_every_route(server: Any, path: str) -> None:
    message = '{"role": "user", "content": ""}'
    body = f'{{"messages": [{", ".join([message] * 200_000)}]}}'.encode()
    status, answer = server.post(path, body)
    error = answer["error"] if path == "/generate" else answer["error"]["message"]
    assert (status, error) == (400, "the body has 200001 objects; send at most 16384 at once")
    status, answer = server.post(path, b'{"prompt": [' + b"7, " * 300_000 + b"7]}")
    error = answer["error"] if path == "/generate" else answer["error"]["message"]
    assert (status, error) == (400, "the body has 300002 elements (keys and list items); send at most 262144 at once")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/invocations"])
@pytest.mark.parametrize("field", ["structured_outputs", "response_format", "stream_options", "tools", "tool_choice"])
def test_values_of_a_wrong_type_are_the_callers_error(server: Any, path: str, field: str) -> None:
    values: tuple[object, ...] = ([[None, {}]], "x", 5, {"": []})
    for value in values:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": "x"}],
            "prompt": "x",
            "input": "x",
            "max_tokens": 1,
        }
        if path == "/invocations":
            del body["prompt"], body["input"]
        status, answer = server.post(path, body | {field: value})
        assert status in (200, 400, 422), (value, answer)
