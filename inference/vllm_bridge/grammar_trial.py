"""Try a constraint as vLLM's engine would use it: convert it, compile it, and generate a random answer with it.

vLLM's engine has one backend, which compiles the constraints of all requests: the backend of the first constrained
request. With the setting "auto", vLLM also accepts constraints that only another backend than xgrammar supports, and
fails to compile them if its backend is xgrammar. Such constraints are therefore refused here.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from grammar_checks.unicode_classes import expand_unicode_classes

from vllm_bridge.vllm_imports import from_vllm

TRIAL_TOKENS = 512
MAX_CONVERSION_SECONDS = 0.2  # processor time; vLLM converts a constraint on the event loop
MAX_STEP_SECONDS = 0.03  # processor time; a slow computation of the allowed tokens delays all requests
LOG_PREFIX = re.compile(r"\[[\d:]+\] \S+:\d+: ")  # time and source line in xgrammar's messages


def prepare_trials(vllm_config: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that tries a constraint: fields of StructuredOutputsParams -> the fields for the engine.

    The function raises ValueError if it refuses the constraint.
    """
    # 0: no limit. vLLM's limit is on elapsed time, which depends on the machine's load; BoundedProcess limits CPU time.
    os.environ["VLLM_REGEX_COMPILATION_TIMEOUT_S"] = "0"
    manager = from_vllm("StructuredOutputManager")(vllm_config)
    manager._use_async_grammar_compilation = False
    backend = vllm_config.structured_outputs_config.backend
    backend = "xgrammar" if backend == "auto" else backend
    settings = replace(vllm_config.structured_outputs_config, backend=backend)
    create_backend(manager, backend)
    allowed = manager.backend.allocate_token_bitmask(1)
    avoided = np.array(manager.tokenizer.all_special_ids)  # an end token would shorten the trial

    def try_constraint(fields: dict[str, Any]) -> dict[str, Any]:
        if regex := fields.get("regex"):
            fields = fields | {"regex": expand_unicode_classes(regex)}
        make_params = from_vllm("StructuredOutputsParams")
        params = from_vllm("SamplingParams")(structured_outputs=make_params(**fields))
        try:
            began = time.process_time()
            params._validate_structured_outputs(vllm_config.model_config, settings, manager.tokenizer)
            check_seconds("converting it", time.process_time() - began, MAX_CONVERSION_SECONDS)
            kind, spec = from_vllm("get_structured_output_key")(params.structured_outputs)
            grammar = manager.backend.compile_grammar(kind, spec)
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(compiler_message(error)) from None
        generate_randomly(grammar, allowed, avoided)
        return fields

    return try_constraint


def create_backend(manager: Any, backend: str) -> None:
    """Make vLLM's StructuredOutputManager create its backend (grammar compiler), which reads the vocabulary."""
    params = from_vllm("StructuredOutputsParams")(json_object=True)
    params._backend = backend
    request = SimpleNamespace(
        request_id="trial",
        sampling_params=SimpleNamespace(structured_outputs=params, all_stop_token_ids=set()),
        structured_output_request=from_vllm("StructuredOutputRequest")(params),
    )
    manager.grammar_init(request)


def generate_randomly(grammar: Any, allowed: Any, avoided: Any) -> None:
    """Generate a random answer of at most TRIAL_TOKENS tokens.

    allowed: int32 bit mask of the vocabulary, one row; avoided: ids that are used only if no other is allowed. Raises
    ValueError if no token is allowed at some point, or if a step takes too long.
    """
    random = np.random.default_rng(0)
    for count in range(TRIAL_TOKENS):
        began = time.thread_time()
        grammar.fill_bitmask(allowed, 0)
        seconds = time.thread_time() - began
        tokens = np.flatnonzero(np.unpackbits(allowed.numpy()[0].view(np.uint8), bitorder="little"))
        if not len(tokens):
            raise ValueError(
                f"after {count} tokens of a random answer, it allows neither a token nor the end; remove the rule or "
                "schema that no text satisfies"
            )
        preferred = np.setdiff1d(tokens, avoided)
        began = time.thread_time()
        grammar.accept_tokens("trial", [int(random.choice(preferred if len(preferred) else tokens))])
        check_seconds("finding the allowed tokens", seconds + time.thread_time() - began, MAX_STEP_SECONDS)
        if grammar.is_terminated():
            break


def check_seconds(work: str, seconds: float, limit: float) -> None:
    """Raise ValueError if `work`, a phrase for the message, took more than `limit` seconds."""
    if seconds > limit:
        raise ValueError(f"{work} takes more than {limit:g} s; send a simpler constraint")


def compiler_message(error: Exception) -> str:
    """Return the message of a grammar compiler's exception on one line, without the time and place in its source."""
    message = LOG_PREFIX.sub("", f"{error}" if error.__cause__ is None else f"{error.__cause__}")
    if "Check failed" in message:
        return "the grammar compiler cannot build it; simplify it (a repeat in a pattern has at most 128 copies)"
    return " ".join(message.split())[:200]
