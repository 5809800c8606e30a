"""How to decode: vLLM's parameter names and Hugging Face's for the same things, mapped to one set without loss.

Nothing that a caller names is ignored: unknown names, contradictions, and what beam search would not heed are errors.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_MAX_TOKENS = 256
# What vLLM 0.32's beam search heeds (vllm/entrypoints/generate/beam_search/online.py): it ranks by plain likelihood.
HEEDED_BY_BEAMS = {"max_tokens", "length_penalty", "ignore_eos"}
# Values that ask for nothing, so that beam search loses nothing with them.
NEUTRAL = {
    "temperature": (0, 1), "top_p": (1,), "top_k": (0, -1), "min_p": (0,), "repetition_penalty": (1,),
    "presence_penalty": (0,), "frequency_penalty": (0,), "n": (1,), "min_tokens": (0,),
}  # fmt: skip


class StructuredOutputs(BaseModel):
    """The form an answer must have; one of these, as vLLM takes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_: dict[str, Any] | None = Field(default=None, alias="json", description="a JSON schema")
    regex: str | None = None
    choice: list[str] | None = Field(default=None, min_length=1)
    grammar: str | None = Field(default=None, description="EBNF")
    json_object: Literal[True] | None = Field(default=None, description="any JSON object")


class Parameters(BaseModel):
    """How to decode. Absent or null: the checkpoint's default."""

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
    structured_outputs: StructuredOutputs | None = None
    n: Literal[1] | None = Field(default=None, description="the envelope holds one answer")
    max_new_tokens: int | None = Field(default=None, description="max_tokens")
    do_sample: bool | None = Field(default=None, description="false: temperature 0")
    num_beams: int | None = Field(default=None, ge=1, description="above 1: beam search")
    length_penalty: float | None = Field(default=None, description="of beam search; above 0 favours longer answers")


def sampling(parameters: Parameters, room: int, stream: bool = False) -> dict[str, Any]:
    """The decoding parameters as fields of vLLM's CompletionRequest.

    room: how many tokens the context has behind the prompt. Raises ValueError where two names contradict each other and
    where beam search is asked for something that it does not heed.
    """
    given = parameters.model_dump(exclude_none=True, by_alias=True)
    tokens = given.pop("max_new_tokens", None)
    if tokens is not None and given.setdefault("max_tokens", tokens) != tokens:
        raise ValueError(f"max_tokens {given['max_tokens']} and max_new_tokens {tokens} contradict; give one of them")
    beams = given.pop("num_beams", 1)
    sample = given.pop("do_sample", None)
    if sample is False and beams == 1 and given.setdefault("temperature", 0) != 0:
        raise ValueError(f"do_sample false and temperature {given['temperature']} contradict; give one of them")
    if sample is True and given.get("temperature") == 0:
        raise ValueError("do_sample true and temperature 0 contradict; give one of them")
    given.setdefault("max_tokens", min(DEFAULT_MAX_TOKENS, room))
    if beams > 1:
        return with_beams(given, beams, sample, stream)
    if "length_penalty" in given:
        raise ValueError("length_penalty is for beam search only; leave it out, or give num_beams")
    return given


def with_beams(given: dict[str, Any], beams: int, sample: bool | None, stream: bool) -> dict[str, Any]:
    """The fields of a beam search; ValueError on what it would ignore."""
    if stream:
        raise ValueError(
            "beam search cannot stream, since its best answer is known last; leave stream or num_beams out"
        )
    if sample:
        raise ValueError("beam search does not sample; leave do_sample or num_beams out")
    ignored = sorted(
        name for name, value in given.items() if name not in HEEDED_BY_BEAMS and value not in NEUTRAL.get(name, ())
    )
    if ignored:
        raise ValueError(f"beam search would ignore {', '.join(ignored)}; leave them or num_beams out")
    heeded = {name: value for name, value in given.items() if name in HEEDED_BY_BEAMS}
    return heeded | {"use_beam_search": True, "n": beams, "return_token_ids": True}
