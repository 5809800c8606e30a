"""Count and limit the work of a request: sequences, characters to tokenise, log probabilities to return, tokens.

Without these limits, one request can delay all others: vLLM computes prompts and sequences in the order of their
arrival, tokenises the texts of all requests in one thread (about 1 s per million characters), and creates the log
probabilities of a response on the event loop. During a request for 100 answers of 400 tokens with 256 log probabilities
per token, /health responded after 113 s.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, NamedTuple

from vllm_bridge.vllm_imports import from_vllm

MAX_CHARACTERS = 2**20  # of all texts of a request
MAX_LOG_PROBABILITIES = 2**16  # of a response
# A request may have this share of --max-num-seqs, but at least MIN_REQUEST_SEQUENCES, in the engine at the same time.
SEQUENCE_SHARE = 0.5
MIN_REQUEST_SEQUENCES = 16
# Multiple of --max-num-batched-tokens: maximum number of prompt tokens of one request in prompts without output.
PREFILL_FACTOR = 1
PREFILL_PAUSE = 0.005  # seconds between checks whether earlier prompts of the request have their first output
OVERFLOW_PAUSE = 0.05  # seconds between attempts to start a prompt that has waited for its turn, if the queue is full
# attribute of the application's state: method of this handler that supports beam search
BEAM_SEARCH_HANDLERS = {
    "openai_serving_completion": "create_completion", "openai_serving_chat": "create_chat_completion"
}  # fmt: skip


class Prompt(NamedTuple):
    """A prompt that waits to be started. tokens: prompt tokens to compute; sequences: number of answers."""

    request_id: str
    tokens: int
    sequences: int


@dataclass
class RequestCost:
    """Counts of one HTTP request over all its prompts and answers, and the sequences that it may still start."""

    max_sequences: int  # in the engine at the same time
    characters: int = 0
    log_probabilities: int = 0
    beam_log_probabilities: int = 0  # per token, in the response to a beam search
    prefilling: dict[str, int] = field(default_factory=dict)  # request id -> tokens of a prompt without output
    has_output: bool = False  # whether the engine has returned an output
    sequences: list[Any] = field(default_factory=list)  # vLLM's records of started sequences; see record_sequences

    @cached_property
    def free_sequences(self) -> asyncio.Semaphore:
        """Counts the sequences that the request may still start."""
        return asyncio.Semaphore(self.max_sequences)

    @cached_property
    def turn(self) -> asyncio.Lock:
        """Held by the prompt that starts next; otherwise two prompts could hold sequences that the other waits for."""
        return asyncio.Lock()

    @asynccontextmanager
    async def turn_of(self, prompt: Prompt, processor: Any, max_tokens: int) -> AsyncIterator[bool]:
        """Wait until a prompt may start, and hold its sequences until exit; yields whether it had to wait.

        processor: vLLM's OutputProcessor. max_tokens: maximum number of tokens of all prompts without output; a longer
        prompt waits until no other prompt is without output.
        """
        waits = self.turn.locked()
        taken = 0
        try:
            async with self.turn:
                for _ in range(prompt.sequences):
                    waits = waits or self.free_sequences.locked()
                    await self.free_sequences.acquire()
                    taken += 1
                while self.prefilling and self.prefilling_tokens(processor) + prompt.tokens > max_tokens:
                    waits = True
                    await asyncio.sleep(PREFILL_PAUSE)
                self.prefilling[prompt.request_id] = prompt.tokens
            yield waits
        finally:
            self.prefilling.pop(prompt.request_id, None)
            for _ in range(taken):
                self.free_sequences.release()

    def prefilling_tokens(self, processor: Any) -> int:
        """Return the number of tokens of all prompts that have been started and have no output yet."""
        for request_id in [*self.prefilling]:
            started = processor.external_req_ids.get(request_id, ())
            states = [processor.request_states[each] for each in started if each in processor.request_states]
            if states and not any(state.is_prefilling for state in states):
                del self.prefilling[request_id]
        return sum(self.prefilling.values())

    def add_text(self, text: str) -> None:
        """Count a text; raises vLLM's VLLMValidationError (status 400) above MAX_CHARACTERS."""
        self.characters += len(text)
        if self.characters > MAX_CHARACTERS:
            raise from_vllm("VLLMValidationError")(
                f"the texts of the request have more than {MAX_CHARACTERS} characters; send fewer or shorter texts "
                "(prompts of /generate and /extract are not counted)"
            )

    def add_log_probabilities(self, count: int) -> None:
        """Count log probabilities; raises vLLM's VLLMValidationError (status 400) above MAX_LOG_PROBABILITIES."""
        self.log_probabilities += count
        if self.log_probabilities > MAX_LOG_PROBABILITIES:
            raise from_vllm("VLLMValidationError")(
                f"the number of requested log probabilities is {self.log_probabilities}, more than "
                f"{MAX_LOG_PROBABILITIES}; send fewer prompts, or lower n, max_tokens (by default the rest of the "
                "context), logprobs or prompt_logprobs"
            )


current_cost: ContextVar[RequestCost | None] = ContextVar("current_cost", default=None)


def max_request_sequences(max_num_seqs: int) -> int:
    """Return the maximum number of sequences that one request may have in the engine at the same time."""
    return max(int(max_num_seqs * SEQUENCE_SHARE), MIN_REQUEST_SEQUENCES)


@contextmanager
def counted_cost(max_sequences: int) -> Iterator[RequestCost]:
    """Context manager that counts the cost of the request that this asyncio task and its children serve.

    max_sequences: maximum number of the request's sequences in the engine at the same time.
    """
    cost = RequestCost(max_sequences)
    token = current_cost.set(cost)
    try:
        yield cost
    finally:
        current_cost.reset(token)


def limit_texts() -> None:
    """Make vLLM count the characters of each text before the text is truncated and tokenised."""
    tokenize_params = from_vllm("TokenizeParams")
    check = tokenize_params._text_len_check

    def count_and_check(self: Any, tokenizer: Any, text: str) -> str:
        if cost := current_cost.get():
            cost.add_text(text)
        return check(self, tokenizer, text)

    tokenize_params._text_len_check = count_and_check


def prompt_ids(prompt: Any) -> Sequence[int]:
    """Return the token ids of a prompt (vLLM's EngineInput), an empty sequence if it consists of embeddings."""
    return prompt.get("prompt_token_ids") or () if isinstance(prompt, Mapping) else ()


def is_beam_step(params: Any) -> bool:
    """Return whether SamplingParams are those of one step of a beam search: one token, which is not detokenised.

    `detokenize` alone does not tell, since a request to /inference/v1/generate may set it to false.
    """
    return not params.detokenize and (params.n, params.max_tokens, params.prompt_logprobs) == (1, 1, None)


def count_log_probabilities(prompt: Any, params: Any, vocabulary: int, beam_step: int = 0) -> int:
    """Return the maximum number of log probabilities for a prompt in the response.

    prompt: vLLM's EngineInput; params: its SamplingParams; vocabulary: number of token ids, which replaces a value of
    -1; beam_step: result for a step of a beam search, which reads more log probabilities than the response has.
    """
    if is_beam_step(params):
        return beam_step
    tokens = params.n * (params.max_tokens or 0)
    wanted = [(params.num_logprobs, tokens), (params.prompt_logprobs, len(prompt_ids(prompt)))]
    return sum((vocabulary if each == -1 else each + 1) * count for each, count in wanted if each is not None)


def count_beam_log_probabilities(state: Any) -> None:
    """Make vLLM's handlers record the log probabilities per token that the response to a beam search has.

    state: the application's state, with vLLM's handlers. The engine is asked for 2 n log probabilities per step, even
    if the response has none.
    """

    def recording(create: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @wraps(create)
        async def record_and_create(request: Any, *args: Any, **kwargs: Any) -> Any:
            if (cost := current_cost.get()) and getattr(request, "use_beam_search", False):
                cost.beam_log_probabilities = returned_log_probabilities(request)
            return await create(request, *args, **kwargs)

        return record_and_create

    for name, method in BEAM_SEARCH_HANDLERS.items():
        if handler := getattr(state, name, None):
            setattr(handler, method, recording(getattr(handler, method)))


def returned_log_probabilities(request: Any) -> int:
    """Return the log probabilities per token in the response to a beam search.

    request: vLLM's CompletionRequest (logprobs: a number or None) or ChatCompletionRequest (logprobs: a bool).
    """
    if request.logprobs is None or request.logprobs is False:
        return 0
    wanted = (request.top_logprobs or 0) if request.logprobs is True else request.logprobs
    available = 2 * (request.n or 1)
    return 1 + (available if wanted == -1 else min(wanted, available))


def limit_generation(engine_client: Any) -> None:
    """Make vLLM's AsyncLLM apply the limits of RequestCost to each prompt.

    A request with too many log probabilities or characters of bad words gets status 400, and so does a prompt with more
    answers than the request may have sequences. A prompt waits while earlier prompts of its request use too many
    sequences or prompt tokens.
    """
    generate, vocabulary = engine_client.generate, engine_client.model_config.get_vocab_size()
    processor = engine_client.output_processor
    max_tokens = PREFILL_FACTOR * engine_client.vllm_config.scheduler_config.max_num_batched_tokens
    overflow = from_vllm("QueueOverflowError"), from_vllm("MaxQueuedTokensError")
    dead = from_vllm("EngineDeadError")

    async def check_and_generate(prompt: Any, sampling_params: Any, request_id: str, **more: Any) -> AsyncIterator[Any]:
        cost = current_cost.get() or RequestCost(sampling_params.n)
        if sampling_params.n > cost.max_sequences:
            raise from_vllm("VLLMValidationError")(
                f"n is {sampling_params.n}, but a request may have at most {cost.max_sequences} answers to a prompt "
                f"(half of --max-num-seqs, but at least {MIN_REQUEST_SEQUENCES}); lower n"
            )
        engine_client.renderer.validate_token_ids(prompt_ids(prompt))
        for word in sampling_params.bad_words or ():  # tokenised on the event loop
            cost.add_text(word)
        cost.add_log_probabilities(
            count_log_probabilities(prompt, sampling_params, vocabulary, cost.beam_log_probabilities)
        )
        # the engine's cache has the prefix of a beam, except for a few tokens
        tokens = 1 if is_beam_step(sampling_params) else len(prompt_ids(prompt))
        waiting = Prompt(request_id, tokens, sampling_params.n)
        async with cost.turn_of(waiting, processor, max_tokens) as has_waited:
            while True:
                async with aclosing(generate(prompt, sampling_params, request_id, **more)) as outputs:
                    try:
                        async for output in outputs:
                            cost.has_output = True
                            yield output
                        return
                    except overflow:  # raised before the first output
                        if not has_waited:
                            raise
                    except dead:  # vLLM raises the same object for all requests, and each would lengthen its traceback
                        raise dead() from None
                await asyncio.sleep(OVERFLOW_PAUSE)

    engine_client.generate = check_and_generate


def record_sequences(engine_client: Any) -> None:
    """Make vLLM's output processor record the sequences of each request, from which its tokens are counted.

    vLLM updates the record of a sequence until the sequence is finished or aborted, even after the client has
    disconnected.
    """
    processor = engine_client.output_processor
    add_request = processor.add_request

    def add_and_record(request: Any, *args: Any, **kwargs: Any) -> None:
        add_request(request, *args, **kwargs)
        if (cost := current_cost.get()) and (sequence := processor.request_states.get(request.request_id)):
            cost.sequences.append(sequence)

    processor.add_request = add_and_record


def tokens_used(state: dict[str, Any], sequences: list[Any]) -> int:
    """Return the number of tokens of a request, prompt and answer.

    state: the request's state, in which a handler may set `knowlm_usage` (tokens) or vLLM's `request_metadata`;
    sequences: RequestCost.sequences, which are used if the state has neither.
    """
    if (usage := state.get("knowlm_usage")) is not None:
        return usage
    if final := getattr(state.get("request_metadata"), "final_usage_info", None):
        return final.prompt_tokens + (final.completion_tokens or 0)
    return sum(
        each.prompt_len + (each.detokenizer.num_output_tokens() if each.detokenizer else 0) for each in sequences
    )


async def warm_up(engine_client: Any) -> None:
    """Generate a token with its log probability, at startup.

    vLLM compiles a function for the first log probability, during which the engine serves no request. Does nothing for
    models that do not generate text, and if a limit of the queue is 0.
    """
    if "generate" not in await engine_client.get_supported_tasks():
        return
    kind = from_vllm("RequestOutputKind").FINAL_ONLY
    params = from_vllm("SamplingParams")(max_tokens=1, logprobs=0, detokenize=False, output_kind=kind)
    with suppress(from_vllm("QueueOverflowError"), from_vllm("MaxQueuedTokensError")):
        async for _ in engine_client.generate(from_vllm("tokens_input")([0]), params, "warm-up"):
            pass
