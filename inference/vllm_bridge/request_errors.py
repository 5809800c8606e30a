"""Give a client's errors on vLLM's routes the same status with and without a stream, and no paths of this machine.

vLLM checks most fields of a request only when it passes the request to the engine. An unstreamed request then gets
status 400. A streamed request already has status 200, and gets an error event or, from /v1/responses, a broken stream.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from http import HTTPStatus
from inspect import isasyncgen
from pathlib import Path
from typing import Any

from vllm_bridge.request_cost import current_cost
from vllm_bridge.vllm_imports import from_vllm

# attribute of the application's state: method of this handler that returns a response or a stream of events
STREAMING_HANDLERS = {
    "openai_serving_completion": "create_completion",
    "openai_serving_chat": "create_chat_completion",
    "openai_serving_responses": "create_responses",
    "anthropic_serving_messages": "create_chat_completion",
    "serving_tokens": "serve_tokens",
}
ERROR_EVENT = 'data: {"error":'
MISSING_TEMPLATE = (
    "the model has no chat template, which this route needs; start the server with --template_path FILE, or send the "
    "text to /v1/completions or /generate"
)


def check_streams(state: Any) -> None:
    """Make vLLM's handlers return a stream only once the engine has accepted the request, and otherwise the error.

    state: the application's state, with vLLM's handlers and arguments.
    """
    for name, method in STREAMING_HANDLERS.items():
        if handler := getattr(state, name, None):
            setattr(handler, method, with_checked_stream(getattr(handler, method), state.args.sse_keep_alive_interval))


def with_checked_stream(create: Callable[..., Awaitable[Any]], max_seconds: float) -> Callable[..., Awaitable[Any]]:
    """Return a handler's method that waits for the first output before it returns a stream.

    max_seconds: longest time to wait, after which vLLM sends the first keep-alive comment; 0: no limit.
    """

    @wraps(create)
    async def create_and_check(*args: Any, **kwargs: Any) -> Any:
        result = await create(*args, **kwargs)
        return await started_stream(result, max_seconds) if isasyncgen(result) else result

    return create_and_check


async def started_stream(stream: Any, max_seconds: float = 0) -> Any:
    """Return a stream with the same events, or vLLM's ErrorResponse if its request fails before its first output.

    Raises the exceptions of the stream before its first output. See with_checked_stream for max_seconds.
    """
    cost = current_cost.get()
    events: list[Any] = []

    async def read_first() -> Any:
        async for event in stream:
            events.append(event)
            if isinstance(event, str) and event.startswith(ERROR_EVENT):
                return from_vllm("ErrorResponse").model_validate_json(event.removeprefix("data: "))
            if cost is None or cost.has_output:
                break
        return None

    reading = asyncio.ensure_future(read_first())
    try:
        await asyncio.wait({reading}, timeout=max_seconds or None)
    except asyncio.CancelledError:
        reading.cancel()
        raise
    if reading.done() and (error := reading.result()):
        await stream.aclose()
        return error
    return all_events(reading, events, stream)


async def all_events(reading: Awaitable[Any], events: list[Any], stream: Any) -> AsyncIterator[Any]:
    """Yield the events that have been read, then the rest of the stream."""
    await reading
    for event in events:
        yield event
    async for event in stream:
        yield event


def report_unknown_models(model: str) -> None:
    """Make vLLM answer a request for an unknown model with `unknown_model_message`.

    model: --model; without --served-model-name, it is the name of the base.
    """
    serving = from_vllm("BaseServing")
    check = serving._check_model

    async def check_model(self: Any, request: Any) -> Any:
        refusal = await check(self, request)
        if refusal is not None and refusal.error.code == HTTPStatus.NOT_FOUND:
            refusal.error.message = unknown_model_message(request.model, self.models, model)
        return refusal

    serving._check_model = check_model


def unknown_model_message(name: str, registry: Any, model: str) -> str:
    """Return the error message for a model that is not served; the message has no path of this machine.

    registry: vLLM's models, with base_model_paths and lora_requests; model: see report_unknown_models.
    """
    bases = [path.name for path in registry.base_model_paths]
    if bases == [model] and Path(model).exists():
        bases = ["the base (leave out model, or see /v1/models)"]
    return f"there is no model {name!r:.60}; served: {', '.join([*bases, *registry.lora_requests])}"


def report_missing_template() -> None:
    """Replace vLLM's message for a model without a chat template, which does not say how to provide one."""
    from_vllm("ChatTemplateResolutionError").__str__ = lambda _: MISSING_TEMPLATE
