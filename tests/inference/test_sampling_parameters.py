"""sampling_parameters.py: names of Hugging Face become vLLM's names, and no parameter with an effect is ignored."""

from typing import Any

import pytest
from routes.generate_api import GenerateRequest
from routes.response_envelope import describe_validation_errors
from routes.sampling_parameters import DEFAULT_MAX_TOKENS, BeamSettings, Parameters, completion_fields


@pytest.mark.parametrize(
    ("parameters", "fields"),
    [
        ({}, {"max_tokens": DEFAULT_MAX_TOKENS}),
        ({"top_p": 0.7, "max_tokens": 256}, {"top_p": 0.7, "max_tokens": 256}),
        ({"max_new_tokens": 9, "num_beams": 1, "top_k": 0}, {"max_tokens": 9, "top_k": 0}),
        ({"max_new_tokens": 9, "max_tokens": 9}, {"max_tokens": 9}),
        ({"do_sample": False}, {"temperature": 0, "max_tokens": DEFAULT_MAX_TOKENS}),
        ({"do_sample": True, "temperature": 0.3}, {"temperature": 0.3, "max_tokens": DEFAULT_MAX_TOKENS}),
        ({"stop": ["\n"], "seed": None}, {"stop": ["\n"], "max_tokens": DEFAULT_MAX_TOKENS}),
    ],
)
def test_names_of_both_libraries_become_vllm_names(parameters: dict[str, Any], fields: dict[str, Any]) -> None:
    assert completion_fields(Parameters(**parameters), room=1000) == fields


def test_default_max_tokens_is_limited_by_the_context() -> None:
    assert completion_fields(Parameters(), room=40) == {"max_tokens": 40}


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_tokens": 1, "max_new_tokens": 2},
        {"do_sample": False, "temperature": 0.5},
        {"do_sample": True, "temperature": 0},
    ],
)
def test_contradicting_parameters_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(differ|contradicts temperature .*); give one of them$"):
        completion_fields(Parameters(**parameters), room=1000)


def test_unknown_parameters_are_listed_up_to_five_names() -> None:
    errors = [{"loc": ("body", "parameters", f"p{i}"), "type": "extra_forbidden", "msg": "Extra"} for i in range(50)]
    line, status = describe_validation_errors(errors, {"": GenerateRequest, "parameters": Parameters})
    assert status == 422
    assert line.startswith("unknown parameter p0, p1, p2, p3, p4; known: max_tokens, ")


def test_num_beams_selects_beam_search() -> None:
    fields = completion_fields(
        Parameters(num_beams=4, max_new_tokens=9, do_sample=False, length_penalty=0.5), room=1000
    )
    assert fields == BeamSettings(num_beams=4, max_tokens=9, length_penalty=0.5)
    published = Parameters(num_beams=4, repetition_penalty=1.3, max_new_tokens=512)
    assert completion_fields(published, room=1000) == BeamSettings(4, 512, 1.0, 1.3)


def test_beam_search_accepts_parameters_at_neutral_values() -> None:
    neutral = Parameters(num_beams=4, temperature=0, top_p=1, top_k=0, repetition_penalty=1, max_tokens=3)
    assert completion_fields(neutral, room=1000) == BeamSettings(num_beams=4, max_tokens=3)


@pytest.mark.parametrize(
    ("parameters", "stream", "message"),
    [
        ({"stop": ["x"]}, False, "would ignore stop;"),
        ({"repetition_penalty": 1.2, "top_p": 0.75, "top_k": 40}, False, "would ignore top_k, top_p;"),
        ({"repetition_penalty": 0.9}, False, "repetition_penalty is 0.9; with num_beams, give 1 or more"),
        ({"max_tokens": 1001}, False, "max_tokens is 1001; give 1 to 1000"),
        ({"max_tokens": 0}, False, "max_tokens is 0; give 1 to 1000"),
        ({"seed": 1}, False, "would ignore seed;"),
        ({"structured_outputs": {"regex": "a"}}, False, "would ignore structured_outputs;"),
        ({"do_sample": True}, False, "does not sample"),
        ({}, True, "cannot stream"),
    ],
)
def test_beam_search_refuses_parameters_that_it_would_ignore(
    parameters: dict[str, Any], stream: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        completion_fields(Parameters.model_validate({"num_beams": 2} | parameters), 1000, stream)


def test_length_penalty_without_beam_search_is_refused() -> None:
    with pytest.raises(ValueError, match="length_penalty is for beam search only"):
        completion_fields(Parameters(length_penalty=2.0), room=1000)
