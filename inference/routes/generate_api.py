"""POST /generate: answer an instruction or a conversation, in one response or as a stream.

    {"instruction": "…", "input": "…", "parameters": {"top_p": 0.7, "max_tokens": 256}}
    {"generated_text": "…", "num_output_tokens_cf": 17, "error": null}

The model's chat template renders the prompt, which vLLM gets as token ids (chat_prompts/). The handler of vLLM's
/v1/completions validates the parameters and generates the answer, except for beam search (beam_search.py).
"""

import json
from collections.abc import AsyncIterator
from typing import Literal

from chat_prompts.prompt_encoding import Message, instruction_messages
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from vllm_bridge.vllm_imports import from_vllm

from routes.beam_search import search_answer
from routes.request_body import MAX_MESSAGES, Text
from routes.response_envelope import STOPPED, describe_error, envelope_route, openapi_responses
from routes.sampling_parameters import BeamSettings, Parameters, StructuredOutputs, completion_fields
from routes.served_models import complete


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: Text
    input: Text | None = Field(default=None, description="the text that a user's instruction refers to")


class GenerateRequest(BaseModel):
    """Body of /generate."""

    model_config = ConfigDict(extra="forbid", strict=True)

    instruction: Text | None = Field(default=None, description="the task; required without messages")
    input: Text | None = Field(default=None, description="the text that the instruction refers to")
    messages: list[ChatMessage] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_MESSAGES,
        fail_fast=True,
        description="a conversation whose last message is the user's",
    )
    model: Text | None = Field(default=None, description="name of an adapter; default: the base")
    stream: bool | None = Field(default=None, description="respond with server-sent events")
    parameters: Parameters | None = None

    @model_validator(mode="after")
    def check_messages(self) -> "GenerateRequest":
        if (self.instruction is None) == (self.messages is None):
            raise ValueError("give either instruction (with its input) or messages")
        if self.messages is not None:
            if self.input is not None:
                raise ValueError("input belongs to instruction; put it into the message that refers to it")
            if self.messages[-1].role != "user":
                raise ValueError("the last message must be the user's")
            if any(message.input and message.role != "user" for message in self.messages):
                raise ValueError("only the user's messages have an input")
        return self

    def conversation(self) -> list[Message]:
        """Return the messages for the template; raises ValueError if the last one is empty."""
        last = self if self.messages is None else self.messages[-1]
        asked = self.instruction if self.messages is None else self.messages[-1].content
        if not (asked or last.input):
            subject = "instruction" if self.messages is None else "last message"
            raise ValueError(f"the {subject} and its input are empty; send a text")
        if self.messages is None:
            return instruction_messages(self.instruction or "", self.input or "")
        return [{"role": each.role, "content": each.content, "input": each.input or ""} for each in self.messages]


REQUEST_MODELS: dict[str, type[BaseModel]] = {  # see describe_validation_errors
    "": GenerateRequest,
    "parameters": Parameters,
    "messages": ChatMessage,
    "structured_outputs": StructuredOutputs,
}


class GenerateAnswer(BaseModel):
    """Response of /generate, also for errors; in a stream, the data of each event, with the next piece of the text."""

    generated_text: str = ""
    num_output_tokens_cf: int = Field(
        default=0, description="number of generated tokens, including the end token; in a stream: so far"
    )
    error: str | None = Field(default=None, description="one line")


async def envelope_events(events: AsyncIterator[str], path: str) -> AsyncIterator[str]:
    """Yield vLLM's events as envelopes, then [DONE]; the texts of all envelopes together are the answer."""
    try:
        async for event in events:
            data = event.removeprefix("data: ")
            if not data.startswith("{"):  # [DONE], or a keep-alive comment
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                yield envelope_event(error=" ".join(chunk["error"]["message"].split()))
            elif chunk["choices"]:
                choice, tokens = chunk["choices"][0], chunk["usage"]["completion_tokens"]
                if choice["finish_reason"] == "abort":
                    yield envelope_event(tokens=tokens, error=STOPPED)
                elif choice["text"] or choice["finish_reason"]:
                    yield envelope_event(choice["text"], tokens)
    except Exception as error:
        yield envelope_event(error=describe_error(error, path)[0])
    yield "data: [DONE]\n\n"  # as in OpenAI's interface


def envelope_event(text: str = "", tokens: int = 0, error: str | None = None) -> str:
    envelope = {"generated_text": text, "num_output_tokens_cf": tokens, "error": error}
    return f"data: {json.dumps(envelope, ensure_ascii=False)}\n\n"


def generate_router() -> APIRouter:
    """Return a router with the route /generate.

    vLLM's decorators cancel the request when the client disconnects, and count it in the server's load.
    """
    router = APIRouter(route_class=envelope_route(GenerateAnswer, REQUEST_MODELS))

    @router.post("/generate/", response_model=None, include_in_schema=False)
    @router.post("/generate", response_model=None, responses=openapi_responses(GenerateAnswer, streams=True))
    @from_vllm("with_cancellation")
    @from_vllm("load_aware_call")
    async def generate(request: GenerateRequest, raw_request: Request) -> Response:
        """Answer an instruction and its input, or a conversation."""
        model = raw_request.app.state.knowlm_models.get(request.model)
        ids = await model.encode_async(request.conversation())
        parameters = request.parameters or Parameters()
        fields = completion_fields(parameters, model.context - len(ids), bool(request.stream))
        if isinstance(fields, BeamSettings):
            best = await search_answer(raw_request, model, ids, fields)
            is_ended = best[-1] in model.stop_ids and not fields.ignore_eos
            text = model.decode(ids, best[:-1] if is_ended else best)
            return JSONResponse(GenerateAnswer(generated_text=text, num_output_tokens_cf=len(best)).model_dump())
        if request.stream:
            options = {"include_usage": True, "continuous_usage_stats": True}
            events = await complete(raw_request, model, ids, **fields, stream=True, stream_options=options)
            return StreamingResponse(envelope_events(events, raw_request.url.path), media_type="text/event-stream")
        completion = await complete(raw_request, model, ids, **fields)
        text, tokens = completion.choices[0].text, completion.usage.completion_tokens
        return JSONResponse(GenerateAnswer(generated_text=text, num_output_tokens_cf=tokens).model_dump())

    return router
