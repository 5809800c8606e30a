"""How the server says no: one line, in the shape of the route that was asked for, with what the caller can do."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class RefusedError(Exception):
    """An answer in place of the route's."""

    def __init__(self, status: HTTPStatus, message: str, retry_after: int | None = None, close: bool = False) -> None:
        """message: one line; retry_after: seconds; close: the connection ends with this answer."""
        super().__init__(message)
        self.status, self.message, self.retry_after, self.close = status, message, retry_after, close


def error_body(path: str, status: int, message: str) -> dict[str, Any]:
    """A refusal in the shape in which the route at `path` tells its errors."""
    if path == "/generate":
        return {"generated_text": "", "num_output_tokens_cf": 0, "error": message}
    if path == "/extract":
        return {"complete": False, "windows": 0, "num_output_tokens_cf": 0, "error": message}
    return {"error": {"message": message, "type": HTTPStatus(status).phrase, "param": None, "code": status}}


def route_path(scope: Scope) -> str:
    """The path by which Starlette chooses a route: what lies behind the root path (of `--root-path`), if it does."""
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


async def answer_refusal(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI application that answers with scope["refusal"].

    receive is awaited once the answer is out and before the connection is closed.
    """
    refusal: RefusedError = scope["refusal"]
    body = json.dumps(error_body(route_path(scope), refusal.status, refusal.message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refusal.retry_after is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after))
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.close:
        headers.append((b"connection", b"close"))
    kind = "http.response"
    if scope["type"] == "websocket":
        kind = "websocket.http.response"
        if kind not in scope.get("extensions", {}):
            return await send({"type": "websocket.close", "code": 1008, "reason": refusal.message})
    await send({"type": f"{kind}.start", "status": int(refusal.status), "headers": headers})
    await send({"type": f"{kind}.body", "body": body, "more_body": refusal.close})
    if refusal.close:
        await receive()
        await send({"type": f"{kind}.body", "body": b"", "more_body": False})
    return None
