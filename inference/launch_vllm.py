"""Serve a checkpoint folder over HTTP: vLLM's OpenAI-compatible server with the routes /generate and /extract.

    python inference/launch_vllm.py --model runs/merged                                              # CPU, or one GPU
    python inference/launch_vllm.py --model M --port 8090 --dtype half --tensor-parallel-size 2      # two GPUs
    python inference/launch_vllm.py --model M --tensor-parallel-size 8 --pipeline-parallel-size 2 \\
        --distributed-executor-backend ray                                                          # two nodes of eight

    --model M              a checkpoint folder, or a name on the hub; required
    --host H --port P      address and port: 127.0.0.1 and 8000
    --template_path T      prompt template that replaces the checkpoint's chat_template.jinja: Jinja or alpaca JSON
    --lora-modules A=F …   adapter folders F, served with their base under the names A ("model" in a request)
    --help=all             also the options of `vllm serve`; --help=WORD: options that match WORD

All options of `vllm serve` are accepted except those that bypass the checks of requests (--grpc) or need a GPU that is
missing. The launcher prints a notice for most presets that depend on the model or the machine; options and environment
variables of the user take precedence. Options of the original KnowLM release that vLLM no longer has are replaced or
dropped with a notice. See inference/README.md.
"""

from command_line.command_errors import one_line, run_command

import logging
import sys
import warnings
from collections.abc import Sequence

from server_guard.process_supervisor import supervise
from server_launch.launch_adapters import check_prompts
from server_launch.launch_args import parse_server_args, precheck, print_notice
from server_launch.launch_checks import option_errors
from server_launch.launch_presets import translate_former_options
from vllm_bridge.vllm_imports import from_vllm


def main(arguments: Sequence[str]) -> None:
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return
    arguments, notices = translate_former_options(arguments)
    for notice in notices:
        print_notice(notice)
    if not any(argument.startswith("--help=") for argument in arguments):
        precheck(arguments)
    # On CPUs, importing vLLM logs a line about Triton; if the user made an error, its message must be the only line.
    logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
    # Warnings, most of them about deprecated options, become notices.
    warnings.showwarning = lambda message, *_, **__: print_notice(one_line(message))
    from_vllm("cli_env_setup")()
    args = parse_server_args(arguments, str(__doc__))
    with option_errors():
        from_vllm("configure_logging_from_args")(args)
        serve = from_vllm("ServeSubcommand")()
        serve.validate(args)
        for line in check_prompts(args):
            print_notice(line)
        serve.cmd(args)


if __name__ == "__main__":
    if not {"-h", "--help"} & set(sys.argv):
        supervise()
    # RuntimeError: the engine's process failed and has logged the cause.
    run_command(lambda: main(sys.argv[1:]), {RuntimeError: 1})
