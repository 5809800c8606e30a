"""One envelope for every answer of a route, errors included, whoever raises them."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, ValidationError
from starlette.exceptions import HTTPException
from vllm_bridge.vllm_imports import part

SHOWN = 5  # errors told at once
STOPPED = "the server was stopped before the answer was complete; ask again"

logger = logging.getLogger(__name__)


def well_formed(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair; send whole characters") from None
    return text


Text = Annotated[str, AfterValidator(well_formed)]


class RequestFailedError(Exception):
    """An answer that vLLM refused or could not finish; it has a message for the envelope and an HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def complaint(errors: Sequence[Any], known: Mapping[str, type[BaseModel]]) -> tuple[str, int]:
    """pydantic's list of errors as one line and the HTTP status that fits: 400 for what is no JSON, else 422.

    known: the model of the body under "", those of the objects in it under their field's name.
    """
    said: list[str] = []
    unknown: dict[str, list[str]] = {}
    for error in errors:
        place = [str(step) for step in error["loc"] if step != "body"]
        if error["type"] == "json_invalid":
            return f"the body is no JSON: {error['ctx']['error']} at character {error['loc'][-1]}", 400
        if error["type"] == "extra_forbidden":
            holder = [step for step in place[:-1] if not step.isdecimal()]
            unknown.setdefault(holder[-1] if holder else "", []).append(place[-1])
        elif not place and error["type"] != "value_error":
            example = ", ".join(f'"{name}": …' for name in spelled(known[""]))
            said.append(f"the body must be an object such as {{{example}}}")
        else:
            fault = error["msg"].removeprefix("Value error, ")
            said.append(": ".join(filter(None, [".".join(place[:3]), fault[0].lower() + fault[1:]])))
    for field, names in unknown.items():
        kind = {"": "field", "parameters": "parameter"}.get(field, f"field of {field}")
        fields = ", ".join(spelled(known[field])) if field in known else "see /docs"
        said.append(f"unknown {kind} {', '.join(names[:SHOWN])}; known: {fields}")
    return "; ".join(dict.fromkeys(said[:SHOWN])), 422


def spelled(model: type[BaseModel]) -> list[str]:
    """A model's fields as requests spell them."""
    return [field.alias or name for name, field in model.model_fields.items()]


def envelope_route(empty: type[BaseModel], known: Mapping[str, type[BaseModel]]) -> type[APIRoute]:
    """A route class whose errors are answered as `empty` with its `error` set."""

    def failure(message: str, status: int) -> JSONResponse:
        return JSONResponse(empty(error=" ".join(message.split())).model_dump(exclude_none=True), status_code=status)

    class EnvelopeRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
            handler = super().get_route_handler()

            async def answer(request: Request) -> Response:
                media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
                if media_type != "application/json":
                    return failure(f"the content type is {media_type or 'missing'}; send application/json", 415)
                try:
                    return await handler(request)
                except (RequestValidationError, ValidationError) as error:
                    return failure(*complaint(error.errors(), known))
                except RequestFailedError as error:
                    return failure(str(error), error.status)
                except HTTPException as error:  # of a body that is no text, say
                    return failure(str(error.detail), error.status_code)
                except Exception as error:
                    return failure(*told(error, request.url.path))

            return answer

    return EnvelopeRoute


def described(answer: type[BaseModel], streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI description says of a route's answers: the envelope, whatever the status."""
    events = {"content": {"text/event-stream": {"schema": {"type": "string"}}}} if streams else {}
    return {200: {"model": answer, **events}, "4XX": {"model": answer}, "5XX": {"model": answer}}


def told(error: Exception, path: str) -> tuple[str, int]:
    """An exception as vLLM words it, and its status; what is the server's own fault is logged."""
    said = part("create_error_response")(error).error
    if said.code == 500:
        logger.exception("POST %s failed", path)
    return said.message, said.code
