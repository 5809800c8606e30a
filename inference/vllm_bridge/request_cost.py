"""Bound the work of a request that its bytes do not bound: sequences, text to tokenise, log probabilities to return.

vLLM serves sequences in the order of their arrival, tokenises the texts of all requests in one thread (about 1 s per
million characters), and creates the log probabilities of a response on the event loop (about 4 µs each): a request with
100 answers of 400 tokens and 256 log probabilities per token kept every other request waiting for minutes.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vllm_bridge.vllm_imports import from_vllm

MAX_CHARACTERS = 2**20
MAX_LOG_PROBABILITIES = 2**16
SEQUENCE_SHARE = 0.5  # of --max-num-seqs that the sequences of one request may take
OVERFLOW_PAUSE = 0.05  # seconds until a prompt that has waited for its turn tries a full queue again
LEAST_SEQUENCES = 16  # that one request may have in the engine even if its share is smaller


@dataclass
class RequestCost:
    """The text and the log probabilities that an HTTP request has asked for so far, in all its prompts and answers."""

    most_sequences: int
    characters: int = 0
    log_probabilities: int = 0

    @cached_property
    def free_sequences(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self.most_sequences)

    @cached_property
    def turn(self) -> asyncio.Lock:
        """Held while a prompt waits for its sequences, so that two prompts do not wait for each other."""
        return asyncio.Lock()

    @asynccontextmanager
    async def sequences(self, count: int) -> AsyncIterator[bool]:
        """Wait until the request may have `count` more sequences in the engine; yields whether it had to wait."""
        waits = self.turn.locked() or self.free_sequences.locked()
        taken = 0
        try:
            async with self.turn:
                for _ in range(count):
                    await self.free_sequences.acquire()
                    taken += 1
            yield waits
        finally:
            for _ in range(taken):
                self.free_sequences.release()

    def add_text(self, text: str) -> None:
        """Count a text; raises vLLM's VLLMValidationError (status 400) above MAX_CHARACTERS."""
        self.characters += len(text)
        if self.characters > MAX_CHARACTERS:
            raise from_vllm("VLLMValidationError")(
                f"the text has more than {MAX_CHARACTERS} characters; send less at once, or to /generate or /extract"
            )

    def add_log_probabilities(self, count: int) -> None:
        """Count log probabilities; raises vLLM's VLLMValidationError (status 400) above MAX_LOG_PROBABILITIES."""
        self.log_probabilities += count
        if self.log_probabilities > MAX_LOG_PROBABILITIES:
            raise from_vllm("VLLMValidationError")(
                f"answers x tokens x log probabilities per token is {self.log_probabilities}, more than "
                f"{MAX_LOG_PROBABILITIES}; lower n, max_tokens (by default the rest of the context) or logprobs"
            )


current_cost: ContextVar[RequestCost | None] = ContextVar("current_cost", default=None)


def most_sequences(max_num_seqs: int) -> int:
    """Return the most sequences that one request may have in an engine of `max_num_seqs` at the same time."""
    return max(int(max_num_seqs * SEQUENCE_SHARE), LEAST_SEQUENCES)


@contextmanager
def counted_cost(sequences: int) -> Iterator[None]:
    """Count the cost of what this asyncio task and its children ask for within the context.

    sequences: the most that it may have in the engine at the same time.
    """
    token = current_cost.set(RequestCost(sequences))
    try:
        yield
    finally:
        current_cost.reset(token)


def bound_texts() -> None:
    """Make vLLM count every text before it tokenises it, also where it truncates long prompts."""
    tokenize_params = from_vllm("TokenizeParams")
    check = tokenize_params._text_len_check

    def count_and_check(self: Any, tokenizer: Any, text: str) -> str:
        if cost := current_cost.get():
            cost.add_text(text)
        return check(self, tokenizer, text)

    tokenize_params._text_len_check = count_and_check


def is_beam_step(params: Any) -> bool:
    """Return whether SamplingParams are those of a step of vLLM's beam search: one token, which is not detokenised.

    Callers of /inference/v1/generate may send `detokenize` too.
    """
    return not params.detokenize and (params.n, params.max_tokens, params.prompt_logprobs) == (1, 1, None)


def count_log_probabilities(prompt: Any, params: Any, vocabulary: int) -> int:
    """Return the most log probabilities in the response to an engine request.

    prompt: vLLM's EngineInput; params: its SamplingParams; vocabulary: number of tokens, which -1 stands for. The steps
    of a beam search count 0, since its response has no log probabilities.
    """
    if is_beam_step(params):
        return 0
    tokens = prompt.get("prompt_token_ids") or () if isinstance(prompt, Mapping) else ()
    wanted = [(params.num_logprobs, params.n * (params.max_tokens or 0)), (params.prompt_logprobs, len(tokens))]
    return sum((vocabulary if each == -1 else each + 1) * count for each, count in wanted if each is not None)


def bound_generation(engine_client: Any) -> None:
    """Make vLLM's AsyncLLM count the log probabilities and bad words of each prompt, and share its sequences.

    It starts no more sequences of a request than its share; the other prompts wait. A prompt with more answers than the
    share is an error.
    """
    generate, vocabulary = engine_client.generate, engine_client.model_config.get_vocab_size()
    overflow = from_vllm("QueueOverflowError"), from_vllm("MaxQueuedTokensError")

    async def bound_and_generate(prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        cost = current_cost.get() or RequestCost(sampling_params.n)
        if sampling_params.n > cost.most_sequences:
            raise from_vllm("VLLMValidationError")(
                f"n is {sampling_params.n}, a request may have {cost.most_sequences} answers at once (half of "
                f"--max-num-seqs, but at least {LEAST_SEQUENCES}); lower it"
            )
        for word in sampling_params.bad_words or ():  # tokenised on the event loop
            cost.add_text(word)
        cost.add_log_probabilities(count_log_probabilities(prompt, sampling_params, vocabulary))
        async with cost.sequences(sampling_params.n) as has_waited:
            while True:
                async with aclosing(generate(prompt, sampling_params, *args, **kwargs)) as outputs:
                    try:
                        async for output in outputs:
                            yield output
                        return
                    except overflow:  # raised before the first output
                        if not has_waited:
                            raise
                await asyncio.sleep(OVERFLOW_PAUSE)

    engine_client.generate = bound_and_generate


async def warm_up(engine_client: Any) -> None:
    """Generate a token with its log probability: vLLM compiles a function for the first one, and the engine waits.

    Does nothing for models that do not generate, and if the limits of the queue are 0.
    """
    if "generate" not in await engine_client.get_supported_tasks():
        return
    kind = from_vllm("RequestOutputKind").FINAL_ONLY
    params = from_vllm("SamplingParams")(max_tokens=1, logprobs=0, detokenize=False, output_kind=kind)
    with suppress(from_vllm("QueueOverflowError"), from_vllm("MaxQueuedTokensError")):
        async for _ in engine_client.generate(from_vllm("tokens_input")([0]), params, "warm-up"):
            pass
