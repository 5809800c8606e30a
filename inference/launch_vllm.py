"""Serve a checkpoint folder over HTTP: vLLM's OpenAI-compatible server, with /generate and /extract beside its routes.

    python inference/launch_vllm.py --model runs/merged                                              # CPU, or one GPU
    python inference/launch_vllm.py --model M --port 8090 --dtype half --tensor-parallel-size 2      # two GPUs
    python inference/launch_vllm.py --model M --tensor-parallel-size 8 --pipeline-parallel-size 2 \\
        --distributed-executor-backend ray                                                          # two nodes of eight

    --model M              a checkpoint folder, or a name on the hub; needed
    --host H --port P      where to listen: 127.0.0.1 and 8000
    --template_path T      prompt template in place of the checkpoint's chat_template.jinja: Jinja or alpaca JSON
    --lora-modules A=F …   adapters' folders, served beside their base under the names A (model in a request)
    --help=all             every option of `vllm serve`, all of which work here; --help=WORD: those about one thing

What the launcher presets is printed at the start and yields to an option or a variable of the user's; published
options that vLLM no longer has are replaced or left out with a line. See inference/README.md.
"""

from command_line.command_errors import exit_status

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from chat_prompts.template_files import read_template
from server_guard.process_supervisor import supervise
from server_guard.quick_end import end, end_when_done
from server_launch.launch_adapters import check_adapter_prompts, check_adapters, named_adapters, preset_adapters
from server_launch.launch_checks import check_model, check_port, check_prompt, read_json
from server_launch.launch_presets import allow_plugin, preset_for_cpu, translate
from server_launch.launch_safety import add_safety_options, preset_safety
from vllm_bridge.vllm_imports import part

DEFAULT_HOST = "127.0.0.1"


def say(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


def first_look(arguments: Sequence[str]) -> None:
    """Check what the command line names before vLLM is imported, which takes seconds, and keep it off the network.

    Raises ValueError or FileNotFoundError.
    """
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("model", "tokenizer", "host", "port", "uds", "load-format", "template-path"):
        look.add_argument(f"--{name}", f"--{name.replace('-', '_')}", dest=name.replace("-", "_"))
    for name in ("lora-modules", "served-model-name"):
        look.add_argument(f"--{name}", f"--{name.replace('-', '_')}", nargs="*", action="append")
    try:
        named, _ = look.parse_known_args(arguments)
    except argparse.ArgumentError:
        return  # vLLM's parser will say what is wrong
    model = named.model or next((word for word in arguments[:1] if not word.startswith("-")), None)
    if named.template_path:
        read_template(named.template_path, "--template_path")
    if named.port and named.port.isdecimal() and not named.uds:
        check_port(named.host or DEFAULT_HOST, int(named.port))
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if model:
        if check_model(model, weights=not named.load_format, tokenizer=not named.tokenizer):
            if Path(named.tokenizer or model).exists():
                os.environ.setdefault("HF_HUB_OFFLINE", "1")
        else:
            say(f"there is no folder {model} here; vLLM will look for that name on the hub")
        if named.lora_modules:
            check_adapters(named_adapters(named.lora_modules), model, (named.served_model_name or [()])[-1])


def strict_parser(prog: str, **described: str) -> Any:
    """A parser of vLLM's kind that takes no abbreviations and raises its errors as a ValueError of one line."""
    base: Any = part("FlexibleArgumentParser")

    class Parser(base):
        def error(self, message: str) -> NoReturn:
            unknown = message.partition("unrecognized arguments: ")[2].split()
            if unknown:
                near = get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                message = f"unknown option {unknown[0]}; {hint}--help=all lists them"
            raise ValueError(message)

    return Parser(prog=prog, allow_abbrev=False, **described)


def build_parser() -> argparse.ArgumentParser:
    """The parser of vLLM's server, with our option."""
    parser = strict_parser("launch_vllm.py", description=__doc__, usage="launch_vllm.py --model M [options]")
    parser = part("make_arg_parser")(parser)
    ours = parser.add_argument_group("KnowLM", "Options of this launcher.")
    ours.add_argument(
        "--template-path", metavar="FILE",
        help="prompt template in place of the checkpoint's chat_template.jinja: Jinja, or alpaca's JSON",
    )  # fmt: skip
    add_safety_options(parser, ours)
    return parser


def settle(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """What the arguments say of an engine; what they leave open and depends on the machine is filled in.

    Raises ValueError on unknown or contradicting options and on a CPU-only machine that is too small for them.
    """
    left_open = ("dtype", "enforce_eager", "compilation_config", "optimization_level", "max_lora_rank", "max_loras")
    usual = {name: parser.get_default(name) for name in left_open}
    parser.set_defaults(model=None, **dict.fromkeys(usual))
    args = parser.parse_args(list(arguments))
    args.model = getattr(args, "model_tag", None) or args.model
    if not args.model:
        raise ValueError("--model is missing; give a checkpoint folder (or a hub name)")
    is_here = check_model(args.model, args.load_format == "auto", tokenizer=not args.tokenizer)
    for line in preset_adapters(args):
        say(line)
    if part("current_platform").is_cpu():
        config = read_json(Path(args.model, "config.json")) if is_here and Path(args.model).is_dir() else {}
        for line in preset_for_cpu(args, config, os.environ):
            say(line)
    for name, value in usual.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The server's settings as `vllm serve` takes them; raises ValueError as `settle` does, and on a port in use."""
    parser = build_parser()
    parser.set_defaults(host=DEFAULT_HOST)
    args = settle(parser, arguments)
    args.model_tag = args.model
    if args.template_path:
        args.chat_template = read_template(args.template_path, "--template_path")
    if not args.uds:
        check_port(args.host or "", args.port)
    for line in preset_safety(args, os.environ):
        say(line)
    args.subparser = "serve"
    return args


def main(arguments: Sequence[str]) -> None:
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return
    arguments, notices = translate(arguments)
    for notice in notices:
        say(notice)
    if not any(word.startswith("--help=") for word in arguments):
        first_look(arguments)
    part("cli_env_setup")()
    args = parse(arguments)
    part("configure_logging_from_args")(args)
    serve = part("ServeSubcommand")()
    serve.validate(args)
    if Path(args.model).is_dir() and not args.skip_tokenizer_init:
        template = part("load_chat_template")(args.chat_template)
        place = args.template_path or args.chat_template or f"{args.model}/chat_template.jinja"
        check_prompt(args.tokenizer or args.model, template, place)
        for line in check_adapter_prompts(args):
            say(line)
    allow_plugin(os.environ)
    serve.cmd(args)


if __name__ == "__mp_main__":  # an engine, a worker or an API process, which begins by importing this file
    end_when_done()
if __name__ == "__main__":
    if not {"-h", "--help"} & set(sys.argv):
        supervise()
    # RuntimeError: the engine's process failed, and has written why.
    end(exit_status(lambda: main(sys.argv[1:]), {RuntimeError: 1}))
