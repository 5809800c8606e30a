"""Add /generate and /extract to vLLM's application; the launcher adds this middleware to `--middleware`.

vLLM also has endpoint plugins, but it finds them only by the metadata of an installed distribution, and this stage is
not installed. In each API process, vLLM starts the application after its engine and its own handlers are ready, so the
middleware adds the routes at the application's startup.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from server_guard.error_responses import error_body, route_path
from starlette.types import Receive, Scope, Send

from routes.extract_api import extract_router
from routes.generate_api import generate_router
from routes.served_models import ServedModels


class RoutesMiddleware:
    """ASGI middleware that adds the routes at startup and forwards every event to the application."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Forward an event; raises ValueError or FileNotFoundError at startup if a model cannot be served."""
        if scope["type"] == "lifespan":
            app, state = scope["app"], scope["app"].state
            if getattr(state, "openai_serving_completion", None) is not None:  # the model generates text
                state.knowlm_models = ServedModels(state)
                add_routes(app)
        await self.app(scope, receive, send)


def add_routes(app: FastAPI) -> None:
    """Add the routes, and the response to unknown paths in the format of vLLM's routes."""
    app.include_router(generate_router())
    app.include_router(extract_router(app.state.args.max_num_queued_reqs))
    app.router.default = not_found


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI application that responds with status 404; starlette's own response has another format."""
    if scope["type"] != "http":
        return await send({"type": "websocket.close", "code": 1000, "reason": "no such route"})
    path = route_path(scope)
    message = f"there is no route {path[:60]!r}; see /docs"
    return await JSONResponse(error_body(path, 404, message), 404)(scope, receive, send)
