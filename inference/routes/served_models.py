"""What the server knows of each model it answers for: the base, and every adapter served on it without merging.

The prompt format and the way to ask for an extraction travel with the weights, so an adapter's folder brings its own
tokenizer files, chat_template.jinja and extraction.json; what it lacks is the base's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from chat_prompts.prompt_encoding import Message, PromptEncoder
from extraction.extraction_form import read_extraction
from fastapi import Request
from server_launch.adapter_folders import check_adapter
from server_launch.adapter_prompts import adapter_prompt
from vllm_bridge.vllm_imports import part

from routes.response_envelope import STOPPED, RequestFailedError

HURRIED_CHARACTERS = 8192  # that are tokenised between two other requests (about a millisecond); more go to a thread


class Served(NamedTuple):
    """A model as requests name it."""

    name: str | None  # None: the base
    encoder: PromptEncoder
    extraction: dict[str, Any]  # its extraction.json, {} without one
    context: int  # tokens, of prompt and answer together
    longest: int  # characters of the longest piece of its vocabulary
    ends: list[int]  # ids that end its answers, besides the EOS of the engine's tokenizer

    def ids_now(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt; there is room for an answer behind them.

        Raises ValueError where there is not; a text that is far too long for the context is not even tokenised.
        """
        if (characters := length(messages)) > self.context * self.longest:
            raise ValueError(f"the text has {characters} characters, too many for a context of {self.context} tokens")
        ids = self.encoder.prompt(messages)
        if not 0 < len(ids) < self.context:
            raise ValueError(f"the prompt has {len(ids)} tokens, the context {self.context}; change its length")
        return ids

    async def ids(self, messages: Sequence[Message]) -> list[int]:
        """The same, among other requests: a long text does not keep them waiting."""
        return await unhurried(length(messages), self.ids_now, messages)

    def ending(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a CompletionRequest with what ends this model's answers.

        Raises ValueError where a beam search would not see their end.
        """
        if not self.ends or fields.get("ignore_eos"):
            return fields
        if fields.get("use_beam_search"):
            raise ValueError(
                "beam search knows the base's end token alone, not the one of this model's prompts; leave num_beams out"
            )
        return fields | {"stop_token_ids": [*fields.get("stop_token_ids", ()), *self.ends]}

    def text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Text of an answer's ids behind its prompt, as vLLM streams it: leading space kept, no half characters."""
        from tokenizers.decoders import DecodeStream

        words = self.encoder.tokenizer.backend_tokenizer
        stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        text = ""
        for index in ids:
            try:
                text += stream.step(words, index) or ""
            except Exception:  # bytes that are no text, behind bytes that were: the stream begins anew, as vLLM's does
                stream = DecodeStream(skip_special_tokens=True)
                text += stream.step(words, index) or ""
        return text


def length(messages: Sequence[Message]) -> int:
    """Characters of a conversation."""
    return sum(len(message["content"]) + len(message.get("input", "")) for message in messages)


async def unhurried(characters: int, work: Callable[..., Any], *values: Any) -> Any:
    """The result of `work`, done in a thread where it would keep other requests waiting."""
    return work(*values) if characters <= HURRIED_CHARACTERS else await asyncio.to_thread(work, *values)


class ServedModels:
    """All that can be named in a request. Adapters come and go at run time, so vLLM's own list of them is asked."""

    def __init__(self, base: Served, folder: str, models: Any) -> None:
        """folder: the base's; models: vLLM's OpenAIServingModels."""
        self.base, self.folder, self.models = base, folder, models
        self.adapters: dict[str, tuple[Any, Served]] = {}  # by name: what vLLM loaded, and what was made of it

    def names(self) -> list[str]:
        return [*(path.name for path in self.models.base_model_paths), *self.models.lora_requests]

    def known(self, name: str | None) -> Served | None:
        """The model of that name, the base without one; None where there is none, or an adapter not looked at yet."""
        if name is None or self.models.is_base_model(name):
            return self.base
        loaded, made = self.adapters.get(name, (None, None))
        return made if loaded is self.models.lora_requests.get(name) else None

    async def named(self, name: str) -> Served:
        """The adapter of that name, which is looked at first where it is new or was loaded again.

        Raises RequestFailedError (404) with the names there are, and ValueError or FileNotFoundError where an adapter
        that was loaded at run time cannot be asked.
        """
        loaded = self.models.lora_requests.get(name) or await self.looked_for(name)
        made = await asyncio.to_thread(self.with_adapter, name, loaded.lora_path)
        self.adapters[name] = loaded, made
        self.adapters = {name: each for name, each in self.adapters.items() if name in self.models.lora_requests}
        return made

    def unknown(self, name: str) -> RequestFailedError:
        return RequestFailedError(f"there is no model {name!r}; served: {', '.join(self.names())}", 404)

    def with_adapter(self, name: str, folder: str) -> Served:
        """The model that an adapter's folder makes of the base."""
        check_adapter(name, folder, self.folder)
        encoder, base = adapter_prompt(folder, self.base.encoder), self.base
        extraction = read_extraction(folder) or base.extraction
        return served(name, encoder, extraction, base.context, base.encoder.tokenizer)

    async def looked_for(self, name: str) -> Any:
        """What vLLM's resolvers find under a name that is not loaded; they look where the administrator told them to.

        The filesystem resolver joins a folder and the name, so a name may not lead out of that folder.
        """
        inside = not PurePath(name).is_absolute() and ".." not in PurePath(name).parts
        if part("envs").VLLM_ALLOW_RUNTIME_LORA_UPDATING and inside:
            found = await self.models.resolve_lora(name)
            if not isinstance(found, part("ErrorResponse")):
                return found
            if found.error.code != 404:
                raise RequestFailedError(found.error.message, found.error.code)
        raise self.unknown(name)


async def served_models(engine_client: Any, state: Any, args: Any) -> ServedModels:
    """The base and the adapters of --lora-modules, once the engine stands; ValueError where one cannot be asked."""
    tokenizer = engine_client.get_tokenizer()
    encoder = PromptEncoder(tokenizer, part("load_chat_template")(args.chat_template))
    context = engine_client.model_config.max_model_len
    extraction = read_extraction(args.model)
    base = served(None, encoder, extraction, context, tokenizer)
    models = ServedModels(base, args.model, state.openai_serving_models)
    for name in list(models.models.lora_requests):
        await models.named(name)
    return models


def served(
    name: str | None, encoder: PromptEncoder, extraction: dict[str, Any], context: int, engine_tokenizer: Any
) -> Served:
    """A model as requests name it; engine_tokenizer: the one on whose EOS vLLM stops by itself."""
    encoder.text_ids("")  # makes the encoder's copy of the tokenizer now rather than with the first request
    longest = max(map(len, encoder.tokenizer.get_vocab()))
    ends = [index for index in encoder.stop_ids if index != engine_tokenizer.eos_token_id]
    return Served(name, encoder, extraction, context, longest, ends)


async def model_named(request: Request, name: str | None) -> Served:
    """The model that a request names; raises as ServedModels.named does."""
    models: ServedModels = request.app.state.knowlm_models
    return models.known(name) or await models.named(name or "")


def completer() -> Callable[..., Awaitable[Any]]:
    """The function that asks vLLM's own handler of /v1/completions, whose validation and errors are ours too.

    It takes (request, model, prompt ids, **fields of CompletionRequest), gives a CompletionResponse or, with
    stream, an iterator of server-sent events, and raises RequestFailedError, and ValueError as Served.ending does.
    """
    completion_request, error_response = part("CompletionRequest"), part("ErrorResponse")

    async def complete(request: Request, model: Served, ids: list[int], **fields: Any) -> Any:
        asked = completion_request(model=model.name, prompt=ids, **model.ending(fields))
        result = await request.app.state.openai_serving_completion.create_completion(asked, request)
        if isinstance(result, error_response):
            if (task := asyncio.current_task()) and task.cancelling():  # vLLM makes an answer of it that nobody awaits
                raise asyncio.CancelledError
            raise RequestFailedError(result.error.message, result.error.code)
        if not fields.get("stream") and result.choices[0].finish_reason == "abort":
            raise RequestFailedError(STOPPED, 503)
        return result

    return complete
