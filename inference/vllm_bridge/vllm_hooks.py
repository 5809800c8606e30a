"""All private interfaces of vLLM that this stage calls or overrides, each with its reason.

PRIVATE_API is the list; tests/inference/test_vllm_hooks.py checks that each exists in the installed vLLM with the
parameters that are used here, and that the overrides are called. Documented options (`--middleware`, `--worker-cls`)
and classes of vLLM are preferred.
"""

import argparse
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import fields
from typing import Any

from grammar_checks.bounded_process import BoundedProcess, QueueFullError
from grammar_checks.grammar_checker import MAX_WAITING, TRIAL_MEMORY, TRIAL_SECONDS, GrammarChecker

from vllm_bridge.vllm_imports import from_vllm

PUNICA = "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU"
RESPONSES = "vllm.entrypoints.openai.responses.serving"
CHAT = "vllm.entrypoints.openai.chat_completion.serving"
COMPLETION = "vllm.entrypoints.openai.completion"
AUTHENTICATION = "vllm.entrypoints.serve.middleware.authenticate:AuthenticationMiddleware"
SAMPLING = "vllm.sampling_params:SamplingParams"
MODELS = "vllm.entrypoints.openai.models.serving:OpenAIServingModels"
# "module:name(parameters that are passed by position or name)": reason
PRIVATE_API = {
    # cpu_adapters.py: wrong answers and slow products of adapters on machines without a GPU
    "vllm.platforms.cpu:CpuPlatform.get_punica_wrapper()": "replaced: no option names another LoRA wrapper",
    "vllm.v1.worker.cpu_worker:CPUWorker.__init__()": "extended: the replacement has to be made in each worker",
    f"{PUNICA}.update_metadata()": "extended: groups the tokens by adapter",
    f"{PUNICA}.add_lora_linear(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices)": "overridden: products",
    f"{PUNICA}.add_lora_logits(y, x, lora_a_stacked, lora_b_stacked, scale)": "overridden: products",
    f"{PUNICA}.add_lora_embedding(y, x, lora_b_stacked)": "overridden: products",
    f"{PUNICA}.token_lora_indices": "read: the adapter slot of each token",
    f"{PUNICA}.sampler_indices": "read: the adapter slot of each token with logits",
    # token limits: no middleware sees the tokens of an answer whose client has disconnected
    "vllm.v1.engine.output_processor:OutputProcessor.add_request(request)": "wrapped: the sequences of a request",
    "vllm.v1.engine.detokenizer:IncrementalDetokenizer.num_output_tokens()": "called: tokens generated so far",
    # grammars are tried before vLLM converts them on the event loop and compiles them in the engine
    "vllm.v1.engine.async_llm:AsyncLLM.add_request(request_id, prompt, params)": "wrapped: tries its constraint",
    f"{SAMPLING}._validate_structured_outputs(model_config, structured_outputs_config, tokenizer)": "called",
    "vllm.v1.structured_output:StructuredOutputManager.grammar_init(request)": "called: makes the engine's compiler",
    # request_cost.py: no option limits the work of a request on the event loop and in the tokeniser's thread
    "vllm.renderers.params:TokenizeParams._text_len_check(tokenizer, text)": "wrapped: counts a request's text",
    "vllm.v1.sample.ops.logprobs:batched_count_greater_than(x, values)": "compiled at its first call; see warm_up",
    "vllm.v1.engine.output_processor:OutputProcessor.get_num_queued_tokens()": "computed here for a single request",
    f"{SAMPLING}.num_logprobs": "read: log probabilities of each token",
    # request_errors.py: a stream that fails before its first output gets the status of the unstreamed response
    f"{COMPLETION}.serving:OpenAIServingCompletion.create_completion(request, raw_request)": "wrapped and called",
    f"{CHAT}:OpenAIServingChat.create_chat_completion(request, raw_request)": "wrapped; also called for /v1/messages",
    f"{RESPONSES}:OpenAIServingResponses.create_responses(request, raw_request)": "wrapped",
    "vllm.entrypoints.scale_out.token_in_token_out.serving:ServingTokens.serve_tokens(request, raw_request)": "wrapped",
    "vllm.renderers.base:BaseRenderer.validate_token_ids(token_ids)": "called before a prompt waits for its turn",
    # request_errors.py: vLLM's messages have the base's path and no remedy
    "vllm.entrypoints.serve.engine.serving:BaseServing._check_model(request)": "wrapped: names of the served models",
    "vllm.renderers.chat_utils:ChatTemplateResolutionError": "its message is replaced",
    # values of a wrong type, on which some of vLLM's validators fail, are an error of the client
    "pydantic:TypeAdapter.validate_python(object)": "wrapped: FastAPI and /invocations validate a body with it",
    # a request that the queue can never take is an error of the client
    "vllm.v1.engine.async_llm:AsyncLLM.check_admission(n, request_id)": "wrapped: status 400",
    # routes/: a request may name the base
    f"{MODELS}.is_base_model(model_name)": "called: served names of the base",
    # server_guard/, launching
    f"{AUTHENTICATION}.verify_token(headers)": "called for all routes, not only for vLLM's prefixes",
    "vllm.engine.arg_utils:EngineArgs.get_batch_defaults(world_size)": "called: default of --max-num-seqs",
}


def default_max_num_seqs(args: argparse.Namespace) -> int:
    """Return vLLM's default of --max-num-seqs (concurrent sequences of one engine) for a server."""
    world_size = args.tensor_parallel_size * args.pipeline_parallel_size
    _, max_num_seqs = from_vllm("AsyncEngineArgs").get_batch_defaults(world_size)
    return max_num_seqs[from_vllm("UsageContext").OPENAI_API_SERVER]


# True while a request is handled whose constraint is known to be fast
skips_trial: ContextVar[bool] = ContextVar("skips_trial", default=False)


def check_constraints(engine_client: Any) -> None:
    """Make vLLM's AsyncLLM try the constraint of a request before it adds the request; forks the process for this."""
    config = engine_client.vllm_config
    if config.model_config.skip_tokenizer_init:
        return  # vLLM refuses constraints

    def prepare() -> Callable[[dict[str, Any]], dict[str, Any]]:
        from vllm_bridge.grammar_trial import prepare_trials

        return prepare_trials(config)

    process = BoundedProcess(prepare, TRIAL_SECONDS, TRIAL_MEMORY, MAX_WAITING)
    add_request, check = engine_client.add_request, GrammarChecker(process).check

    async def check_and_add(request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        constraint = getattr(params, "structured_outputs", None)
        if constraint is not None and not skips_trial.get():
            await check_constraint(constraint, check)
        return await add_request(request_id, prompt, params, *args, **kwargs)

    engine_client.add_request = check_and_add


def check_sequences(engine_client: Any) -> None:
    """Make vLLM's AsyncLLM refuse with status 400 a request for more sequences than its queue can hold.

    vLLM would refuse it with status 503, and clients would repeat the request.
    """
    limit, check = engine_client.vllm_config.scheduler_config.max_num_queued_reqs, engine_client.check_admission

    def check_admission(n: int = 1, request_id: str | None = None) -> None:
        if limit is not None and n > limit:
            raise from_vllm("VLLMValidationError")(f"n is {n}, the server accepts {limit} sequences at once; lower n")
        check(n, request_id)

    engine_client.check_admission = check_admission


async def check_constraint(constraint: Any, check: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
    """Check vLLM's StructuredOutputsParams and replace its fields by the checked ones.

    Raises vLLM's exceptions for status 400 and 503.
    """
    values = {each.name: getattr(constraint, each.name) for each in fields(constraint) if each.init}
    try:
        checked = await check({name: value for name, value in values.items() if value not in (None, False)})
    except QueueFullError:
        raise from_vllm("QueueOverflowError")() from None
    except ValueError as error:
        raise from_vllm("VLLMValidationError")(str(error)) from None
    for name, value in checked.items():
        setattr(constraint, name, value)


def report_failed_validators() -> None:
    """Turn exceptions of pydantic validators into ValueError, to which vLLM responds with status 400.

    Some of vLLM's validators raise other exceptions for a value of a wrong type. These would result in status 500 and a
    traceback in the log.
    """
    from pydantic import TypeAdapter

    validate = TypeAdapter.validate_python

    def validate_or_report(*args: Any, **kwargs: Any) -> Any:
        try:
            return validate(*args, **kwargs)
        except (AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"a field has a value of a wrong type: {str(error)[:200]}") from None

    TypeAdapter.validate_python = validate_or_report  # type: ignore[method-assign]
