"""request_errors.py: a caller's mistake has the same status and message with and without a stream."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm_bridge.request_cost import RequestCost, counted_cost
from vllm_bridge.request_errors import (
    MISSING_TEMPLATE,
    report_missing_template,
    started_stream,
    unknown_model_message,
    with_checked_stream,
)
from vllm_bridge.vllm_imports import from_vllm

MESSAGES = [{"role": "user", "content": "x"}]
LONG = "山 " * 900
OTHER_ID = {"99999": 1}  # not in the vocabulary
PROMPTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 4},
    "/v1/responses": {"input": "x", "max_output_tokens": 4},
    "/generate": {"instruction": "x"},
}
ALL = tuple(PROMPTS)
VLLM = ALL[:3]  # vLLM's routes
OPENAI = ALL[:2]
MISTAKES: list[tuple[tuple[str, ...], dict[str, Any], int, str]] = [
    (OPENAI, {"n": 200}, 400, "n is 200, but a request may have "),
    (OPENAI, {"n": 2, "temperature": 0}, 400, "n must be 1 when using greedy sampling"),
    (("/v1/completions",), {"logprobs": 300}, 400, "Requested sample logprobs of 300"),
    (("/v1/completions",), {"logprobs": 256, "max_tokens": 256}, 400, "is 65792, more than 65536"),
    (("/v1/completions",), {"prompt": ["x"] * 65, "max_tokens": 64, "logprobs": 15}, 400, "is 66560, more than 65536"),
    (("/v1/completions",), {"prompt": [*[[7] * 300] * 60, [99999]]}, 400, "Token id 99999 is out of vocabulary"),
    (("/v1/completions",), {"prompt": LONG}, 400, "maximum context length is 512 tokens"),
    (("/v1/chat/completions",), {"logprobs": True, "top_logprobs": 300}, 400, "Requested sample logprobs of 300"),
    (("/v1/chat/completions",), {"use_beam_search": True, "n": 200}, 400, "Requested sample logprobs of 400"),
    (
        ("/v1/chat/completions",),
        {"logprobs": True, "top_logprobs": 256, "max_tokens": 256},
        400,
        "is 65792, more than 65536",
    ),
    (
        ("/v1/chat/completions",),
        {"messages": [{"role": "user", "content": LONG}]},
        400,
        "maximum context length is 512",
    ),
    (("/v1/responses",), {"input": LONG}, 400, "maximum context length is 512 tokens"),
    (
        ("/v1/responses",),
        {"top_logprobs": 300, "include": ["message.output_text.logprobs"]},
        400,
        "Requested sample logprobs of 300",
    ),
    (ALL, {"model": "none"}, 404, "there is no model 'none'; served: "),
    (VLLM, {"structured_outputs": {"regex": "["}}, 400, "Unclosed '['"),
    (VLLM, {"logit_bias": OTHER_ID}, 400, "out-of-vocab token ids"),
    (VLLM, {"stop": [""]}, 400, "stop cannot contain an empty string"),
    (VLLM, {"temperature": -1}, 400, "temperature must be non-negative"),
    (OPENAI, {"allowed_token_ids": [99999]}, 400, "out-of-vocab token id"),
    (OPENAI, {"stop_token_ids": [99999]}, 400, "out-of-vocab token ids"),
    (OPENAI, {"bad_words": ["x" * 2**21]}, 400, "have more than 1048576 characters"),
    (OPENAI, {"thinking_token_budget": 5}, 400, "thinking_token_budget is set but"),
    (OPENAI, {"min_tokens": 20, "max_tokens": 10}, 400, "min_tokens must be less than or equal to max_tokens=10"),
    (OPENAI, {"structured_outputs": {"json": {"type": "none"}}}, 400, 'Unsupported type "none"'),
    (OPENAI, {"structured_outputs": {"grammar": "root ::= "}}, 400, "EBNF parser error"),
    (("/generate",), {"parameters": {"structured_outputs": {"regex": "["}}}, 400, "Unclosed '['"),
    (("/generate",), {"parameters": {"logit_bias": OTHER_ID}}, 400, "out-of-vocab token ids"),
    (("/generate",), {"parameters": {"stop_token_ids": [99999]}}, 400, "out-of-vocab token ids"),
    (("/generate",), {"parameters": {"bad_words": ["x" * 2**21]}}, 400, "have more than 1048576 characters"),
]


@pytest.mark.parametrize(
    ("path", "fields", "status", "message"),
    [(path, fields, status, message) for paths, fields, status, message in MISTAKES for path in paths],
)
def test_streamed_request_gets_the_error_of_the_unstreamed_one(
    server: Any, path: str, fields: dict[str, Any], status: int, message: str
) -> None:
    body = PROMPTS[path] | fields
    unstreamed = server.post(path, body)
    assert (unstreamed[0], message in str(unstreamed[1]["error"])) == (status, True), unstreamed
    assert server.post(path, body | {"stream": True}) == unstreamed


def test_anthropic_route_and_invocations_check_streams(server: Any, tuned_checkpoint: Path) -> None:
    tools = [{"name": "f", "input_schema": {}}]
    for path, body in (
        ("/v1/messages", {"model": "none", "messages": MESSAGES, "max_tokens": 4}),
        ("/v1/messages", {"model": str(tuned_checkpoint), "messages": MESSAGES, "max_tokens": 4, "tools": tools}),
        ("/invocations", {"prompt": "x", "n": 200}),
        ("/invocations", {"messages": MESSAGES, "n": 200}),
    ):
        unstreamed = server.post(path, body)
        assert unstreamed[0] in (400, 404), unstreamed
        assert server.post(path, body | {"stream": True}) == unstreamed


ERROR = 'data: {"error": {"message": "a reason", "type": "BadRequestError", "param": null, "code": 400}}\n\n'


async def events_of(cost: RequestCost, seconds: float, *texts: str) -> AsyncIterator[str]:
    """Yield the texts after some seconds; "output" is the engine's first output, and "fail" raises ValueError."""
    await asyncio.sleep(seconds)
    for text in texts:
        if text == "fail":
            raise ValueError("a reason")
        cost.has_output |= text == "output"
        yield text


def started(*texts: str, seconds: float = 0, max_seconds: float = 0) -> Any:
    """Return the ErrorResponse, or all events of the stream; texts, seconds: see events_of."""

    async def start() -> Any:
        with counted_cost(1) as cost:
            stream = events_of(cost, seconds, *texts)

            async def create() -> Any:
                return stream

            result = await with_checked_stream(create, max_seconds)()
            return result if hasattr(result, "error") else [event async for event in result]

    return asyncio.run(start())


def test_stream_keeps_all_events() -> None:
    assert started("created", "in progress", "output", "more") == ["created", "in progress", "output", "more"]
    assert started("created") == ["created"]
    assert started() == []


def test_error_before_the_first_output_is_returned_or_raised() -> None:
    error = started(ERROR, "data: [DONE]\n\n").error
    assert (error.code, error.message, error.type) == (400, "a reason", "BadRequestError")
    with pytest.raises(ValueError, match="a reason"):
        started("created", "in progress", "fail")


def test_error_after_the_first_output_or_a_keep_alive_stays_an_event() -> None:
    assert started("output", ERROR) == ["output", ERROR]
    assert started(ERROR, "[DONE]", seconds=0.1, max_seconds=0.01) == [ERROR, "[DONE]"]


def test_stream_of_a_disconnected_client_ends() -> None:
    ended = []

    async def events() -> AsyncIterator[str]:
        try:
            await asyncio.sleep(60)
            yield "late"
        finally:
            ended.append(True)

    async def disconnect() -> None:
        waiting = asyncio.create_task(started_stream(events()))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(disconnect(), 10))
    assert ended == [True]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "x"}),
        ("/tokenize", {"messages": MESSAGES}),
        ("/detokenize", {"tokens": [7]}),
        ("/v1/chat/completions/batch", {"messages": [MESSAGES]}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 4}),
        ("/extract", {"text": "x", "task": "ner", "schema": ["person"], "language": "zh"}),
    ],
)
def test_unknown_model_is_answered_without_a_path(server: Any, path: str, body: dict[str, Any]) -> None:
    status, answer = server.post(path, body | {"model": "none"})
    message = answer["error"] if path == "/extract" else answer["error"]["message"]
    expected = "there is no model 'none'; served: the base (leave out model, or see /v1/models)"
    assert (status, message) == (404, expected)


def test_message_for_an_unknown_model_lists_served_names_but_no_local_path(tmp_path: Path) -> None:
    def message(model: str, *names: str) -> str:
        paths = [SimpleNamespace(name=name) for name in names]
        registry = SimpleNamespace(base_model_paths=paths, lora_requests={"ie": None})
        return unknown_model_message("none", registry, model).removeprefix("there is no model 'none'; served: ")

    assert message(str(tmp_path), "base", "alias") == "base, alias, ie"
    assert message("org/name", "org/name") == "org/name, ie"
    assert message(str(tmp_path), str(tmp_path)) == "the base (leave out model, or see /v1/models), ie"


def test_missing_template_names_the_option_and_other_routes(tiny_checkpoint: Path) -> None:
    from transformers import AutoTokenizer
    from vllm.config import ModelConfig
    from vllm.renderers.hf import safe_apply_chat_template

    report_missing_template()
    config = ModelConfig(str(tiny_checkpoint))
    with pytest.raises(ValueError, match="has no chat template, which this route needs") as raised:
        safe_apply_chat_template(config, AutoTokenizer.from_pretrained(tiny_checkpoint), [], chat_template=None)
    error = from_vllm("create_error_response")(raised.value).error
    assert (error.code, error.message) == (400, MISSING_TEMPLATE)
