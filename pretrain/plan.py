"""Find a DeepSpeed configuration and a micro batch with which a model fits on the given GPUs.

    python pretrain/plan.py --model base --gpus 1 --gpu_memory 24
    python pretrain/plan.py --model checkpoints/llama-13b --gpus 24 --gpu_memory 32 --gpu v100 --block_size 1024

Memory is estimated from config.json alone (memory_estimate/), in GiB: a card of "32 GB" has 32 GiB. The last line of
the output is the training command.
"""

from command_line.command_errors import run_command
from command_line.option_values import parse_value
from command_line.strict_parsers import StrictParser, at_least

import argparse
from pathlib import Path

from memory_estimate.model_shape import format_count, parameter_count, read_shape
from memory_estimate.training_memory import GIB
from pretraining.hardware_plan import (
    STEP_TOKENS,
    Machine,
    Workload,
    assumptions,
    describe_plan,
    describe_shortage,
    format_table,
    make_plans,
    recipe_command,
    recommend,
)
from pretraining.pretraining_options import MAX_DEFAULT_BLOCK
from pretraining.training_speed import SPEEDS


def gib(text: str) -> float:
    """argparse type: return a number of GiB; raises ArgumentTypeError unless it is above 0."""
    try:
        size: float = parse_value("", text, float)
    except ValueError:
        size = 0.0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GiB above 0")
    return size


def nonempty_path(text: str) -> Path:
    """argparse type: return a path; raises ArgumentTypeError for "", which would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a folder")
    return Path(text)


def make_parser() -> StrictParser:
    """Return the parser of the command line."""
    parser = StrictParser(__doc__ or "")
    parser.add_argument("--model", type=nonempty_path, required=True, help="a checkpoint folder, or a config.json")
    parser.add_argument("--gpus", type=at_least(1), required=True, metavar="N", help="number of GPUs of all nodes")
    parser.add_argument("--gpu_memory", type=gib, required=True, metavar="GIB", help="memory of one GPU")
    parser.add_argument("--gpus_per_node", type=at_least(1), default=8, metavar="N", help="GPUs of a node (default: 8)")
    parser.add_argument("--gpu", choices=sorted(SPEEDS), default="", help="GPU model, for an estimate of the speed")
    parser.add_argument(
        "--host_memory", type=gib, default=0.0, metavar="GIB", help="host memory of one node (default: unlimited)"
    )
    parser.add_argument(
        "--precision", choices=("bf16", "fp16"), default="", help="default: fp16 with --gpu v100, else bf16"
    )
    parser.add_argument(
        "--block_size", type=at_least(2), default=0, metavar="N",
        help=f"tokens of a packed sequence (default: the model's context, at most {MAX_DEFAULT_BLOCK})",
    )  # fmt: skip
    parser.add_argument(
        "--global_batch", type=at_least(1), default=0, metavar="N",
        help=f"packed sequences of a step on all GPUs (default: about {STEP_TOKENS:,} tokens)",
    )  # fmt: skip
    return parser


def read_plan_options(args: argparse.Namespace) -> tuple[Workload, Machine]:
    """Return the workload and the machine; raises ValueError if options contradict each other or the model's config."""
    shape, gpus, per_node = read_shape(args.model), args.gpus, args.gpus_per_node
    if gpus > per_node and gpus % per_node:
        raise ValueError(f"--gpus {gpus} is not a multiple of --gpus_per_node {per_node}; change one of them")
    if args.global_batch % gpus:
        nearest = max(1, round(args.global_batch / gpus)) * gpus
        raise ValueError(f"--global_batch {args.global_batch} is not a multiple of --gpus {gpus}; try {nearest}")
    if args.block_size > shape.context:
        raise ValueError(f"--block_size {args.block_size} exceeds the context of {args.model}; try {shape.context}")
    if args.gpu == "v100" and args.precision == "bf16":
        raise ValueError("a V100 does not compute in bf16; give --precision fp16")
    block = args.block_size or min(shape.context, MAX_DEFAULT_BLOCK)
    precision = args.precision or ("fp16" if args.gpu == "v100" else "bf16")
    load = Workload(shape, block, precision, args.global_batch)
    return load, Machine(gpus, per_node, args.gpu_memory * GIB, args.host_memory * GIB)


def main() -> None:
    """Print the plans and the recommended command; raises ValueError if no configuration fits."""
    args = make_parser().parse_args()
    load, machine = read_plan_options(args)
    plans = make_plans(load, machine)
    best = recommend(plans, load.block)
    count = format_count(parameter_count(load.shape))
    size = f"{count} parameters, {load.precision}, sequences of {load.block:,} tokens"
    gpus = f"{machine.gpus} GPU{'s' * (machine.gpus != 1)} of {args.gpu_memory:g} GiB"
    print(f"{args.model}: {size}; {gpus}, nodes: {machine.nodes}\n")
    print(f"{format_table(plans, load, machine, args.gpu)}\n\n{assumptions(args.gpu)}\n")
    if best is None:
        raise ValueError(describe_shortage(load, machine, plans))
    print(f"{describe_plan(best, load, machine)}\n{recipe_command(best, args.model, load, machine)}")


if __name__ == "__main__":
    run_command(main)
