"""Sampling parameters of requests: names of vLLM and of Hugging Face, mapped to vLLM's.

No parameter is ignored: unknown names, contradictions, and parameters that beam search does not use are errors.
"""

from math import inf
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from routes.request_body import JsonObject, Text, Texts, TokenIds

DEFAULT_MAX_TOKENS = 256
# Values without effect, which are accepted with beam search.
NEUTRAL_VALUES = {
    "temperature": (0, 1), "top_p": (1,), "top_k": (0, -1), "min_p": (0,),
    "presence_penalty": (0,), "frequency_penalty": (0,), "n": (1,), "min_tokens": (0,),
}  # fmt: skip


class BeamSettings(NamedTuple):
    """Settings of a beam search; both penalties have the same meaning as in transformers."""

    num_beams: int
    max_tokens: int
    length_penalty: float = 1.0  # a finished beam's score is divided by its number of new tokens to this power
    # factor (1 or more) of the log probability of tokens that the prompt or the beam already has
    repetition_penalty: float = 1.0
    ignore_eos: bool = False


class StructuredOutputs(BaseModel):
    """A constraint on the answer, in vLLM's format; exactly one field is given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_: JsonObject | None = Field(default=None, alias="json", description="a JSON schema")
    regex: Text | None = None
    choice: Texts | None = Field(default=None, min_length=1)
    grammar: Text | None = Field(default=None, description="EBNF")
    json_object: Literal[True] | None = Field(default=None, description="any JSON object")


class Parameters(BaseModel):
    """Sampling parameters. Absent or null: the checkpoint's default."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    max_tokens: int | None = Field(
        default=None,
        description=f"maximum number of tokens; default {DEFAULT_MAX_TOKENS}, at most the rest of the context",
    )
    min_tokens: int | None = None
    temperature: float | None = Field(default=None, description="0 is greedy")
    top_p: float | None = None
    top_k: int | None = Field(default=None, description="0 or -1: off")
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: Text | Texts | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: Texts | None = None
    allowed_token_ids: TokenIds | None = None
    logit_bias: dict[str, float] | None = None
    structured_outputs: StructuredOutputs | None = None
    n: Literal[1] | None = Field(default=None, description="only 1: the response has one answer")
    max_new_tokens: int | None = Field(default=None, description="the same as max_tokens")
    do_sample: bool | None = Field(default=None, description="false: temperature 0")
    num_beams: int | None = Field(default=None, ge=1, description="above 1: beam search")
    length_penalty: float | None = Field(
        default=None, ge=-100, le=100, description="beam search only; default 1; above 0 prefers longer answers"
    )


def completion_fields(parameters: Parameters, room: int, stream: bool = False) -> dict[str, Any] | BeamSettings:
    """Return the sampling parameters as fields of vLLM's CompletionRequest, or the settings of a beam search.

    room: tokens left in the context after the prompt. Raises ValueError if two parameters contradict each other, and
    for parameters that beam search does not use or whose value it cannot use.
    """
    fields = parameters.model_dump(exclude_none=True, by_alias=True)
    tokens = fields.pop("max_new_tokens", None)
    if tokens is not None and fields.setdefault("max_tokens", tokens) != tokens:
        raise ValueError(f"max_tokens {fields['max_tokens']} and max_new_tokens {tokens} differ; give one of them")
    beams = fields.pop("num_beams", 1)
    sample = fields.pop("do_sample", None)
    if sample is False and beams == 1 and fields.setdefault("temperature", 0) != 0:
        raise ValueError(f"do_sample false contradicts temperature {fields['temperature']}; give one of them")
    if sample is True and fields.get("temperature") == 0:
        raise ValueError("do_sample true contradicts temperature 0; give one of them")
    fields.setdefault("max_tokens", min(DEFAULT_MAX_TOKENS, room))
    if beams == 1:
        if "length_penalty" in fields:
            raise ValueError("length_penalty is for beam search only; remove it, or give num_beams above 1")
        return fields
    if stream:
        raise ValueError(
            "beam search cannot stream, since the best answer is known only at the end; remove stream or num_beams"
        )
    if sample:
        raise ValueError("beam search does not sample; remove do_sample or num_beams")
    used = {name: value for name, value in fields.items() if name in BeamSettings._fields}
    others = fields.keys() - used.keys()
    if ignored := sorted(name for name in others if fields[name] not in NEUTRAL_VALUES.get(name, ())):
        raise ValueError(f"beam search would ignore {', '.join(ignored)}; remove them or num_beams")
    if not 1 <= used["max_tokens"] <= room:
        raise ValueError(f"max_tokens is {used['max_tokens']}; give 1 to {room}, the rest of the context")
    if not 1 <= used.get("repetition_penalty", 1) < inf:
        raise ValueError(f"repetition_penalty is {used['repetition_penalty']}; with num_beams, give 1 or more")
    return BeamSettings(beams, **used)
