"""The command line of the server: check it, parse it with vLLM's parser, and set the presets."""

from command_line.command_errors import one_line
from command_line.option_values import NUMBER, WHOLE_NUMBER
from command_line.strict_parsers import OneLineErrorMixin

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adapter_checks.adapter_config import read_config
from chat_prompts.template_files import folder_template, has_byte_order_mark, read_template
from exact_tokenizers.tokenizer_folders import exact_tokenizer_folder
from vllm_bridge.vllm_imports import from_vllm

from server_launch.launch_adapters import check_adapters, preset_adapters
from server_launch.launch_checks import check_own_code, check_port, check_served_model
from server_launch.launch_presets import check_devices, local_processes, preset_for_cpu, preset_safety
from server_launch.launch_values import JSON_LISTS, JSON_OBJECTS, check_json, named_adapters

DEFAULT_HOST = "127.0.0.1"
SHUTDOWN_SECONDS = 600
# vLLM's default is 20. Beam search with a penalty reads one more for each distinct token of prompt and answer.
MAX_LOGPROBS = 256
MODEL_MISSING = "--model is missing; give a checkpoint folder (or a hub name)"
# Options whose preset depends on the model or the machine; parse_server_args sets those that the user did not give.
PRESET_OPTIONS = ("dtype", "enforce_eager", "compilation_config", "optimization_level", "max_lora_rank", "max_loras")


def print_notice(line: str) -> None:
    """Print a notice to stderr."""
    print(f"notice: {line}", file=sys.stderr, flush=True)


def precheck(arguments: Sequence[str]) -> None:
    """Check the folders, JSON, template and port in a command line before vLLM is imported, which takes seconds.

    Sets environment variables that turn off usage reports and telemetry and, for a local model, all access to the hub.
    Raises ValueError or FileNotFoundError.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    names = ("model", "tokenizer", "host", "port", "uds", "load-format", "template-path", "chat-template", "config")
    for name in (*names, *JSON_LISTS, *JSON_OBJECTS):
        parser.add_argument(f"--{name}", f"--{name.replace('-', '_')}", dest=name.replace("-", "_"))
    for name in ("lora-modules", "served-model-name"):
        parser.add_argument(f"--{name}", f"--{name.replace('-', '_')}", nargs="*", action="append")
    try:
        args, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        return  # vLLM's parser reports it
    model = args.model or next((word for word in arguments[:1] if not word.startswith("-")), None)
    if not model and not args.config:
        raise ValueError(MODEL_MISSING)
    modules = args.lora_modules or [[]]
    if len(modules) > 1:  # vLLM would use the last occurrence only
        raise ValueError("--lora-modules is given twice; give it once with all adapters: a=FOLDER b=FOLDER")
    adapters = named_adapters(modules[0])
    check_json(args)
    if args.template_path:
        read_template(args.template_path, "--template_path")
    if args.port and args.port.isdecimal() and not args.uds:
        check_port(args.host or DEFAULT_HOST, int(args.port))
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not model:
        return
    if check_served_model(model, weights=not args.load_format, tokenizer=not args.tokenizer):
        if not (args.template_path or args.chat_template):
            folder_template(args.tokenizer or model)  # raises for a template that is not valid Jinja
        if Path(args.tokenizer or model).exists():
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
    else:
        print_notice(f"{model} is not a local folder; vLLM will download the model of this name from the hub")
    check_adapters(adapters, model, (args.served_model_name or [()])[-1])


def server_parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of `vllm serve` with this launcher's options; its errors are one-line ValueErrors."""
    base: Any = from_vllm("FlexibleArgumentParser")

    class StrictParser(OneLineErrorMixin, base):
        pass

    usage = "launch_vllm.py --model M [options]"
    parser = StrictParser(prog="launch_vllm.py", allow_abbrev=False, description=description, usage=usage)
    parser = from_vllm("make_arg_parser")(parser)
    group = parser.add_argument_group("KnowLM", "Options of this launcher.")
    group.add_argument(
        "--template-path", metavar="FILE",
        help="prompt template that replaces the checkpoint's chat_template.jinja: Jinja, or alpaca's JSON",
    )  # fmt: skip
    group.add_argument("--max-body-mib", type=int, default=8, metavar="N", help="largest body of a request, in MiB")
    group.add_argument(
        "--limit-requests", metavar="LIMIT", help="requests per key and per address, such as 60/minute;1000/day"
    )
    group.add_argument(
        "--limit-tokens", metavar="LIMIT",
        help="tokens per key and per address, of prompt and answer, such as 100000/hour",
    )  # fmt: skip
    for action in parser._actions:
        action.type = strict_type(action.type, -1 if action.dest == "max_logprobs" else 0)  # -1: no limit
    parser.set_defaults(host=DEFAULT_HOST, model=None, shutdown_timeout=SHUTDOWN_SECONDS, max_logprobs=MAX_LOGPROBS)
    return parser


def strict_type(kind: Any, minimum: int) -> Any:
    """Return a stricter argparse type if `kind` reads numbers, else `kind` itself.

    Python's int and float also read `1_0`, `nan` and digits of other scripts, and vLLM checks the range of few options.
    """
    if kind in (int, float):
        return partial(strict_number, kind, minimum)
    if getattr(kind, "__name__", "").startswith("human_readable_int"):
        return partial(readable_number, kind, -1 if "auto" in kind.__name__ else minimum)  # -1: the most that fits
    inner = [cell.cell_contents for cell in getattr(kind, "__closure__", None) or ()]
    if len(inner) == 1 and (strict := strict_type(inner[0], minimum)) is not inner[0]:  # vLLM's optional_type
        return partial(optional_number, strict)
    return kind


def strict_number(kind: type[int] | type[float], minimum: int, text: str) -> int | float:
    """Return a finite number of at least `minimum`; raises argparse.ArgumentTypeError."""
    is_number = (WHOLE_NUMBER if kind is int else NUMBER).fullmatch(text)
    if not is_number or not math.isfinite(float(text)) or float(text) < minimum:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a {'whole ' if kind is int else ''}number of {minimum} or more"
        )
    return kind(text)


def optional_number(kind: Callable[[str], Any], text: str) -> Any:
    """Return None for an empty text and for `None`, else kind(text)."""
    return None if text in ("", "None") else kind(text)


def readable_number(kind: Callable[[str], int], minimum: int, text: str) -> int:
    """Return a number of at least `minimum`, which may have a suffix (4k); raises argparse.ArgumentTypeError."""
    if not text.isascii() or set(text) & set("_ ") or kind(text) < minimum:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {minimum} or more, such as 4096 or 4k")
    return kind(text)


def model_configuration(folder: Path) -> dict[str, Any]:
    """Return the config.json of a folder, with transformers' default values for missing keys.

    Raises ValueError if a value is of a wrong type.
    """
    from transformers import CONFIG_MAPPING

    config = read_config(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return config
    try:
        return CONFIG_MAPPING[kind].from_dict(config).to_dict()
    except Exception as error:  # transformers raises exceptions of many classes
        raise ValueError(f"{folder}/config.json cannot be read ({one_line(error)}); download it again") from None


def parse_server_args(arguments: Sequence[str], description: str = "") -> argparse.Namespace:
    """Parse the server's command line into the namespace that `vllm serve` takes, and set the presets.

    Raises ValueError for unknown or contradicting options, for options that need a GPU if there is none, and if the
    port is in use.
    """
    parser = server_parser(description)
    defaults = {name: parser.get_default(name) for name in PRESET_OPTIONS}
    parser.set_defaults(**dict.fromkeys(defaults))
    args = parser.parse_args(list(arguments))
    args.model = args.model_tag = args.model_tag or args.model
    if not args.model:
        raise ValueError(MODEL_MISSING)
    is_local = check_served_model(args.model, args.load_format == "auto", tokenizer=not args.tokenizer)
    if is_local and Path(args.model).is_dir() and not args.trust_remote_code:
        check_own_code(Path(args.model))
    tokenizer = Path(args.tokenizer or args.model)
    if tokenizer.name == "tokenizer.model" and tokenizer.is_file():
        tokenizer = tokenizer.parent
        args.tokenizer = str(tokenizer)
    if tokenizer.is_dir() and not args.skip_tokenizer_init:
        exact = exact_tokenizer_folder(tokenizer, args.trust_remote_code)
        args.tokenizer = args.tokenizer if exact == tokenizer else str(exact)
        if args.generation_config == "auto" and exact != tokenizer and (exact / "config.json").is_file():
            args.generation_config = str(exact)  # with the tokenizer's BOS and EOS instead of old ids
    notices = preset_adapters(args)
    platform: Any = from_vllm("current_platform")
    backends = (args.distributed_executor_backend, args.data_parallel_backend)
    if platform.is_cpu():
        config = model_configuration(Path(args.model)) if is_local and Path(args.model).is_dir() else {}
        notices += preset_for_cpu(args, config, os.environ)
    elif platform.is_cuda_alike() and args.nnodes == 1 and "ray" not in backends:
        check_devices(local_processes(args), platform.device_count(), "GPU")  # vLLM would check this only in the engine
    vars(args).update({name: value for name, value in defaults.items() if getattr(args, name) is None})
    if args.template_path:
        args.chat_template = read_template(args.template_path, "--template_path")
    elif not args.chat_template and has_byte_order_mark(tokenizer):
        args.chat_template = folder_template(tokenizer)
    if not args.uds:
        check_port(args.host or "", args.port)
    for line in notices + preset_safety(args, os.environ):
        print_notice(line)
    args.subparser = "serve"
    return args
