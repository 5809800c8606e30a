"""POST /generate: an instruction or a conversation in, the answer in one envelope out, or streamed piece by piece.

    {"instruction": "…", "input": "…", "parameters": {"top_p": 0.7, "max_tokens": 256}}
    {"generated_text": "…", "num_output_tokens_cf": 17, "error": null}

The prompt is rendered by the model's own chat template and handed on as token ids (chat_prompts/); sampling, batching
and their errors are those of vLLM's /v1/completions.
"""

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

from chat_prompts.prompt_encoding import Message, one_turn
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from vllm_bridge.vllm_imports import part

from routes.response_envelope import STOPPED, Text, described, envelope_route, told
from routes.sampling_parameters import Parameters, StructuredOutputs, sampling
from routes.served_models import Served, completer, model_named

DONE = "data: [DONE]\n\n"  # the last event of a stream, as in OpenAI's interface


class Turn(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: Text
    input: Text | None = Field(default=None, description="what a user's instruction is about")


class GenerateRequest(BaseModel):
    """Body of /generate."""

    model_config = ConfigDict(extra="forbid", strict=True)

    instruction: Text | None = Field(default=None, description="the task; this or messages")
    input: Text | None = Field(default=None, description="what the instruction is about")
    messages: list[Turn] | None = Field(default=None, min_length=1, description="a conversation; the user speaks last")
    model: str | None = Field(default=None, description="an adapter's name; without it the base")
    stream: bool | None = Field(default=None, description="answer in server-sent events")
    parameters: Parameters | None = None

    @model_validator(mode="after")
    def one_question(self) -> "GenerateRequest":
        if (self.instruction is None) == (self.messages is None):
            raise ValueError("give either instruction (with its input) or messages")
        if self.messages is not None:
            if self.input is not None:
                raise ValueError("input belongs to instruction; put it into the message that it is the input of")
            if self.messages[-1].role != "user":
                raise ValueError("the last message must be the user's")
            if any(turn.input and turn.role != "user" for turn in self.messages):
                raise ValueError("only the user's messages have an input")
        return self

    def conversation(self) -> list[Message]:
        if self.messages is None:
            return one_turn(self.instruction or "", self.input or "")
        return [{"role": turn.role, "content": turn.content, "input": turn.input or ""} for turn in self.messages]


KNOWN: dict[str, type[BaseModel]] = {  # under what name the body has which
    "": GenerateRequest,
    "parameters": Parameters,
    "messages": Turn,
    "structured_outputs": StructuredOutputs,
}


class GenerateAnswer(BaseModel):
    """Answer of /generate, in success and in failure; in a stream each event is one, with the next piece of text."""

    generated_text: str = ""
    num_output_tokens_cf: int = Field(
        default=0, description="tokens generated for this answer, the end token included; in a stream: so far"
    )
    error: str | None = Field(default=None, description="one line")


def answer_of(completion: Any) -> GenerateAnswer:
    """The envelope of vLLM's CompletionResponse."""
    return GenerateAnswer(
        generated_text=completion.choices[0].text, num_output_tokens_cf=completion.usage.completion_tokens
    )


def best_beam(completion: Any, model: Served, prompt: list[int]) -> GenerateAnswer:
    """The envelope of a beam search: its best answer, whose own tokens alone count.

    vLLM decodes a beam apart from its prompt and all at once, so that a character cut off by the limit would show as
    U+FFFD.
    """
    best = completion.choices[0]
    return GenerateAnswer(
        generated_text=model.text(prompt, best.token_ids),
        num_output_tokens_cf=len(best.token_ids) + (best.finish_reason == "stop"),  # its ids leave the end token out
    )


async def pieces(events: AsyncIterator[str], path: str) -> AsyncIterator[str]:
    """vLLM's events as ours: envelopes whose texts, one behind the other, are the whole answer; then [DONE]."""
    try:
        async for event in events:
            data = event.removeprefix("data: ")
            if not data.startswith("{"):  # [DONE], or a comment that keeps the connection open
                continue
            said = json.loads(data)
            if "error" in said:
                yield event_of(error=" ".join(said["error"]["message"].split()))
            elif said["choices"]:
                choice, tokens = said["choices"][0], said["usage"]["completion_tokens"]
                if choice["finish_reason"] == "abort":
                    yield event_of(tokens=tokens, error=STOPPED)
                elif choice["text"] or choice["finish_reason"]:
                    yield event_of(choice["text"], tokens)
    except Exception as error:
        yield event_of(error=told(error, path)[0])
    yield DONE


def event_of(text: str = "", tokens: int = 0, error: str | None = None) -> str:
    envelope = {"generated_text": text, "num_output_tokens_cf": tokens, "error": error}
    return f"data: {json.dumps(envelope, ensure_ascii=False)}\n\n"


def generate_router() -> APIRouter:
    """The route of /generate; its decorators end the work when the client hangs up and count the server's load."""
    routes = APIRouter(route_class=envelope_route(GenerateAnswer, KNOWN))
    complete = completer()

    @routes.post("/generate", response_model=None, responses=described(GenerateAnswer, streams=True))
    @part("with_cancellation")
    @part("load_aware_call")
    async def generate(request: GenerateRequest, raw_request: Request) -> Response:
        """Answer an instruction with its input, or a conversation, under the model's prompt template."""
        model = await model_named(raw_request, request.model)
        ids = await model.ids(request.conversation())
        fields = sampling(request.parameters or Parameters(), model.context - len(ids), bool(request.stream))
        if request.stream:
            options = {"include_usage": True, "continuous_usage_stats": True}
            events = await complete(raw_request, model, ids, **fields, stream=True, stream_options=options)
            return StreamingResponse(pieces(events, raw_request.url.path), media_type="text/event-stream")
        completion = await complete(raw_request, model, ids, **fields)
        answer = best_beam(completion, model, ids) if "use_beam_search" in fields else answer_of(completion)
        return JSONResponse(answer.model_dump())

    return routes
