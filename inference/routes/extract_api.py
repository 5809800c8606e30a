"""POST /extract: extract the entities, triples or events of a schema from a text, with their offsets.

    {"text": "Ann Lee was born in Oslo.", "task": "re", "schema": ["born in"]}
    {"triples": [{"subject": {"name": "Ann Lee", "offsets": [[0, 7]], "in_text": true}, "relation": "born in", …}],
     "complete": true, "windows": 1, "num_output_tokens_cf": 21, "error": null}

The instruction is the one that the model was tuned on (in its extraction.json), else a default. Decoding is greedy and
constrained by a grammar, so every answer can be parsed and has only types of the schema and, by default, only names in
the text. A long text is split into windows.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from chat_prompts.prompt_encoding import instruction_messages
from extraction.extraction_form import ExtractionPrompt, prompts_for_types
from extraction.extraction_grammar import answer_rules, name_rules
from extraction.extraction_results import Span, merge_answers, parse_partial_answer
from extraction.extraction_schema import EXAMPLES, check_schema
from extraction.text_windows import CONCURRENT_WINDOWS, MAX_WINDOWS, split_into_windows
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from vllm_bridge.vllm_hooks import skips_trial
from vllm_bridge.vllm_imports import from_vllm

from routes.concurrency import map_concurrently, run_in_thread_if_long
from routes.request_body import Text
from routes.response_envelope import envelope_route, openapi_responses
from routes.served_models import ServedModel, complete, run_when_admitted

# Greedy decoding. A repetition penalty in the checkpoint's generation_config.json would count names in the prompt as
# repetitions. An answer that has the same 4 to 64 tokens four times in a row would repeat them until max_tokens, so it
# is ended.
DECODING: dict[str, Any] = {
    "temperature": 0, "repetition_penalty": 1,
    "repetition_detection": {"min_pattern_size": 4, "max_pattern_size": 64, "min_count": 4},
}  # fmt: skip
MAX_ANSWER_TOKENS = 1024  # per window; longer answers are mostly repetitions
WINDOW_TOKENS = 256  # tokens of text per window, if the usual length of the tuning texts is not known
WINDOW_SHARE = 1 / 3  # maximum share that a window may take of the tokens left after the instruction
QUEUE_SHARE = 1 / 2  # maximum share of the engine's queue for the windows of all requests, so that others are served


class ExtractRequest(BaseModel):
    """Body of /extract."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Text
    task: Literal["ner", "re", "spo", "ee"]
    schema_: Any = Field(
        alias="schema",
        examples=[json.loads(example) for example in EXAMPLES.values()],
        description="types (ner), relations (re, spo), event types with roles (ee)",
    )
    language: Literal["auto", "en", "zh"] | None = Field(
        default=None, description="language of the instruction; auto: the language of the text"
    )
    model: Text | None = Field(default=None, description="name of an adapter; default: the base")
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description=f"answer tokens per window; default {MAX_ANSWER_TOKENS}; at most the rest of the context",
    )
    names_from_text: bool = Field(
        default=True, description="names are parts of the text, white space aside; false: the model may write any name"
    )
    window_tokens: int | None = Field(
        default=None,
        ge=1,
        description=f"text tokens per window; default: the usual length of the tuning texts, else {WINDOW_TOKENS}",
    )


class ExtractAnswer(BaseModel):
    """Response of /extract, also for errors: the list of extracted items, and counts of windows and tokens.

    A NAME is {"name", "offsets": [[start, end], …] in characters (Unicode code points) of the text, "in_text"}.
    """

    entities: list[dict[str, Any]] | None = Field(default=None, description='ner: {"type", …NAME}')
    triples: list[dict[str, Any]] | None = Field(
        default=None,
        description='re and spo: {"subject": NAME, "relation", "object": NAME}; in spo with "type"s',
    )
    events: list[dict[str, Any]] | None = Field(
        default=None, description='ee: {"type", "trigger": NAME or null, "arguments": [{"role", …NAME}]}'
    )
    complete: bool = Field(
        default=False,
        description="false: an error, or an answer that was cut by its token limit or because it repeats itself",
    )
    windows: int = Field(default=0, description="pieces that the text was split into")
    num_output_tokens_cf: int = Field(default=0, description="tokens generated for all windows")
    error: str | None = Field(default=None, description="one line")


async def choose_windows(
    model: ServedModel, prompts: list[ExtractionPrompt], text: str, max_tokens: int | None
) -> list[Span]:
    """Return the windows of a text, each with at most WINDOW_SHARE of the tokens left after the longest instruction.

    max_tokens: maximum number of tokens of a window, or None. Without it, a window has up to the usual number of
    characters of the tuning texts (a first sentence may be longer) or, if this is not known, up to WINDOW_TOKENS
    tokens. Raises ValueError if the instruction leaves no room for a text in the context, or if windows and prompts
    give more than MAX_WINDOWS questions.
    """
    instruction = max((prompt.question("") for prompt in prompts), key=lambda question: len(question[0]))
    instruction_tokens = len(await model.encode_async(instruction_messages(*instruction)))
    room = int((model.context - instruction_tokens) * WINDOW_SHARE)
    if room < 1:
        raise ValueError(
            f"the instruction has {instruction_tokens} tokens, the context {model.context}; shorten the schema"
        )
    usual_characters = None if max_tokens else prompts[0].usual_characters
    limit = min(max_tokens or (room if usual_characters else WINDOW_TOKENS), room)

    def split() -> list[Span]:
        return split_into_windows(text, model.token_starts(text), limit, usual_characters)

    spans = await run_in_thread_if_long(len(text), split)
    if len(spans) * len(prompts) > MAX_WINDOWS:
        raise ValueError(
            f"{len(spans)} windows of the text and {len(prompts)} batches of the schema give more than {MAX_WINDOWS} "
            "questions; send the text in parts, or fewer types"
        )
    return spans


class ExtractQueue:
    """Limits the requests of /extract, and the places that their windows take in the engine's queue.

    Windows wait for a place in the order of their arrival. Otherwise, thousands of windows would try again and again
    while the queue is full, and occupy the event loop.
    """

    def __init__(self, places: int) -> None:
        """places: the size of the engine's queue; also the maximum number of requests to /extract at the same time."""
        self.places, self.requests = places, 0
        self.window_places = asyncio.Semaphore(max(1, int(places * QUEUE_SHARE)))

    @contextmanager
    def admitted(self, engine: Any) -> Iterator[None]:
        """Count a request; raises vLLM's QueueOverflowError (status 503) if the queue is full."""
        engine.check_admission()
        if self.requests >= self.places:
            raise from_vllm("QueueOverflowError")()
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1


async def extract_items(request: ExtractRequest, raw_request: Request, window_places: asyncio.Semaphore) -> Response:
    """Return the response to a request; window_places: places in the engine's queue for windows of all requests."""
    task, text = request.task, request.text
    model = raw_request.app.state.knowlm_models.get(request.model)
    types = check_schema(task, request.schema_)
    prompts = prompts_for_types(task, types, text, request.language or "auto", model.extraction)
    spans = await choose_windows(model, prompts, text, request.window_tokens)
    prefix, form = model.encoder.answer_prefix, prompts[0].form
    questions = [
        (span, prompt, rules)
        for prompt, rules in [(each, answer_rules(form, each.types, prefix)) for each in prompts]
        for span in spans
    ]
    skips_trial.set(True)  # the limits of schema and window also limit the grammar
    limit = request.max_tokens or MAX_ANSWER_TOKENS

    async def ask(question: tuple[Span, ExtractionPrompt, str]) -> tuple[dict[str, Any], bool, int, int]:
        """Return the answer to a window, whether it is complete, and the numbers of prompt and output tokens."""
        span, prompt, rules = question
        window = text[slice(*span)]
        ids = await model.encode_async(instruction_messages(*prompt.question(window)))
        names = window if request.names_from_text else ""
        grammar = rules + await run_in_thread_if_long(len(window), name_rules, form, names)
        options = DECODING | {
            "structured_outputs": {"grammar": grammar}, "max_tokens": min(limit, model.context - len(ids)),
        }  # fmt: skip
        async with window_places:
            completion = await run_when_admitted(lambda: complete(raw_request, model, ids, **options))
        answer, is_complete = parse_partial_answer(completion.choices[0].text)
        return answer, is_complete, len(ids), completion.usage.completion_tokens

    results = await map_concurrently(ask, questions, CONCURRENT_WINDOWS)
    output_tokens = sum(tokens for _, _, _, tokens in results)
    prompt_tokens = sum(tokens for _, _, tokens, _ in results)
    raw_request.state.knowlm_usage = output_tokens + prompt_tokens  # read by --limit-tokens
    answers = [(span, answer) for (span, *_), (answer, *_) in zip(questions, results, strict=True)]
    found = await run_in_thread_if_long(len(text), merge_answers, task, text, form, types, answers)
    summary = {
        "complete": all(is_complete for _, is_complete, _, _ in results), "windows": len(spans),
        "num_output_tokens_cf": output_tokens, "error": None,
    }  # fmt: skip
    return JSONResponse(found | summary)


def extract_router(places: int) -> APIRouter:
    """Return a router with the route /extract; places: the size of the engine's queue."""
    router = APIRouter(route_class=envelope_route(ExtractAnswer, {"": ExtractRequest}))
    queue = ExtractQueue(places)

    @router.post("/extract/", response_model=None, include_in_schema=False)
    @router.post("/extract", response_model=None, responses=openapi_responses(ExtractAnswer))
    @from_vllm("with_cancellation")
    @from_vllm("load_aware_call")
    async def extract(request: ExtractRequest, raw_request: Request) -> Response:
        """Extract the items of a schema from a text, with their offsets."""
        with queue.admitted(raw_request.app.state.engine_client):  # a full queue is an error only on arrival
            return await extract_items(request, raw_request, queue.window_places)

    return router
