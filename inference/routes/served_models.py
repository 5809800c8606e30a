"""The models of a server: the base, and the adapters that are served on it without merging.

Prompt format and extraction instructions are stored with the weights: an adapter's folder can have its own tokenizer
files, chat_template.jinja and extraction.json. For each of them that is missing, the base's is used.
"""

import asyncio
from array import array
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from chat_prompts.prompt_encoding import Message, PromptEncoder
from extraction.extraction_form import read_extraction
from fastapi import HTTPException, Request
from server_launch.launch_adapters import adapter_prompt_encoder, check_served_adapter
from vllm_bridge.request_errors import unknown_model_message
from vllm_bridge.vllm_imports import from_vllm

from routes.concurrency import run_in_thread_if_long
from routes.response_envelope import STOPPED, shorten

MESSAGE_CHARACTERS = 64  # rendering a message takes as long as tokenising this many characters
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0  # seconds between attempts while the engine's queue is full
ENCODED_CHARACTERS = 2**12  # a longer text is encoded in parts of this length: offsets are copied while the GIL is held


class EngineBusyError(HTTPException):
    """Raised if the engine's queue is full; status 503."""


class ServedModel(NamedTuple):
    """A model that requests can name."""

    name: str | None  # None: the base
    encoder: PromptEncoder
    extraction: dict[str, Any]  # its extraction.json, {} without one
    context: int  # largest number of tokens of prompt and answer together
    longest_piece: int  # characters of the longest piece of its vocabulary
    end_ids: list[int]  # ids at which generation must stop and the engine does not stop by itself
    stop_ids: frozenset[int] = frozenset()  # all ids that end its answers

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of the prompt.

        Raises ValueError if the prompt is empty or leaves no room for an answer. A text with more characters than the
        context can hold is refused without being tokenised.
        """
        if len(messages) > self.context:
            raise ValueError(
                f"the conversation has {len(messages)} messages, the context {self.context} tokens; send fewer messages"
            )
        if (characters := text_length(messages)) > self.context * self.longest_piece:
            raise ValueError(
                f"the text has {characters} characters, too many for a context of {self.context} tokens; shorten it"
            )
        ids = self.encoder.prompt_ids(messages)
        if not ids:
            raise ValueError("the prompt has no tokens; send a text")
        if len(ids) >= self.context:
            raise ValueError(f"the prompt has {len(ids)} tokens, the context {self.context}; shorten the prompt")
        return ids

    async def encode_async(self, messages: Sequence[Message]) -> list[int]:
        """Return the result of `encode`; a long text is tokenised in a thread, so that it blocks no other request."""
        work = text_length(messages) + MESSAGE_CHARACTERS * len(messages)
        return await run_in_thread_if_long(work, self.encode, messages)

    def token_starts(self, text: str) -> Sequence[int]:
        """Return the offset of each token of a text, in characters; long texts are encoded in parts."""
        encoder = self.encoder.text_encoder
        starts = array("Q")
        for part in range(0, len(text), ENCODED_CHARACTERS):
            encoded = encoder.backend.encode(text[part : part + ENCODED_CHARACTERS], add_special_tokens=False)
            starts.extend(part + start for start, _ in encoded.offsets)
        return starts

    def decode(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text of an answer as vLLM streams it: with leading space, without an incomplete last character."""
        decode, prompt = self.encoder.tokenizer.backend_tokenizer.decode, list(prompt)
        return decode([*prompt, *ids]).removeprefix(decode(prompt)).rstrip("\ufffd")


def text_length(messages: Sequence[Message]) -> int:
    """Return the number of characters of a conversation."""
    return sum(len(message["content"]) + len(message.get("input", "")) for message in messages)


async def run_when_admitted(attempt: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Return the result of attempt(); try again while the engine's queue is full, until the caller is cancelled.

    Used for the parts of a request that has been admitted: after an error, its client could only repeat all parts.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            return await attempt()
        except (EngineBusyError, from_vllm("QueueOverflowError"), from_vllm("MaxQueuedTokensError")):
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


class ServedModels:
    """All models that a request can name. vLLM can load adapters at run time, so its list is read for each request."""

    def __init__(self, state: Any) -> None:
        """Read the base and the adapters of --lora-modules; raises ValueError if a model cannot be served.

        state: the application's state, with vLLM's engine_client (started) and openai_serving_models.
        """
        engine, args = state.engine_client, state.args
        self.folder, self.registry = args.model, state.openai_serving_models
        self.trust_remote_code = args.trust_remote_code
        tokenizer = engine.get_tokenizer()
        encoder = PromptEncoder(tokenizer, from_vllm("load_chat_template")(args.chat_template))
        context = engine.model_config.max_model_len
        eos = engine.model_config.try_get_generation_config().get("eos_token_id")
        self.engine_stops = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        self.base = make_served_model(None, encoder, read_extraction(args.model), context, self.engine_stops)
        self.adapters: dict[str, tuple[Any, ServedModel]] = {}  # name -> (vLLM's LoRARequest, model)
        for name in self.registry.lora_requests:
            self.get(name)

    def get(self, name: str | None) -> ServedModel:
        """Return the model with this name; the base for None.

        Reads the folder of an adapter that is new or that vLLM has reloaded. Raises HTTPException (status 404) for
        an unknown name, and ValueError or FileNotFoundError if the adapter cannot be served.
        """
        if name is None or self.registry.is_base_model(name):
            return self.base
        request = self.registry.lora_requests.get(name)
        if request is None:
            raise HTTPException(404, unknown_model_message(name, self.registry, self.folder))
        known, model = self.adapters.get(name, (None, None))
        if model is None or known is not request:
            folder, base = request.lora_path, self.base
            check_served_adapter(name, folder, self.folder)
            encoder = adapter_prompt_encoder(folder, base.encoder, self.trust_remote_code)
            extraction = read_extraction(folder) or base.extraction
            model = make_served_model(name, encoder, extraction, base.context, self.engine_stops)
            loaded = {key: each for key, each in self.adapters.items() if key in self.registry.lora_requests}
            self.adapters = loaded | {name: (request, model)}
        return model


def make_served_model(
    name: str | None, encoder: PromptEncoder, extraction: dict[str, Any], context: int, engine_stops: set[int]
) -> ServedModel:
    """Return a model that requests can name; engine_stops: ids at which the engine ends every answer."""
    encoder.text_ids("")  # copies the tokenizer now rather than with the first request
    longest = max(map(len, encoder.tokenizer.get_vocab()))
    ends = [index for index in encoder.stop_ids if index not in engine_stops]
    return ServedModel(name, encoder, extraction, context, longest, ends, frozenset(engine_stops.union(ends)))


async def complete(request: Request, model: ServedModel, ids: list[int], **fields: Any) -> Any:
    """Answer a prompt with vLLM's handler of /v1/completions; our routes share its validation.

    fields: fields of vLLM's CompletionRequest. Returns a CompletionResponse or, with stream, an asynchronous iterator
    of server-sent events. Raises HTTPException.
    """
    if model.end_ids and not fields.get("ignore_eos"):
        fields["stop_token_ids"] = [*fields.get("stop_token_ids", ()), *model.end_ids]
    body = from_vllm("CompletionRequest")(model=model.name, prompt=ids, **fields)
    result = await request.app.state.openai_serving_completion.create_completion(body, request)
    if isinstance(result, from_vllm("ErrorResponse")):
        if (task := asyncio.current_task()) and task.cancelling():  # vLLM returns a cancellation as an error
            raise asyncio.CancelledError
        is_busy = result.error.code == 503
        raise (EngineBusyError if is_busy else HTTPException)(result.error.code, shorten(result.error.message))
    if not fields.get("stream") and result.choices[0].finish_reason == "abort":
        raise HTTPException(503, STOPPED)
    return result
