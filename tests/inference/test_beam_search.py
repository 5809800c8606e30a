"""beam_search.py: the best answer equals that of transformers' beam search, token by token."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from routes.beam_search import Beam, beam_search, continuations
from routes.sampling_parameters import BeamSettings
from transformers import AutoModelForCausalLM

PROMPTS = ([1, 40, 77, 300, 77, 5], [1, 612, 613, 40])
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    """Return the tiny model in float32 with sharper distributions, so that beams differ in length and order."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    with torch.no_grad():
        loaded.lm_head.weight *= 8
    return loaded


def transformers_answer(model: Any, prompt: list[int], ends: list[int] | None, settings: BeamSettings) -> list[int]:
    """Return the new token ids of transformers' best beam, without padding."""
    ids = torch.tensor([prompt])  # (1, tokens) int64
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=settings.num_beams, max_new_tokens=settings.max_tokens,
        do_sample=False, length_penalty=settings.length_penalty, repetition_penalty=settings.repetition_penalty,
        eos_token_id=ends, pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    at = next((at for at, token in enumerate(out) if token in (ends or [])), len(out) - 1)
    return out[: at + 1]


def engine_of(model: Any, prompt: list[int]) -> Any:
    """Return a function that returns the most likely next tokens of beams, as the server's engine does."""

    async def next_tokens(beams: Sequence[Beam], wanted: Sequence[int]) -> list[Mapping[int, float]]:
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + beam.ids for beam in beams])).logits[:, -1]  # (beams, vocabulary)
        tops = [row.topk(count) for row, count in zip(logits.log_softmax(-1), wanted, strict=True)]
        return [dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)) for top in tops]

    return next_tokens


# beams, repetition penalty, length penalty; the first is the published general decoding
SETTINGS = [(4, 1.3, 1.0), (3, 1.6, 1.0), (2, 1.0, 1.0), (3, 1.3, 0.0), (3, 1.1, -1.0), (4, 1.0, 2.0)]


@pytest.mark.integration
@pytest.mark.parametrize("prompt", PROMPTS)
def test_answers_equal_transformers(model: Any, prompt: list[int]) -> None:
    """Without end tokens, with one, and with two; the end tokens are taken from the answer without end tokens."""
    lengths = set()
    for beams, penalty, length_penalty in SETTINGS:
        settings = BeamSettings(beams, NEW_TOKENS, length_penalty, penalty)
        whole = transformers_answer(model, prompt, None, settings)
        for ends in ([], [whole[5]], [whole[9], whole[12]]):
            expected = transformers_answer(model, prompt, ends or None, settings)
            found = asyncio.run(beam_search(prompt, settings, ends, model.config.vocab_size, engine_of(model, prompt)))
            assert found == expected, settings
            lengths.add(len(found))
    assert len(lengths) > 2


def test_search_that_needs_more_log_probabilities_than_the_server_returns_is_refused() -> None:
    """The penalty doubles the log probabilities of tokens 7 and 8, so a token that is not in `found` may be better."""
    found = [{7: -0.5, 8: -1.0}]
    assert [beam.ids for beam in continuations([1], [Beam([], 0.0)], found, 2.0, 2)] == [[7], [8]]
    with pytest.raises(ValueError, match="needs more than --max-logprobs log probabilities per step"):
        continuations([7, 8], [Beam([], 0.0)], found, 2.0, 2)
    with pytest.raises(ValueError, match="num_beams 11 needs 22 log probabilities"):
        asyncio.run(beam_search([1], BeamSettings(11, 3), [], 20, None))  # type: ignore[arg-type]
