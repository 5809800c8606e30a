"""Where everything that this stage takes from vLLM lies: the one place to look at when a new version moved it."""

from importlib import import_module
from typing import Any

TRIED_WITH = "0.32"

MODULES = {
    "ServeSubcommand": "vllm.entrypoints.cli.serve",
    "AsyncEngineArgs": "vllm.engine.arg_utils",
    "UsageContext": "vllm.usage.usage_lib",
    "make_arg_parser": "vllm.entrypoints.launchers.cli_args",
    "FlexibleArgumentParser": "vllm.utils.argparse_utils",
    "cli_env_setup": "vllm.entrypoints.serve.utils.api_utils",
    "configure_logging_from_args": "vllm.logger",
    "current_platform": "vllm.platforms",
    "envs": "vllm",
    "LoRAConfig": "vllm.config.lora",
    "MaxLoRARanks": "vllm.config.lora",
    "PEFTHelper": "vllm.lora.peft_helper",
    "PunicaWrapperCPU": "vllm.lora.punica_wrapper.punica_cpu",
    "CompletionRequest": "vllm.entrypoints.openai.completion.protocol",
    "ErrorResponse": "vllm.entrypoints.serve.engine.protocol",
    "create_error_response": "vllm.entrypoints.serve.exception_handling.error_response",
    "load_aware_call": "vllm.entrypoints.serve.utils.api_utils",
    "load_chat_template": "vllm.renderers.chat_utils",
    "with_cancellation": "vllm.entrypoints.serve.utils.api_utils",
    "EngineArgs": "vllm.engine.arg_utils",
    "LLMEngine": "vllm.v1.engine.llm_engine",
    "EngineDeadError": "vllm.v1.engine.exceptions",
    "LoRAParserAction": "vllm.entrypoints.launchers.cli_args",
    "LoRARequest": "vllm.lora.request",
    "get_max_tokens": "vllm.entrypoints.serve.utils.api_utils",
    "tokens_input": "vllm.inputs",
}


def part(name: str) -> Any:
    """One of vLLM's classes or functions, by its name in MODULES.

    Raises ValueError where vLLM is missing or has moved it.
    """
    try:
        return getattr(import_module(MODULES[name]), name)
    except ModuleNotFoundError as error:
        if error.name == "vllm":
            raise ValueError("vLLM is not installed in this environment; bash tools/setup.sh installs it") from None
        raise ValueError(moved(name)) from error
    except (AttributeError, ImportError) as error:
        raise ValueError(moved(name)) from error


def moved(name: str) -> str:
    """The line that says which name was looked for where, and which version has it there."""
    from vllm import __version__

    return (
        f"vLLM {__version__} has no {MODULES[name]}.{name}; this stage was tried with vLLM {TRIED_WITH}: "
        "install that one, or correct the place in inference/vllm_bridge/vllm_imports.py"
    )
