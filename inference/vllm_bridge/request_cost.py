"""Count and bound the work of a request: sequences, text to tokenise, log probabilities to return, tokens.

vLLM computes prompts and sequences in the order of their arrival, tokenises the texts of all requests in one thread
(about 1 s per million characters), and creates the log probabilities of a response on the event loop: during a request
for 100 answers of 400 tokens with 256 log probabilities each, /health waited for 113 s.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from vllm_bridge.vllm_imports import from_vllm

MAX_CHARACTERS = 2**20  # of a request
MAX_LOG_PROBABILITIES = 2**16  # of a response
SEQUENCE_SHARE = 0.5  # largest share of --max-num-seqs for the sequences of one request
LEAST_SEQUENCES = 16  # lower limit of this share
PREFILL_SHARE = 1  # times --max-num-batched-tokens: prompt tokens of a request without a first output
PREFILL_PAUSE = 0.005  # seconds before a prompt looks again whether those before it have their first output
OVERFLOW_PAUSE = 0.05  # seconds before a prompt that has waited for its turn tries a full queue again


class Prompt(NamedTuple):
    """A prompt that waits to be started. tokens: prompt tokens to compute; sequences: number of answers."""

    request_id: str
    tokens: int
    sequences: int


@dataclass
class RequestCost:
    """Counts of one HTTP request over all its prompts and answers, and the sequences that it may still start."""

    most_sequences: int  # in the engine at the same time
    characters: int = 0
    log_probabilities: int = 0
    prefilling: dict[str, int] = field(default_factory=dict)  # request id -> tokens of a prompt without output
    has_output: bool = False  # whether the engine has returned an output
    sequences: list[Any] = field(default_factory=list)  # vLLM's records of started sequences; see record_sequences

    @cached_property
    def free_sequences(self) -> asyncio.Semaphore:
        """Counts the sequences that the request may still start."""
        return asyncio.Semaphore(self.most_sequences)

    @cached_property
    def turn(self) -> asyncio.Lock:
        """Held while a prompt waits for its sequences, so that two prompts do not wait for each other."""
        return asyncio.Lock()

    @asynccontextmanager
    async def turn_of(self, prompt: Prompt, processor: Any, most_tokens: int) -> AsyncIterator[bool]:
        """Wait until a prompt may start; yields whether it had to wait.

        processor: vLLM's OutputProcessor. most_tokens: of prompts without output, unless it is one prompt.
        """
        waits = self.turn.locked() or self.free_sequences.locked()
        taken = 0
        try:
            async with self.turn:
                for _ in range(prompt.sequences):
                    await self.free_sequences.acquire()
                    taken += 1
                while self.prefilling and self.prefilling_tokens(processor) + prompt.tokens > most_tokens:
                    waits = True
                    await asyncio.sleep(PREFILL_PAUSE)
                self.prefilling[prompt.request_id] = prompt.tokens
            yield waits
        finally:
            self.prefilling.pop(prompt.request_id, None)
            for _ in range(taken):
                self.free_sequences.release()

    def prefilling_tokens(self, processor: Any) -> int:
        """Return the tokens of the prompts that have been started and have no output yet."""
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
def counted_cost(sequences: int) -> Iterator[RequestCost]:
    """Count the cost of the request that this asyncio task and its children serve within the context.

    sequences: the most that the request may have in the engine at the same time.
    """
    cost = RequestCost(sequences)
    token = current_cost.set(cost)
    try:
        yield cost
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


def prompt_ids(prompt: Any) -> Sequence[int]:
    """Return the token ids of vLLM's EngineInput; none if it has embeddings."""
    return prompt.get("prompt_token_ids") or () if isinstance(prompt, Mapping) else ()


def is_beam_step(params: Any) -> bool:
    """Return whether SamplingParams are those of a step of vLLM's beam search: one token, which is not detokenised.

    Callers of /inference/v1/generate may send `detokenize` too.
    """
    return not params.detokenize and (params.n, params.max_tokens, params.prompt_logprobs) == (1, 1, None)


def count_log_probabilities(prompt: Any, params: Any, vocabulary: int) -> int:
    """Return the most log probabilities in the response to an engine request.

    prompt: vLLM's EngineInput; params: its SamplingParams; vocabulary: its size, for which -1 stands. A step of a beam
    search counts 0, since its response has no log probabilities.
    """
    if is_beam_step(params):
        return 0
    tokens = params.n * (params.max_tokens or 0)
    wanted = [(params.num_logprobs, tokens), (params.prompt_logprobs, len(prompt_ids(prompt)))]
    return sum((vocabulary if each == -1 else each + 1) * count for each, count in wanted if each is not None)


def bound_generation(engine_client: Any) -> None:
    """Make vLLM's AsyncLLM count the log probabilities and bad words of each prompt, and share its sequences.

    It runs no more sequences and prompt tokens of a request at a time than its share; the other prompts wait. A prompt
    with more answers than the share is an error (status 400).
    """
    generate, vocabulary = engine_client.generate, engine_client.model_config.get_vocab_size()
    processor = engine_client.output_processor
    most_tokens = PREFILL_SHARE * engine_client.vllm_config.scheduler_config.max_num_batched_tokens
    overflow = from_vllm("QueueOverflowError"), from_vllm("MaxQueuedTokensError")
    dead = from_vllm("EngineDeadError")

    async def bound_and_generate(prompt: Any, sampling_params: Any, request_id: str, **more: Any) -> AsyncIterator[Any]:
        cost = current_cost.get() or RequestCost(sampling_params.n)
        if sampling_params.n > cost.most_sequences:
            raise from_vllm("VLLMValidationError")(
                f"n is {sampling_params.n}, but a request may have at most {cost.most_sequences} answers (half of "
                f"--max-num-seqs, but at least {LEAST_SEQUENCES}); lower it"
            )
        engine_client.renderer.validate_token_ids(prompt_ids(prompt))
        for word in sampling_params.bad_words or ():  # tokenised on the event loop
            cost.add_text(word)
        cost.add_log_probabilities(count_log_probabilities(prompt, sampling_params, vocabulary))
        # the beams of a search have their prefixes in the cache, except for some tokens
        tokens = 1 if is_beam_step(sampling_params) else len(prompt_ids(prompt))
        waiting = Prompt(request_id, tokens, sampling_params.n)
        async with cost.turn_of(waiting, processor, most_tokens) as has_waited:
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
                    except dead:  # one object for all requests, whose traceback would grow with each of them
                        raise dead() from None
                await asyncio.sleep(OVERFLOW_PAUSE)

    engine_client.generate = bound_and_generate


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
