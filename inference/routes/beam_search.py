"""Beam search with transformers' scores; the engine computes the log probabilities of the next tokens.

vLLM 0.32's own beam search ignores repetition_penalty and all end tokens but one, and divides a beam's score by the
length of prompt and answer together, so published decoding settings give other answers. This search follows
GenerationMixin._beam_search of transformers 5.19 (early_stopping False). Each step sends the beams as prompts for one
token, as vLLM's own search does; the engine keeps their prefixes in its cache.
"""

import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from heapq import nlargest
from math import inf
from operator import attrgetter
from typing import NamedTuple

from fastapi import HTTPException, Request
from vllm_bridge.vllm_imports import from_vllm

from routes.concurrency import run_together
from routes.response_envelope import STOPPED
from routes.sampling_parameters import BeamSettings
from routes.served_models import ServedModel, run_when_admitted


class Beam(NamedTuple):
    """An answer so far. score: the sum of its log probabilities, with the penalty."""

    ids: list[int]
    score: float


# (beams, number of tokens wanted for each beam) -> for each beam, its most likely next tokens with log probabilities
NextTokens = Callable[[Sequence[Beam], Sequence[int]], Awaitable[Sequence[Mapping[int, float]]]]


def continuations(
    prompt: Sequence[int], beams: Sequence[Beam], found: Sequence[Mapping[int, float]], penalty: float, count: int
) -> list[Beam]:
    """Return the `count` best continuations of all beams by one token, best first.

    found: for each beam, log probabilities of its most likely next tokens, before the penalty; penalty: 1 or more.
    Raises ValueError if a continuation by a token that is not in `found` could be one of the best.
    """
    candidates, not_found = [], -inf  # not_found: upper bound of the scores of tokens that are not in `found`
    for beam, next_tokens in zip(beams, found, strict=True):
        present = {*prompt, *beam.ids}
        candidates += [
            (beam.score + value * (penalty if token in present else 1), token, beam)
            for token, value in next_tokens.items()
        ]
        not_found = max(not_found, beam.score + min(next_tokens.values()))
    best = nlargest(count, candidates, key=lambda candidate: candidate[0])
    if best[-1][0] < not_found:
        raise ValueError(
            f"beam search with repetition_penalty {penalty} needs more than --max-logprobs log probabilities per step; "
            "restart the server with a larger value, or lower num_beams"
        )
    return [Beam([*beam.ids, token], score) for score, token, beam in best]


async def beam_search(
    prompt: Sequence[int], settings: BeamSettings, stop_ids: Collection[int], max_logprobs: int, next_tokens: NextTokens
) -> list[int]:
    """Return the token ids of the best answer, its end token included.

    stop_ids: tokens that end an answer; max_logprobs: maximum number of log probabilities that next_tokens can return
    for a beam. Raises ValueError if the search needs more.
    """
    ends = set() if settings.ignore_eos else {*stop_ids}
    beams, finished = [Beam([], 0.0)], []  # finished: scores are divided by the length
    count = max(2, 1 + len(ends)) * settings.num_beams
    if count > max_logprobs:
        raise ValueError(
            f"num_beams {settings.num_beams} needs {count} log probabilities per step, more than --max-logprobs "
            f"{max_logprobs}; restart the server with a larger value, or lower num_beams"
        )
    for length in range(1, settings.max_tokens + 1):
        present = [len({*prompt, *beam.ids}) if settings.repetition_penalty != 1 else 0 for beam in beams]
        found = await next_tokens(beams, [min(count + tokens, max_logprobs) for tokens in present])
        best = continuations(prompt, beams, found, settings.repetition_penalty, count)
        is_last = length == settings.max_tokens
        finished += [
            Beam(beam.ids, beam.score / length**settings.length_penalty)
            for beam in best[: settings.num_beams]
            if is_last or beam.ids[-1] in ends
        ]
        finished = nlargest(settings.num_beams, finished, key=attrgetter("score"))
        beams = [beam for beam in best if beam.ids[-1] not in ends][: settings.num_beams]
        is_full = len(finished) == settings.num_beams
        if is_full and beams[0].score / length**settings.length_penalty <= finished[-1].score:
            break
    return finished[0].ids


async def search_answer(request: Request, model: ServedModel, prompt: list[int], settings: BeamSettings) -> list[int]:
    """Search with the server's engine; return the token ids of the best answer to a prompt, its end token included.

    Raises ValueError for settings that the server does not support, vLLM's exceptions if its queue is full, and
    HTTPException if the engine fails or is stopped.
    """
    engine, state = request.app.state.engine_client, request.state
    if "logits" in (mode := engine.model_config.logprobs_mode):
        raise ValueError(
            f"beam search needs log probabilities, but the server has --logprobs-mode {mode}; remove num_beams, or "
            "restart the server without this option"
        )
    queue = request.app.state.args.max_num_queued_reqs
    if settings.num_beams > queue:
        raise ValueError(
            f"num_beams is {settings.num_beams}, the server accepts {queue} sequences at once; lower num_beams"
        )
    engine.check_admission(settings.num_beams)  # a full queue is an error now; later steps wait for room
    adapter = request.app.state.openai_serving_models.lora_requests.get(model.name)
    make_params, kind = from_vllm("SamplingParams"), from_vllm("RequestOutputKind").FINAL_ONLY
    state.knowlm_usage = len(prompt)  # read by --limit-tokens, also if the client disconnects

    async def next_of(beam: Beam, wanted: int) -> dict[int, float]:
        ids = from_vllm("tokens_input")([*prompt, *beam.ids])
        params = make_params(max_tokens=1, temperature=0, logprobs=wanted, detokenize=False, output_kind=kind)
        async for output in engine.generate(ids, params, f"beam-{uuid.uuid4().hex}", lora_request=adapter):
            completion = output.outputs[0]
        if completion.finish_reason == "abort":
            raise HTTPException(503, STOPPED)
        if not completion.logprobs:
            raise HTTPException(500, "the engine failed; see the server's log")
        state.knowlm_usage += 1
        return {token: entry.logprob for token, entry in completion.logprobs[0].items()}

    async def next_tokens(beams: Sequence[Beam], wanted: Sequence[int]) -> list[dict[int, float]]:
        steps = [partial(next_of, *each) for each in zip(beams, wanted, strict=True)]
        return await run_together(map(run_when_admitted, steps))

    max_logprobs = engine.model_config.max_logprobs
    limit = engine.model_config.get_vocab_size() if max_logprobs == -1 else max_logprobs
    return await beam_search(prompt, settings, model.stop_ids, limit, next_tokens)
