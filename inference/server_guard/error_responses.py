"""Error responses of the guard: one line each, in the format of the requested route."""

import json
from http import HTTPStatus
from typing import Any

from starlette.types import Receive, Scope, Send


class RefusedError(Exception):
    """Raised for a request that the guard refuses; the guard then responds instead of the route."""

    def __init__(self, status: HTTPStatus, message: str, retry_after: int | None = None, close: bool = False) -> None:
        """message: one line; retry_after: seconds; close: close the connection after the response."""
        super().__init__(message)
        self.status, self.message, self.retry_after, self.close = status, message, retry_after, close


def error_body(path: str, status: int, message: str) -> dict[str, Any]:
    """Return the body of an error response in the format of the route at `path`."""
    if path in ("/generate", "/generate/"):
        return {"generated_text": "", "num_output_tokens_cf": 0, "error": message}
    if path in ("/extract", "/extract/"):
        return {"complete": False, "windows": 0, "num_output_tokens_cf": 0, "error": message}
    return {"error": {"message": message, "type": HTTPStatus(status).phrase, "param": None, "code": status}}


def route_path(scope: Scope) -> str:
    """Return the path that Starlette matches against routes: without the prefix given by `--root-path`."""
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


async def send_refusal(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI application that responds with the RefusedError in scope["refusal"].

    If the connection is to be closed, the application awaits `receive` once after it has sent the body, so that the
    guard can read the rest of the request before the connection ends.
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
    prefix = "http.response"
    if scope["type"] == "websocket":
        prefix = "websocket.http.response"
        if prefix not in scope.get("extensions", {}):
            return await send({"type": "websocket.close", "code": 1008, "reason": refusal.message})
    await send({"type": f"{prefix}.start", "status": int(refusal.status), "headers": headers})
    await send({"type": f"{prefix}.body", "body": body, "more_body": refusal.close})
    if refusal.close:
        await receive()
        await send({"type": f"{prefix}.body", "body": b"", "more_body": False})
    return None
