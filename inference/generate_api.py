"""POST /generate: an instruction in, the answer in one envelope out, served by vLLM beside its own routes.

    {"instruction": "…", "input": "…", "parameters": {"top_p": 0.7, "max_tokens": 256}}
    {"generated_text": "…", "num_output_tokens_cf": 17, "error": null}

vLLM loads GenerateEndpoint as an endpoint plugin: knowlm_inference-1.dist-info names it, launch_vllm.py allows it in
VLLM_PLUGINS. The prompt is rendered by the checkpoint's chat template and handed on as token ids, so that BOS stands
once and the template sees the input; sampling, batching and their errors are those of vLLM's /v1/completions.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from vllm_imports import part

DEFAULT_MAX_TOKENS = 256
GUARDS = tuple(map(chr, range(0xFDD0, 0xFDF0)))  # Unicode noncharacters: never part of a text that is meant as text
TAKES_INPUT = re.compile(r"""\.input\b|["']input["']""")  # message.input, message["input"], message.get("input")
SHOWN = 5  # errors told at once

logger = logging.getLogger(__name__)


class Parameters(BaseModel):
    """How to decode: vLLM's names, and Hugging Face's for the same things. Absent or null: the checkpoint's default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    max_tokens: int | None = Field(default=None, description=f"at most; {DEFAULT_MAX_TOKENS}, or what the context has")
    min_tokens: int | None = None
    temperature: float | None = Field(default=None, description="0 is greedy")
    top_p: float | None = None
    top_k: int | None = Field(default=None, description="0 or -1: off")
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    logit_bias: dict[str, float] | None = None
    n: Literal[1] | None = Field(default=None, description="the envelope holds one answer")
    max_new_tokens: int | None = Field(default=None, description="max_tokens")
    do_sample: bool | None = Field(default=None, description="false: temperature 0")
    num_beams: Literal[1] | None = Field(default=None, description="beam search is not served")


def well_formed(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair; send whole characters") from None
    return text


Text = Annotated[str, AfterValidator(well_formed)]


class GenerateRequest(BaseModel):
    """Body of /generate."""

    model_config = ConfigDict(extra="forbid", strict=True)

    instruction: Text
    input: Text | None = ""
    parameters: Parameters | None = None


class GenerateAnswer(BaseModel):
    """Answer of /generate, in success and in failure."""

    generated_text: str = ""
    num_output_tokens_cf: int = Field(default=0, description="tokens generated for this answer, the end token included")
    error: str | None = None


def sampling(parameters: Parameters, room: int) -> dict[str, Any]:
    """The decoding parameters under vLLM's names; `room` is how many tokens the context has behind the prompt.

    Raises ValueError where two names contradict each other.
    """
    given = parameters.model_dump(exclude_none=True)
    given.pop("num_beams", None)
    tokens = given.pop("max_new_tokens", None)
    if tokens is not None and given.setdefault("max_tokens", tokens) != tokens:
        raise ValueError(f"max_tokens {given['max_tokens']} and max_new_tokens {tokens} contradict; give one of them")
    sample = given.pop("do_sample", None)
    if sample is False and given.setdefault("temperature", 0) != 0:
        raise ValueError(f"do_sample false and temperature {given['temperature']} contradict; give one of them")
    if sample is True and given.get("temperature") == 0:
        raise ValueError("do_sample true and temperature 0 contradict; give one of them")
    given.setdefault("max_tokens", min(DEFAULT_MAX_TOKENS, room))
    return given


class Prompt:
    """Turns an instruction and its input into token ids, in the checkpoint's (or the given) chat template.

    A control token's spelling in the user's text never becomes the control token: before the template is rendered a
    guard character breaks each such spelling up, and afterwards only what the template itself wrote still matches.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        """tokenizer: of transformers; template: Jinja source that overrides the tokenizer's own."""
        self.tokenizer = tokenizer
        self.template = template or tokenizer.chat_template
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        longest_first = sorted(set(special), key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.control_ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}

    def ids(self, instruction: str, input: str = "") -> list[int]:
        """Token ids of the prompt, BOS included where the template (or, without one, the tokenizer) has it.

        Raises ValueError where the template cannot render the message or would drop the input.
        """
        if not self.template:
            bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            return bos + self.text_ids(f"{instruction}\n{input}" if input else instruction)
        if input and not TAKES_INPUT.search(str(self.template)):
            raise ValueError("this checkpoint's chat template takes no input; put it into the instruction")
        guard = next((guard for guard in GUARDS if guard not in instruction and guard not in input), None)
        if guard is None:
            raise ValueError("the text holds every one of the noncharacters U+FDD0 to U+FDEF; take one out")

        def guarded(text: str) -> str:
            return self.control.sub(lambda found: found[0][0] + guard + found[0][1:], text)

        rendered = self.render(guarded(instruction), guarded(input))
        ids: list[int] = []
        start = 0
        for found in self.control.finditer(rendered):
            ids += self.text_ids(rendered[start : found.start()].replace(guard, ""))
            ids.append(self.control_ids[found[0]])
            start = found.end()
        return ids + self.text_ids(rendered[start:].replace(guard, ""))

    def render(self, instruction: str, input: str) -> str:
        message = {"role": "user", "content": instruction, "input": input}
        try:
            return self.tokenizer.apply_chat_template(
                [message], chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # jinja2's errors, and whatever a template's own expressions raise
            raise ValueError(f"the chat template cannot render the message: {' '.join(str(error).split())}") from error

    def text_ids(self, text: str) -> list[int]:
        if not text:
            return []
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


def complaint(errors: Sequence[Any]) -> tuple[str, int]:
    """pydantic's list of errors as one line and the HTTP status that fits: 400 for what is no JSON, else 422."""
    said: list[str] = []
    unknown: dict[str, list[str]] = {"field": [], "parameter": []}
    for error in errors:
        place = [str(step) for step in error["loc"] if step != "body"]
        if error["type"] == "json_invalid":
            return f"the body is no JSON: {error['ctx']['error']} at character {error['loc'][-1]}", 400
        if error["type"] == "extra_forbidden":
            unknown["parameter" if len(place) > 1 else "field"].append(place[-1])
        elif not place:
            said.append('the body must be an object such as {"instruction": "…", "input": "…", "parameters": {}}')
        else:
            fault = error["msg"].removeprefix("Value error, ")
            said.append(f"{'.'.join(place[:2])}: {fault[0].lower()}{fault[1:]}")
    for kind, model in (("field", GenerateRequest), ("parameter", Parameters)):
        if unknown[kind]:
            said.append(f"unknown {kind} {', '.join(unknown[kind][:SHOWN])}; known: {', '.join(model.model_fields)}")
    return "; ".join(said[:SHOWN]), 422


def failure(message: str, status: int) -> JSONResponse:
    return JSONResponse(GenerateAnswer(error=message).model_dump(), status_code=status)


class EnvelopeRoute(APIRoute):
    """A route whose errors, whoever raises them, are answered in the envelope."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
            if media_type != "application/json":
                return failure(f"the content type is {media_type or 'missing'}; send application/json", 415)
            try:
                return await handler(request)
            except (RequestValidationError, ValidationError) as error:
                return failure(*complaint(error.errors()))
            except HTTPException as error:
                return failure(str(error.detail), error.status_code)
            except Exception as error:
                said = part("create_error_response")(error).error
                if said.code >= 500:
                    logger.exception("POST %s failed", request.url.path)
                return failure(said.message, said.code)

        return answer


def router() -> APIRouter:
    """The route of /generate; its decorators end the work when the client hangs up and count the server's load."""
    routes = APIRouter(route_class=EnvelopeRoute)
    completion_request, error_response = part("CompletionRequest"), part("ErrorResponse")

    @routes.post("/generate", response_model=None, responses={200: {"model": GenerateAnswer}})
    @part("with_cancellation")
    @part("load_aware_call")
    async def generate(request: GenerateRequest, raw_request: Request) -> Response:
        """Answer an instruction, with its input, under the checkpoint's prompt template."""
        state = raw_request.app.state
        ids = state.knowlm_prompt.ids(request.instruction, request.input or "")
        room = state.knowlm_context - len(ids)
        if not ids or room < 1:
            raise ValueError(f"the prompt has {len(ids)} tokens, the context {state.knowlm_context}; change its length")
        completion = completion_request(prompt=ids, **sampling(request.parameters or Parameters(), room))
        result = await state.openai_serving_completion.create_completion(completion, raw_request)
        if isinstance(result, error_response):
            return failure(result.error.message, result.error.code)
        answer = GenerateAnswer(
            generated_text=result.choices[0].text, num_output_tokens_cf=result.usage.completion_tokens
        )
        return JSONResponse(answer.model_dump())

    return routes


class GenerateEndpoint:
    """vLLM's endpoint plugin (vllm.plugins.endpoint_plugins.interface): the route, and what it needs for prompts."""

    name = "knowlm_generate"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router())

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Called once the engine stands; args: the server's command line."""
        template = part("load_chat_template")(args.chat_template)
        state.knowlm_prompt = Prompt(engine_client.get_tokenizer(), template)
        state.knowlm_context = engine_client.model_config.max_model_len
