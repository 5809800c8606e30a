"""What the server knows of each model it answers for: the base, and every adapter served on it without merging.

The prompt format and the way to ask for an extraction travel with the weights, so an adapter's folder brings its own
tokenizer files, chat_template.jinja and extraction.json; what it lacks is the base's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from envelope import RequestFailedError
from extraction_form import read_extraction
from fastapi import Request
from prompt_ids import Message, Prompt
from vllm_imports import part

AT_ONCE = 8192  # characters that are tokenised between two other requests (about a millisecond); more go to a thread


class Served(NamedTuple):
    """A model as requests name it."""

    prompt: Prompt
    extraction: dict[str, Any]  # its extraction.json, {} without one
    context: int  # tokens, of prompt and answer together
    longest: int  # characters of the longest piece of its vocabulary

    async def ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the prompt; there is room for an answer behind them.

        Raises ValueError where there is not; a text that is far too long for the context is not even tokenised.
        """
        characters = sum(len(message["content"]) + len(message.get("input", "")) for message in messages)
        if characters > self.context * self.longest:
            raise ValueError(f"the text has {characters} characters, too many for a context of {self.context} tokens")
        ids = await unhurried(characters, self.prompt.ids, messages)
        if not 0 < len(ids) < self.context:
            raise ValueError(f"the prompt has {len(ids)} tokens, the context {self.context}; change its length")
        return ids

    def text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Text of an answer's ids behind its prompt, as vLLM streams it: leading space kept, no half characters."""
        from tokenizers.decoders import DecodeStream

        words = self.prompt.tokenizer.backend_tokenizer
        stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        return "".join(stream.step(words, index) or "" for index in ids)


async def unhurried(characters: int, work: Callable[..., Any], *values: Any) -> Any:
    """The result of `work`, done in a thread where it would keep other requests waiting."""
    return work(*values) if characters <= AT_ONCE else await asyncio.to_thread(work, *values)


def served_models(engine_client: Any, state: Any, args: Any) -> dict[str | None, Served]:
    """All that can be named in a request, the base also under None; adapters are those of vLLM's --lora-modules."""
    template = part("load_chat_template")(args.chat_template)
    context = engine_client.model_config.max_model_len

    def served(tokenizer: Any, template: str | None, folder: str) -> Served:
        longest = max(map(len, tokenizer.get_vocab()))
        return Served(Prompt(tokenizer, template), read_extraction(folder), context, longest)

    base = served(engine_client.get_tokenizer(), template, args.model)
    found: dict[str | None, Served] = {None: base}
    found |= {path.name: base for path in state.openai_serving_models.base_model_paths}
    for name, adapter in state.openai_serving_models.lora_requests.items():
        own = read_tokenizer(adapter.lora_path)
        words = own or base.prompt.tokenizer
        found[name] = served(words, template or words.chat_template or base.prompt.template, adapter.lora_path)
        if not found[name].extraction:
            found[name] = found[name]._replace(extraction=base.extraction)
    return found


def read_tokenizer(folder: str) -> Any:
    """The tokenizer in an adapter's folder, None where it has none."""
    if not any(Path(folder, name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def model_named(request: Request, name: str | None) -> Served:
    """The model that a request names; RequestFailedError (404) with the names there are."""
    models: dict[str | None, Served] = request.app.state.knowlm_models
    if name in models:
        return models[name]
    raise RequestFailedError(f"there is no model {name!r}; served: {', '.join(filter(None, models))}", 404)


def completer() -> Callable[..., Awaitable[Any]]:
    """The function that asks vLLM's own handler of /v1/completions, whose validation and errors are ours too.

    It takes (request, model's name, prompt ids, **fields of CompletionRequest), gives a CompletionResponse or, with
    stream, an iterator of server-sent events, and raises RequestFailedError.
    """
    completion_request, error_response = part("CompletionRequest"), part("ErrorResponse")

    async def complete(request: Request, model: str | None, ids: list[int], **fields: Any) -> Any:
        asked = completion_request(model=model, prompt=ids, **fields)
        result = await request.app.state.openai_serving_completion.create_completion(asked, request)
        if isinstance(result, error_response):
            raise RequestFailedError(result.error.message, result.error.code)
        if not fields.get("stream") and result.choices[0].finish_reason == "abort":
            raise RequestFailedError("the server was stopped before the answer was complete; ask again", 503)
        return result

    return complete
