"""guard_middleware.py: no route of the real application is open without its key; what a passage costs."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from server_guard.guard_middleware import Guard, api_keys

# Builds the application as the server does, without an engine, and asks it for each of its routes by each of its
# methods, and by others, under paths that are spelled in other ways; prints what was answered.
ASK_EVERYTHING = """
import asyncio, json, os, re, sys
from launch_vllm import allow_plugin, parse
from vllm.entrypoints.launchers.app import build_app

def paths_like(path):
    path = re.sub(r"{[^}]*}", "x", path)
    yield from (path, path + "/", "/" + path, path.upper(), path + "/.", "/x/.." + path, path + "//", "/api" + path)
    yield from (path.replace("/v1", "/./v1"), path + "%00", path + ";x", "/health/.." + path, "/health" + path)

async def ask(app, path, method, headers=()):
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
    async def send(message):
        sent.append(message)
    try:
        await app(scope, receive, send)
    except Exception as error:
        if not sent:
            return f"{type(error).__name__}: {error}", {}
    start = sent[0]
    return start.get("status", start["type"]), {n.decode(): v.decode() for n, v in start.get("headers", [])}

def errors(options):
    parse([*options, "--host", "0.0.0.0"])
    for more in json.loads(os.environ["WRONG"]):
        try:
            parse([*options, *more])
        except ValueError as error:
            yield str(error)

async def main(options):
    allow_plugin(os.environ)
    app = build_app(parse(options), ("generate", "realtime", "transcription"))
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
        for asked in paths_like(path):
            for method in {*methods, "GET", "HEAD", "POST", "OPTIONS", "DELETE", ""}:
                for headers in ((), [("authorization", "Bearer wrong")], [("authorization", "Basic second")]):
                    status, _ = await ask(app, asked, method, headers)
                    tried += 1
                    if status != 401:
                        open_without.append((method, asked, status))
    key, origin = ("authorization", "bearer second"), ("origin", "http://page.example")
    preflight = [origin, ("access-control-request-method", "POST")]
    print(json.dumps({
        "paths": sorted({path for path, _ in routes}), "tried": tried, "open": sorted(set(open_without)),
        "with a key": [(await ask(app, path, "GET", [key]))[0] for path in ("/version", "/openapi.json", "/docs")],
        "refused": [await ask(app, "/generate", "POST", [("origin", f"http://{o}.example")]) for o in ("page", "evil")],
        "preflight": [await ask(app, "/generate", "OPTIONS", headers) for headers in (preflight, preflight[1:])],
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
    ("--limit-requests", "60"): "--limit-requests 60 is no limit; give an amount of 1 or more and a time, such as",
    ("--max-body-mib", "0"): "--max-body-mib 0 lets nothing in; give 1 or more",
    ("--api-key", ""): "--api-key is empty; give it a key, or leave it out",
    ("--grpc",): "--grpc and VLLM_USE_RUST_FRONTEND serve past keys, limits and /generate; leave them out",
}


def test_every_route_of_the_real_application_asks_for_a_key(repository: Path, tiny_checkpoint: Path) -> None:
    """vLLM's routes for developers included; of all, only GET and HEAD of /health are open."""
    options = ["--model", tiny_checkpoint, "--port", "0", "--api-key", "first", "second", "--root-path", "/api"]
    more = ["--allowed-origins", '["http://page.example"]', "--enable-offline-docs", "--enable-tokenizer-info-endpoint"]
    told = {"PYTHONPATH": repository / "inference", "SHOWN": " ".join(SAFE), "WRONG": json.dumps(list(WRONG))}
    done = subprocess.run(
        [sys.executable, "-c", ASK_EVERYTHING, *map(str, options), *more], capture_output=True, text=True, timeout=300,
        env=os.environ | {name: str(value) for name, value in told.items()} | {"VLLM_SERVER_DEV_MODE": "1"},
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
    assert seen["user_middleware"][0] == "Guard"
    assert seen["settings"] == SAFE
    assert seen["trusted"] == ""
    for error, said in zip(seen["errors"], WRONG.values(), strict=True):
        assert error.startswith(said)
    assert f"--max-num-queued-reqs {4 * 128}: requests beyond" in done.stderr or "no GPU" not in done.stderr
    assert done.stderr.count("is served without a key") == 1
    assert "note: --host 0.0.0.0: whoever reaches it is served without a key" in done.stderr


@pytest.mark.parametrize(
    ("given", "environment", "keys"),
    [(None, None, []), (["a", "b"], "c", ["a", "b"]), (None, "c", ["c"]), (["a"], None, ["a"])],
)
def test_keys_come_from_the_option_or_else_the_environment(
    given: list[str] | None, environment: str | None, keys: list[str]
) -> None:
    assert api_keys(given, environment) == keys


@pytest.mark.parametrize(
    ("given", "environment", "said"),
    [
        ([""], None, "--api-key is empty; give it a key, or leave it out"),
        (["a", ""], None, "--api-key is empty"),
        (None, "", "VLLM_API_KEY is empty"),
        (["a b"], None, "the key of --api-key has spaces"),
        (None, "a\n", "the key of VLLM_API_KEY has spaces"),
        (["schlüssel"], None, "characters that are not ASCII; choose one without"),
    ],
)
def test_a_key_that_would_leave_the_server_open_is_refused(
    given: list[str] | None, environment: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        api_keys(given, environment)


def settings(**changed: Any) -> Any:
    """An application's state, with the arguments that Guard looks at."""
    usual: dict[str, Any] = {
        "api_key": None, "max_body_mib": 8, "limit_requests": None, "limit_tokens": None, "allowed_origins": [],
        "allow_credentials": False,
    }  # fmt: skip
    return SimpleNamespace(state=SimpleNamespace(args=argparse.Namespace(**(usual | changed))))


def test_a_socket_that_takes_no_answer_is_closed() -> None:
    """A web socket without the key, of a server that cannot refuse with a status."""
    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "client": ("::1", 1)}
    asyncio.run(Guard(never)(scope | {"app": settings(api_key=["k"])}, never, keep))
    assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 1008)]


async def never(*_: Any) -> Any:
    pytest.fail("something was read or passed on")


REQUESTS = 3000


def test_a_passage_costs_less_than_20_microseconds() -> None:
    """CPU time of requests with usual headers and no limits: an empty application alone, and behind Guard; the best
    of several rounds, since other programs slow one down and nothing speeds one up."""
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
    body = {"type": "http.response.body", "body": b"{}"}

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(start)
        await send(body)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 200, "more_body": False}

    async def send(message: Any) -> None:
        pass

    names = (b"host", b"user-agent", b"accept", b"accept-encoding", b"connection", b"content-type", b"authorization")
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": "/generate", "root_path": "", "client": ("127.0.0.1", 5), "state": {},
        "headers": [(name, b"Bearer k") for name in names] + [(b"content-length", b"200")],
    }  # fmt: skip

    async def seconds(asgi: Any, **more: Any) -> float:
        asked = scope | more
        began = time.process_time()
        for _ in range(REQUESTS):
            await asgi(asked, receive, send)
        return (time.process_time() - began) / REQUESTS

    async def cost(**changed: Any) -> float:
        guard, app = Guard(answer), settings(**changed)
        rounds = [(await seconds(guard, app=app), await seconds(answer)) for _ in range(7)]
        return min(behind for behind, _ in rounds) - min(alone for _, alone in rounds)

    assert asyncio.run(cost()) < 20e-6
    assert asyncio.run(cost(api_key=["j", "k"])) < 20e-6
