"""POST /extract: a text and a schema in, entities, triples or events with their places in the text out.

    {"text": "Ann Lee was born in Oslo.", "task": "re", "schema": ["born in"]}
    {"triples": [{"subject": {"name": "Ann Lee", "offsets": [[0, 7]], "in_text": true}, "relation": "born in", …}],
     "complete": true, "windows": 1, "num_output_tokens_cf": 21, "error": null}

The model is asked in the words that it was tuned on (its extraction.json) and decoded greedily under a grammar of the
answer's form, so that every answer parses and has the schema's types alone. A long text is cut into windows.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from chat_prompts.prompt_encoding import Message, one_turn
from extraction.extraction_answer import read
from extraction.extraction_form import Form, question
from extraction.extraction_grammar import grammar
from extraction.extraction_results import Span, result
from extraction.extraction_schema import Kind, check_schema
from extraction.text_windows import windows
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from vllm_bridge.vllm_imports import part

from routes.response_envelope import Text, described, envelope_route
from routes.served_models import Served, completer, model_named, unhurried

ANSWER_TOKENS = 1024  # new tokens for a window at most; an answer that goes on longer goes round in circles
WINDOW_TOKENS = 256  # of the text in a window, where nothing says how long the texts are that the model was tuned on
WINDOW_SHARE = 1 / 3  # of the context's room behind the question, at most: the answer repeats what it finds
WINDOWS_AT_ONCE = 16  # of one request in the engine, so that a long text leaves room for other callers


# What the OpenAPI description says of a schema; extraction_schema.py checks it against the task.
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
    language: Literal["auto", "en", "zh"] | None = Field(default=None, description="of the question; auto: the text's")
    model: str | None = Field(default=None, description="an adapter's name; without it the base")
    max_tokens: int | None = Field(default=None, ge=1, description=f"for a window; {ANSWER_TOKENS}, or what there is")
    window_tokens: int | None = Field(
        default=None,
        ge=1,
        description="of text in a window; without it, whole sentences up to the usual length of the model's texts",
    )


class Found(BaseModel):
    """A name and where it stands, in characters (Unicode code points) of the text."""

    name: str
    offsets: list[tuple[int, int]]
    in_text: bool


class Entity(Found):
    type: str


class End(Found):
    type: str | None = None


class Triple(BaseModel):
    subject: End
    relation: str
    object: End


class Argument(Found):
    role: str


class Event(BaseModel):
    type: str
    trigger: Found | None
    arguments: list[Argument]


class ExtractAnswer(BaseModel):
    """Answer of /extract: the list that the task asks for, and how it came about."""

    entities: list[Entity] | None = Field(default=None, description="ner")
    triples: list[Triple] | None = Field(default=None, description="re and spo")
    events: list[Event] | None = Field(default=None, description="ee")
    complete: bool = Field(default=False, description="false: a window's answer was cut off by its limit of tokens")
    windows: int = Field(default=0, description="pieces that the text was cut into")
    num_output_tokens_cf: int = Field(default=0, description="tokens generated for all windows")
    error: str | None = Field(default=None, description="one line")


class Heard(NamedTuple):
    """What became of a window."""

    said: tuple[Span, dict[str, Any]]
    whole: bool
    prompt_tokens: int
    tokens: int  # generated


class Asking(NamedTuple):
    """How one model is asked for one schema."""

    model: Served
    instruction: str
    form: Form
    kinds: tuple[Kind, ...]
    characters: int | None  # usual length of a text; None: not known

    def messages(self, text: str) -> list[Message]:
        """The question about a window."""
        return one_turn(self.instruction, text)

    def grammar(self) -> str:
        return grammar(self.form, self.kinds, self.model.encoder.lead)

    async def windows(self, text: str, limit: int | None) -> list[Span]:
        """The windows of a text, by the length of texts that the model knows, or of `limit` tokens at most.

        Raises ValueError where the question alone fills the context.
        """
        encoder = self.model.encoder
        question_tokens = len(await self.model.ids(self.messages("")))
        room = int((self.model.context - question_tokens) * WINDOW_SHARE)
        if room < 1:
            raise ValueError(
                f"the question has {question_tokens} tokens, the context {self.model.context}; ask for less"
            )
        usual = None if limit else self.characters
        limit = min(limit or (room if usual else WINDOW_TOKENS), room)
        return await unhurried(len(text), windows, text, lambda window: len(encoder.text_ids(window)), limit, usual)


def asking_of(request: ExtractRequest, model: Served) -> Asking:
    kinds = check_schema(request.task, request.schema_)
    asked = question(request.task, kinds, request.text, request.language or "auto", model.extraction)
    return Asking(model, asked.instruction, asked.form, kinds, asked.characters)


def extract_router() -> APIRouter:
    """The route of /extract."""
    known: Mapping[str, type[BaseModel]] = {"": ExtractRequest}
    routes = APIRouter(route_class=envelope_route(ExtractAnswer, known))
    complete = completer()

    @routes.post("/extract", response_model=None, responses=described(ExtractAnswer))
    @part("with_cancellation")
    @part("load_aware_call")
    async def extract(request: ExtractRequest, raw_request: Request) -> Response:
        """Extract what a schema asks for from a text, with places in the text."""
        asking = asking_of(request, await model_named(raw_request, request.model))
        spans = await asking.windows(request.text, request.window_tokens)
        form = {"structured_outputs": {"grammar": asking.grammar()}, "temperature": 0}
        limit = request.max_tokens or ANSWER_TOKENS

        async def ask(span: Span) -> Heard:
            ids = await asking.model.ids(asking.messages(request.text[slice(*span)]))
            tokens = min(limit, asking.model.context - len(ids))
            completion = await complete(raw_request, asking.model, ids, max_tokens=tokens, **form)
            answer, whole = read(completion.choices[0].text)
            return Heard((span, answer), whole, len(ids), completion.usage.completion_tokens)

        heard = await each_of(spans, ask, WINDOWS_AT_ONCE)
        tokens = sum(each.tokens for each in heard)
        raw_request.state.knowlm_usage = tokens + sum(each.prompt_tokens for each in heard)  # for the limits of tokens
        said = [each.said for each in heard]
        found = await unhurried(len(request.text), result, request.task, request.text, asking.form, asking.kinds, said)
        about = {
            "complete": all(each.whole for each in heard), "windows": len(spans), "num_output_tokens_cf": tokens,
            "error": None,
        }  # fmt: skip
        return JSONResponse(found | about)

    return routes


async def each_of(spans: Sequence[Span], ask: Callable[[Span], Awaitable[Heard]], at_once: int) -> list[Heard]:
    """What comes of each span, in order, so many of them asked at once.

    The first failure, or a caller that leaves, ends the rest.
    """
    heard: dict[int, Heard] = {}
    waiting = iter(enumerate(spans))

    async def next_ones() -> None:
        for place, span in waiting:
            heard[place] = await ask(span)

    tasks = [asyncio.ensure_future(next_ones()) for _ in range(min(at_once, len(spans)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return [heard[place] for place in range(len(spans))]
