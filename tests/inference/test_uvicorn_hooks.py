"""uvicorn_hooks.py: uvicorn's private interfaces exist, and a real uvicorn server calls the overrides."""

import asyncio
import inspect
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from server_guard.uvicorn_hooks import MAX_HEAD_BYTES, BoundedHttpProtocol, install_uvicorn_hooks
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

OVERRIDES = {"data_received": ["self", "data"], "on_headers_complete": ["self"], "on_body": ["self", "body"],
             "on_message_complete": ["self"]}  # fmt: skip


def test_private_interfaces_have_the_expected_signatures() -> None:
    for name, parameters in OVERRIDES.items():
        assert list(inspect.signature(getattr(HttpToolsProtocol, name)).parameters) == parameters
        assert name in vars(BoundedHttpProtocol)
    assert list(inspect.signature(HttpToolsProtocol.send_400_response).parameters) == ["self", "msg"]
    server = uvicorn.Server(uvicorn.Config("none"))
    assert (server.should_exit, server.force_exit, server.config.lifespan) == (False, False, "auto")


async def application(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def served(talk: Callable[[int, uvicorn.Server], Awaitable[Any]]) -> Any:
    """Return the result of talk(port, server) with a running server; asserts that it stops within 5 s."""

    async def run() -> Any:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            config = uvicorn.Config(application, http="httptools", lifespan="off", log_level="error")
            config.load()
            server = uvicorn.Server(config)
            install_uvicorn_hooks(server)
            task = asyncio.ensure_future(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            try:
                return await talk(listener.getsockname()[1], server)
            finally:
                server.should_exit = server.force_exit = True
                await asyncio.wait_for(task, 5)

    return asyncio.run(run())


async def exchange(port: int, *parts: bytes) -> bytes:
    """Send the parts to the server; return all bytes of its response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.01)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


def test_uvicorn_calls_every_override(monkeypatch: pytest.MonkeyPatch) -> None:
    called: Counter[str] = Counter()
    for name in OVERRIDES:
        original = getattr(BoundedHttpProtocol, name)

        def counted(self: Any, *args: Any, name: str = name, original: Any = original) -> None:
            called[name] += 1
            original(self, *args)

        monkeypatch.setattr(BoundedHttpProtocol, name, counted)
    body = b"x" * MAX_HEAD_BYTES
    head = f"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {2 * len(body)}\r\n\r\n".encode()
    answer = served(lambda port, _: exchange(port, head, body, body))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert all(called[name] for name in OVERRIDES)


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"GET /"])
def test_endless_head_is_answered_400(start: bytes) -> None:
    answer = served(lambda port, _: exchange(port, start, b"a" * MAX_HEAD_BYTES))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"more than 65536 bytes" in answer


def test_hooks_keep_the_h11_parser() -> None:
    server = uvicorn.Server(uvicorn.Config(application, http="h11"))
    server.config.load()
    protocol = server.config.http_protocol_class
    install_uvicorn_hooks(server)
    assert server.config.http_protocol_class is protocol


def test_server_whose_startup_fails_ends_and_serves_nothing() -> None:
    """By default, uvicorn takes the exception for missing support of lifespan events and serves."""

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        install_uvicorn_hooks(server)
        raise ValueError("adapter a: damaged")

    async def serve() -> None:  # SystemExit would leave tasks of asyncio behind
        with pytest.raises(SystemExit):
            await server.serve()

    server = uvicorn.Server(uvicorn.Config(fails, port=0, log_level="critical"))
    asyncio.run(asyncio.wait_for(serve(), 5))
