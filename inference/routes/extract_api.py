"""POST /extract: extracts the entities, triples or events of a schema from a text, with their offsets.

    {"text": "Ann Lee was born in Oslo.", "task": "re", "schema": ["born in"]}
    {"triples": [{"subject": {"name": "Ann Lee", "offsets": [[0, 7]], "in_text": true}, "relation": "born in", …}],
     "complete": true, "windows": 1, "num_output_tokens_cf": 21, "error": null}

The instruction is the one that the model was tuned on (its extraction.json). Decoding is greedy and constrained by a
grammar, so every answer can be parsed and has types of the schema only. A long text is split into windows.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, NamedTuple

from chat_prompts.prompt_encoding import Message, one_turn
from extraction.extraction_answer import parse_answer
from extraction.extraction_form import AnswerForm, extraction_prompt
from extraction.extraction_grammar import answer_grammar
from extraction.extraction_results import Span, merge_answers
from extraction.extraction_schema import SchemaType, check_schema
from extraction.text_windows import windows
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from vllm_bridge.vllm_imports import from_vllm

from routes.response_envelope import Text, envelope_route, openapi_responses
from routes.served_models import ServedModel, completion_function, requested_model, run_in_thread_if_long

MAX_ANSWER_TOKENS = 1024  # per window; longer answers are repetitions
WINDOW_TOKENS = 256  # text tokens per window, if the usual length of the tuning texts is not known
WINDOW_SHARE = 1 / 3  # largest share of the context after the instruction; the answer repeats names of the window
CONCURRENT_WINDOWS = 16  # of one request in the engine, so that other callers are served, too


# OpenAPI description of a schema; extraction_schema.py checks it against the task.
NAME = {"type": "string", "minLength": 1}
TYPED_RELATION = {
    "type": "object", "properties": dict.fromkeys(("subject_type", "predicate", "object_type"), NAME),
    "required": ["subject_type", "predicate", "object_type"], "additionalProperties": False,
}  # fmt: skip
SCHEMA: Any = {
    "anyOf": [
        {"type": "array", "items": {"anyOf": [NAME, TYPED_RELATION]}, "minItems": 1},
        {"type": "object", "additionalProperties": {"type": "array", "items": NAME}, "minProperties": 1},
    ]
}


class ExtractRequest(BaseModel):
    """Body of /extract."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Text
    task: Literal["ner", "re", "spo", "ee"]
    schema_: Any = Field(
        alias="schema",
        json_schema_extra=SCHEMA,
        description="types (ner), relations (re, spo), event types with roles (ee)",
    )
    language: Literal["auto", "en", "zh"] | None = Field(
        default=None, description="of the instruction; auto: the text's"
    )
    model: str | None = Field(default=None, description="an adapter's name; default: the base")
    max_tokens: int | None = Field(
        default=None, ge=1, description=f"per window; default {MAX_ANSWER_TOKENS}, or the rest of the context"
    )
    window_tokens: int | None = Field(
        default=None,
        ge=1,
        description="of text in a window; default: whole sentences up to the usual length of the model's texts",
    )


class FoundName(BaseModel):
    """A name and its offsets, in characters (Unicode code points) of the text."""

    name: str
    offsets: list[tuple[int, int]]
    in_text: bool


class FoundEntity(FoundName):
    type: str


class FoundArgument(FoundName):
    role: str


class TripleEnd(FoundName):
    type: str | None = None


class FoundTriple(BaseModel):
    subject: TripleEnd
    relation: str
    object: TripleEnd


class FoundEvent(BaseModel):
    type: str
    trigger: FoundName | None
    arguments: list[FoundArgument]


class ExtractAnswer(BaseModel):
    """Response of /extract, also for errors: the list of extracted items, and counts of windows and tokens."""

    entities: list[FoundEntity] | None = Field(default=None, description="ner")
    triples: list[FoundTriple] | None = Field(default=None, description="re and spo")
    events: list[FoundEvent] | None = Field(default=None, description="ee")
    complete: bool = Field(default=False, description="false: the token limit cut a window's answer")
    windows: int = Field(default=0, description="pieces that the text was split into")
    num_output_tokens_cf: int = Field(default=0, description="tokens generated for all windows")
    error: str | None = Field(default=None, description="one line")


class WindowResult(NamedTuple):
    """The model's answer to one window."""

    span: Span
    answer: dict[str, Any]
    complete: bool
    prompt_tokens: int
    output_tokens: int


class ExtractionPlan(NamedTuple):
    """The prompts and the answer form of one model for one schema."""

    model: ServedModel
    instruction: str
    form: AnswerForm
    types: tuple[SchemaType, ...]
    usual_characters: int | None  # usual length of the tuning texts; None: not known

    def messages(self, text: str) -> list[Message]:
        """Return the prompt's messages; text: the text of a window, or "" to measure the instruction."""
        return one_turn(self.instruction, text)

    def grammar(self) -> str:
        return answer_grammar(self.form, self.types, self.model.encoder.answer_prefix)

    async def split(self, text: str, window_tokens: int | None) -> list[Span]:
        """Return the windows of a text: of the usual length of the tuning texts, or of at most `window_tokens` tokens.

        Raises ValueError if the instruction alone fills the context.
        """
        prompt = self.model.encoder
        instruction_tokens = len(await self.model.ids(self.messages("")))
        room = int((self.model.context - instruction_tokens) * WINDOW_SHARE)
        if room < 1:
            raise ValueError(
                f"the instruction has {instruction_tokens} tokens, the context {self.model.context}; shorten the schema"
            )
        usual = None if window_tokens else self.usual_characters
        limit = min(window_tokens or (room if usual else WINDOW_TOKENS), room)

        def token_count(window: str) -> int:
            return len(prompt.text_ids(window))

        return await run_in_thread_if_long(len(text), windows, text, token_count, limit, usual)


def extraction_plan(request: ExtractRequest, model: ServedModel) -> ExtractionPlan:
    types = check_schema(request.task, request.schema_)
    prompt = extraction_prompt(request.task, types, request.text, request.language or "auto", model.extraction)
    return ExtractionPlan(model, prompt.instruction, prompt.form, types, prompt.usual_characters)


def extract_router() -> APIRouter:
    """Return a router with the route /extract."""
    router = APIRouter(route_class=envelope_route(ExtractAnswer, {"": ExtractRequest}))
    complete = completion_function()

    @router.post("/extract", response_model=None, responses=openapi_responses(ExtractAnswer))
    @from_vllm("with_cancellation")
    @from_vllm("load_aware_call")
    async def extract(request: ExtractRequest, raw_request: Request) -> Response:
        """Extract the items of a schema from a text, with their offsets."""
        plan = extraction_plan(request, await requested_model(raw_request, request.model))
        spans = await plan.split(request.text, request.window_tokens)
        fields = {"structured_outputs": {"grammar": plan.grammar()}, "temperature": 0}
        limit = request.max_tokens or MAX_ANSWER_TOKENS

        async def ask(span: Span) -> WindowResult:
            ids = await plan.model.ids(plan.messages(request.text[slice(*span)]))
            max_tokens = min(limit, plan.model.context - len(ids))
            completion = await complete(raw_request, plan.model, ids, max_tokens=max_tokens, **fields)
            answer, is_complete = parse_answer(completion.choices[0].text)
            return WindowResult(span, answer, is_complete, len(ids), completion.usage.completion_tokens)

        results = await run_concurrently(spans, ask, CONCURRENT_WINDOWS)
        output_tokens = sum(result.output_tokens for result in results)
        prompt_tokens = sum(result.prompt_tokens for result in results)
        raw_request.state.knowlm_usage = output_tokens + prompt_tokens  # read by --limit-tokens
        answers = [(result.span, result.answer) for result in results]
        found = await run_in_thread_if_long(
            len(request.text), merge_answers, request.task, request.text, plan.form, plan.types, answers
        )
        summary = {
            "complete": all(result.complete for result in results), "windows": len(spans),
            "num_output_tokens_cf": output_tokens, "error": None,
        }  # fmt: skip
        return JSONResponse(found | summary)

    return router


async def run_concurrently(
    spans: Sequence[Span], ask: Callable[[Span], Awaitable[WindowResult]], limit: int
) -> list[WindowResult]:
    """Call `ask` for each span, at most `limit` at once; return the results in order.

    The first exception cancels the other calls and is raised.
    """
    results: dict[int, WindowResult] = {}
    waiting = iter(enumerate(spans))

    async def worker() -> None:
        for index, span in waiting:
            results[index] = await ask(span)

    tasks = [asyncio.ensure_future(worker()) for _ in range(min(limit, len(spans)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return [results[index] for index in range(len(spans))]
