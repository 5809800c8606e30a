"""The response envelope of a route: one JSON format for answers and for all errors."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from vllm_bridge.vllm_imports import from_vllm

from routes.request_body import JsonRequest

MAX_ERRORS = 5  # reported in one response
MAX_MESSAGE = 200  # characters of a message of vLLM; a longer message is cut
MAX_NAME = 60  # characters of an unknown field's name
STOPPED = "the server was stopped before the answer was complete; ask again"

logger = logging.getLogger(__name__)


def shorten(message: str) -> str:
    """Return a message of vLLM on one line, cut to MAX_MESSAGE characters, since it may quote a long input."""
    line = " ".join(message.split())
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]} …"


def describe_validation_errors(errors: Sequence[Any], models: Mapping[str, type[BaseModel]]) -> tuple[str, int]:
    """Return (pydantic's errors as one line, HTTP status: 400 for a body that is not JSON, else 422).

    models: "" -> pydantic model of the body; field name -> model of the nested object.
    """
    messages: list[str] = []
    unknown: dict[str, list[str]] = {}
    for error in errors:
        location = [str(step) for step in error["loc"] if step != "body"]
        if error["type"] == "json_invalid":
            return f"the body is not JSON: {error['ctx']['error']} at character {error['loc'][-1]}", 400
        if error["type"] == "extra_forbidden":
            parents = [step for step in location[:-1] if not step.isdecimal()]
            unknown.setdefault(parents[-1] if parents else "", []).append(location[-1][:MAX_NAME])
        elif not location and error["type"] != "value_error":
            messages.append(f"the body must be a JSON object; known fields: {', '.join(field_names(models['']))}")
        else:
            text = error["msg"].removeprefix("Value error, ")
            messages.append(": ".join(filter(None, [".".join(location[:3]), text[0].lower() + text[1:]])))
    for field, names in unknown.items():
        kind = {"": "field", "parameters": "parameter"}.get(field, f"field of {field}")
        known = ", ".join(field_names(models[field])) if field in models else "see /docs"
        messages.append(f"unknown {kind} {', '.join(names[:MAX_ERRORS])}; known: {known}")
    return "; ".join(dict.fromkeys(messages[:MAX_ERRORS])), 422


def field_names(model: type[BaseModel]) -> list[str]:
    """Return a model's fields under the names that requests use."""
    return [field.alias or name for name, field in model.model_fields.items()]


def envelope_route(envelope: type[BaseModel], models: Mapping[str, type[BaseModel]]) -> type[APIRoute]:
    """Return a route class that sends each error in the field `error` of `envelope`.

    models: see describe_validation_errors.
    """

    def failure_response(message: str, status: int) -> JSONResponse:
        content = envelope(error=" ".join(message.split())).model_dump(exclude_none=True)
        return JSONResponse(content, status_code=status)

    class EnvelopeRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
            handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
                if media_type != "application/json":
                    return failure_response(
                        f"the content type is {media_type or 'missing'}; send application/json", 415
                    )
                try:
                    return await handler(JsonRequest(request.scope, request.receive))
                except (RequestValidationError, ValidationError) as error:
                    return failure_response(*describe_validation_errors(error.errors(), models))
                except HTTPException as error:  # also raised by FastAPI for a body that cannot be decoded
                    return failure_response(str(error.detail), error.status_code)
                except Exception as error:
                    return failure_response(*describe_error(error, request.url.path))

            return handle

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            """Handle a request for the route's path; an unsupported method gets status 405 in the envelope."""
            if self.methods and scope["method"] not in self.methods:
                allowed = ", ".join(sorted(self.methods))
                response = failure_response(f"the method is {scope['method']}; send {allowed}", 405)
                response.headers["allow"] = allowed
                return await response(scope, receive, send)
            return await super().handle(scope, receive, send)

    return EnvelopeRoute


def openapi_responses(envelope: type[BaseModel], streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of a route's responses: the envelope for every status.

    streams: whether the route can also respond with a stream of events.
    """
    events: dict[str, Any] = {"content": {"text/event-stream": {"schema": {}}}} if streams else {}
    return {200: {"model": envelope, **events}, "4XX": {"model": envelope}, "5XX": {"model": envelope}}


def describe_error(error: Exception, path: str) -> tuple[str, int]:
    """Return (vLLM's message, HTTP status) for an exception; status 500 is logged with the path and a traceback."""
    details = from_vllm("create_error_response")(error).error
    if details.code == 500:
        logger.exception("POST %s failed", path)
    return shorten(details.message), details.code
