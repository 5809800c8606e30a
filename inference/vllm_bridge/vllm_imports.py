"""The module of each vLLM name that this stage imports. Edit MODULES if a new vLLM version moves a name."""

from importlib import import_module
from typing import Any

TESTED_VERSION = "0.32"

MODULES = {
    "AsyncEngineArgs": "vllm.engine.arg_utils",
    "AuthenticationMiddleware": "vllm.entrypoints.serve.middleware.authenticate",
    "BaseServing": "vllm.entrypoints.serve.engine.serving",
    "CPUWorker": "vllm.v1.worker.cpu_worker",
    "ChatTemplateResolutionError": "vllm.renderers.chat_utils",
    "CompletionRequest": "vllm.entrypoints.openai.completion.protocol",
    "EngineDeadError": "vllm.v1.engine.exceptions",
    "ErrorResponse": "vllm.entrypoints.serve.engine.protocol",
    "FlexibleArgumentParser": "vllm.utils.argparse_utils",
    "LoRAConfig": "vllm.config.lora",
    "MaxLoRARanks": "vllm.config.lora",
    "MaxQueuedTokensError": "vllm.exceptions",
    "PEFTHelper": "vllm.lora.peft_helper",
    "PunicaWrapperCPU": "vllm.lora.punica_wrapper.punica_cpu",
    "QueueOverflowError": "vllm.exceptions",
    "RequestOutputKind": "vllm.sampling_params",
    "SamplingParams": "vllm.sampling_params",
    "ServeSubcommand": "vllm.entrypoints.cli.serve",
    "StructuredOutputManager": "vllm.v1.structured_output",
    "StructuredOutputRequest": "vllm.v1.structured_output.request",
    "StructuredOutputsParams": "vllm.sampling_params",
    "TokenizeParams": "vllm.renderers.params",
    "UsageContext": "vllm.usage.usage_lib",
    "VLLMValidationError": "vllm.exceptions",
    "_CONFIG_REGISTRY": "vllm.transformers_utils.config",
    "cli_env_setup": "vllm.entrypoints.serve.utils.api_utils",
    "configure_logging_from_args": "vllm.logger",
    "create_error_response": "vllm.entrypoints.serve.exception_handling.error_response",
    "current_platform": "vllm.platforms",
    "get_structured_output_key": "vllm.v1.structured_output.request",
    "load_aware_call": "vllm.entrypoints.serve.utils.api_utils",
    "load_chat_template": "vllm.renderers.chat_utils",
    "make_arg_parser": "vllm.entrypoints.launchers.cli_args",
    "tokens_input": "vllm.inputs",
    "with_cancellation": "vllm.entrypoints.serve.utils.api_utils",
}


def from_vllm(name: str) -> Any:
    """Import the class, function or module of this name from vLLM.

    Raises ValueError if vLLM is not installed or its installed version has no such name there.
    """
    try:
        return getattr(import_module(MODULES[name]), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{MODULES[name]}.{name} cannot be imported ({error}); this stage needs vLLM {TESTED_VERSION}, which "
            "tools/setup.sh installs (with another version, correct inference/vllm_bridge/vllm_imports.py)"
        ) from error
