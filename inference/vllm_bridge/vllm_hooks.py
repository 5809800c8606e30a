"""All private interfaces of vLLM that this stage calls or overrides, each with its reason.

PRIVATE_API is the list; tests/inference/test_vllm_hooks.py checks that each exists in the installed vLLM with the
parameters that are used here, and that the overrides are called. Documented options (`--middleware`, `--worker-cls`)
and classes of vLLM are preferred.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from vllm_bridge.vllm_imports import from_vllm

PUNICA = "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU"
COMPLETION = "vllm.entrypoints.openai.completion"
AUTHENTICATION = "vllm.entrypoints.serve.middleware.authenticate:AuthenticationMiddleware"
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
    # routes: requests are validated, sampled and answered as by /v1/completions
    f"{COMPLETION}.serving:OpenAIServingCompletion.create_completion(request, raw_request)": "called: its handler",
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


class TokenUsage:
    """Collects vLLM's records of the sequences that each request starts; the request's tokens are counted from them.

    vLLM updates the record of a sequence until the sequence is finished or aborted, even after the client has
    disconnected.
    """

    def __init__(self, engine_client: Any) -> None:
        """engine_client: vLLM's AsyncLLM, whose output processor is wrapped."""
        self.sequences: ContextVar[list[Any] | None] = ContextVar("sequences", default=None)
        processor = engine_client.output_processor
        add_request = processor.add_request

        def add_and_record(request: Any, *args: Any, **kwargs: Any) -> None:
            add_request(request, *args, **kwargs)
            started = self.sequences.get()
            if started is not None and (sequence := processor.request_states.get(request.request_id)):
                started.append(sequence)

        processor.add_request = add_and_record

    @contextmanager
    def recorded(self) -> Iterator[list[Any]]:
        """Collect the records of sequences that this asyncio task and its children start within the context."""
        started: list[Any] = []
        token = self.sequences.set(started)
        try:
            yield started
        finally:
            self.sequences.reset(token)


def tokens_used(state: dict[str, Any], sequences: list[Any]) -> int:
    """Return the number of tokens of a request, prompt and answer.

    state: the request's state, in which a handler may set `knowlm_usage` (tokens) or vLLM's `request_metadata`;
    sequences: records of TokenUsage, which are used if the state has neither.
    """
    if (usage := state.get("knowlm_usage")) is not None:
        return usage
    if final := getattr(state.get("request_metadata"), "final_usage_info", None):
        return final.prompt_tokens + (final.completion_tokens or 0)
    return sum(
        each.prompt_len + (each.detokenizer.num_output_tokens() if each.detokenizer else 0) for each in sequences
    )
