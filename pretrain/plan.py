"""Say which DeepSpeed configuration trains a model on a machine, how large its micro batch may be, and how to start it.

    python pretrain/plan.py --model base --gpus 1 --gpu_memory 24
    python pretrain/plan.py --model checkpoints/llama-13b --gpus 24 --gpu_memory 32 --gpu v100 --block_size 1024

It is arithmetic (memory_estimate.py), not a measurement, and needs only the model's config.json. A GB is 1e9 bytes.
"""

from command_line.command_errors import run_command
from command_line.strict_parsers import StrictParser, number_from

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pretraining.memory_estimate import (
    Shape,
    buffer_bytes,
    flops_per_token,
    host_bytes,
    parameter_count,
    read_shape,
    row_bytes,
    sent_bytes,
    state_bytes,
    step_bytes,
)

GB = 1e9
PLANNED = 0.92  # share of a GPU's memory that is planned with; CUDA, NCCL and fragmentation get the rest
USEFUL_TOKENS = 2048  # of a micro batch on a GPU; with fewer its matrices are too small to keep it busy
STEP_TOKENS = 2**19  # of a global batch, unless --global_batch_rows says otherwise
LARGEST_BLOCK = 4096  # tokens of a row unless --block_size says otherwise: train.py's default
MOST_GPUS = 4096  # how far to look for a machine that would do

# Dense 16-bit peak in FLOP/s (NVIDIA's data sheets, SXM; A800 and H800 differ in NVLink only), and the share of it
# that a published training run made of it: V100 15 PFLOP/s on 400 (Rajbhandari et al. 2020), A100 380 tokens/s of
# LLaMA-65B (Touvron et al. 2023), H100 38 to 43 % (Llama Team 2024).
SPEEDS = {
    "v100": (125e12, 0.30), "a100": (312e12, 0.47), "a800": (312e12, 0.47),
    "h100": (989e12, 0.40), "h800": (989e12, 0.40), "h200": (989e12, 0.40),
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """GPUs in nodes; memory in bytes, host_memory of a node (0: not known)."""

    gpus: int
    per_node: int
    gpu_memory: float
    host_memory: float = 0.0

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)


@dataclass(frozen=True)
class Work:
    """What is trained: rows of `block` tokens, `global_rows` of them a step (0: some STEP_TOKENS tokens)."""

    shape: Shape
    block: int
    precision: str
    global_rows: int = 0


@dataclass(frozen=True)
class Plan:
    """One configuration, with activations kept or recomputed, and the largest micro batch that fits (0: none)."""

    config: str
    recompute: bool
    states: float  # bytes on a GPU: weights, gradients, Adam
    buffers: float  # bytes on a GPU
    step: float  # bytes on a GPU in Adam's step, when buffers and rows are not in use
    row: float  # bytes on a GPU: activations and logits of a row
    host: float  # bytes on a node
    rows_fit: int
    micro_batch: int
    accumulation: int
    sent: float  # bytes that a GPU sends in a step

    @property
    def memory(self) -> float:
        """Bytes on a GPU at the peak, with at least one row."""
        return self.states + max(self.buffers + max(self.micro_batch, 1) * self.row, self.step)


# --- planning ---------------------------------------------------------------------------------------------------------


def divide_batch(rows_fit: int, gpus: int, work: Work) -> tuple[int, int]:
    """Micro batch and accumulation; exact for a given global batch, else for about STEP_TOKENS tokens."""
    if rows_fit < 1:
        return 0, 0
    if work.global_rows:
        rows = work.global_rows // gpus
        micro_batch = next(size for size in range(min(rows, rows_fit), 0, -1) if rows % size == 0)
        return micro_batch, rows // micro_batch
    rows = max(1, round(STEP_TOKENS / work.block / gpus))
    accumulation = -(-rows // rows_fit)
    return -(-rows // accumulation), accumulation


def make_plan(config: str, recompute: bool, work: Work, machine: Machine) -> Plan:
    """What a configuration takes, and the largest micro batch that its memory allows."""
    parameters, gpus = parameter_count(work.shape), machine.gpus
    states, buffers = state_bytes(config, parameters, gpus), buffer_bytes(config, work.shape)
    step, row = step_bytes(config, parameters, gpus), row_bytes(work.shape, work.block, recompute)
    host, left = host_bytes(config, parameters, gpus, machine.nodes), PLANNED * machine.gpu_memory - states
    too_large = step > left or (machine.host_memory and host > machine.host_memory)
    rows_fit = 0 if too_large else max(0, int((left - buffers) // row))
    micro_batch, accumulation = divide_batch(rows_fit, gpus, work)
    sent = sent_bytes(config, parameters, gpus, accumulation)
    return Plan(config, recompute, states, buffers, step, row, host, rows_fit, micro_batch, accumulation, sent)


def make_plans(work: Work, machine: Machine) -> list[Plan]:
    """Plans from the simplest configuration to the last resort, with activations kept before recomputed."""
    stage_3 = "zero3-fp16" if work.precision == "fp16" else "zero3"
    names = ("zero1", "zero2", stage_3, "zero3-offload-optimizer", "zero3-offload-all")
    return [make_plan(name, recompute, work, machine) for name in names for recompute in (False, True)]


def recommend(plans: Sequence[Plan], block: int) -> Plan | None:
    """The simplest plan with a useful micro batch; else with any; offloading only where nothing else fits."""
    for offload in (False, True):
        fitting = [plan for plan in plans if plan.micro_batch and ("offload" in plan.config) == offload]
        useful = [plan for plan in fitting if plan.micro_batch * block >= USEFUL_TOKENS or plan.accumulation == 1]
        if fitting:
            return (useful or fitting)[0]
    return None


def shortage(work: Work, machine: Machine, plans: Sequence[Plan]) -> str:
    """One line: what is missing, and the smallest machine of such GPUs that would do."""
    allowed, host = PLANNED * machine.gpu_memory, machine.host_memory or float("inf")
    # Memory of a host is what can be had more easily.
    closest = min(plans, key=lambda plan: (max(plan.memory - allowed, 0), max(plan.host - host, 0)))
    lacking = []
    if closest.memory > allowed:
        lacking.append(f"{(closest.memory - allowed) / GB:,.1f} GB on each GPU for one row of {work.block:,} tokens")
    if closest.host > host:
        lacking.append(f"{(closest.host - host) / GB:,.0f} GB of host memory on a node")
    line = f"no configuration fits: {closest.config} comes closest and lacks {' and '.join(lacking)}"
    within = range(machine.gpus + 1, machine.per_node)
    for gpus in [*within, *range(machine.per_node, MOST_GPUS + 1, machine.per_node)]:
        larger = Machine(gpus, machine.per_node, machine.gpu_memory, machine.host_memory)
        free = Work(work.shape, work.block, work.precision)
        found = recommend(make_plans(free, larger), work.block) if gpus > machine.gpus else None
        if found:
            return f"{line}; {gpus} such GPUs would do, with {found.config}"
    return f"{line}, and no number of such GPUs would do; lower --block_size, or take GPUs and hosts with more memory"


def tokens_per_second(plan: Plan, work: Work, gpus: int, gpu: str) -> float:
    """Tokens of all GPUs at the published share of the peak; recomputing costs a forward pass, a quarter of all."""
    peak, share = SPEEDS[gpu]
    return gpus * peak * share / flops_per_token(work.shape, work.block) * (0.75 if plan.recompute else 1)


# --- what is printed --------------------------------------------------------------------------------------------------


def command(plan: Plan, model: Path, work: Work, machine: Machine) -> str:
    """The recipe's command line."""
    folder = model.parent if model.is_file() else model
    settings = f"MODEL={shlex.quote(str(folder))} DATA=corpus/all OUT=trained PRECISION={work.precision}"
    settings += f" CONFIG=pretrain/configs/{plan.config}.json"
    settings += f" MICRO_BATCH={plan.micro_batch} ACCUMULATION={plan.accumulation}"
    recipe = "train.sh" if machine.nodes == 1 else "train_multinode.sh"
    kept = "" if plan.recompute else " --gradient_checkpointing False"
    return f"{settings} bash pretrain/scripts/{recipe} --block_size {work.block}{kept}"


def table(plans: Sequence[Plan], work: Work, machine: Machine, gpu: str) -> str:
    """A line for a configuration: activations kept, recomputed, and traffic and speed of the better of these plans."""
    lines = [
        f"{'':<23}  {'GB on a GPU':^14}  {'kept':^13}  {'recomputed':^13}  host GB  GB sent  tokens",
        f"{'configuration':<23}  {'states':>6} {'buffers':>7}" + f"  {'GB a row':>8} {'rows':>4}" * 2
        + "   a node   a step     a s",
    ]  # fmt: skip
    for kept, again in zip(plans[::2], plans[1::2], strict=True):
        rows = "".join(f"  {plan.row / GB:>8.2f} {plan.rows_fit or '-':>4}" for plan in (kept, again))
        best = recommend([kept, again], work.block)
        sent = f"{best.sent / GB:,.0f}" if best else "-"
        speed = f"{tokens_per_second(best, work, machine.gpus, gpu):,.0f}" if best and gpu else "-"
        memory = f"{kept.states / GB:>6.1f} {kept.buffers / GB:>7.1f}"
        lines.append(f"{kept.config:<23}  {memory}{rows}  {kept.host / GB:>7,.0f}  {sent:>7} {speed:>7}")
    return "\n".join(lines)


def assumptions(gpu: str) -> str:
    """What the columns mean, and what is taken for granted."""
    text = f"""\
states: weights, gradients, Adam: 16 bytes a parameter, divided by the stage. GB a row: activations and logits, kept or
recomputed (--gradient_checkpointing True, as the recipes have it). rows: the largest micro batch in {PLANNED:.0%} of
the memory; - is none. host: while loading, and what is offloaded. sent: by a GPU, with the micro batch planned for."""
    if not gpu:
        return f"{text}\ntokens: --gpu gives an estimate."
    peak, share = SPEEDS[gpu]
    return f"""{text}
tokens: at most, {share:.0%} of {peak / 1e12:.0f} TFLOP/s, as a published run had, a quarter of it lost to recomputing;
communication, and the host's work, all hidden behind it."""


def outcome(plan: Plan, work: Work, machine: Machine) -> str:
    """The recommended plan in words."""
    rows, way = plan.micro_batch * plan.accumulation * machine.gpus, "recomputed" if plan.recompute else "kept"
    batch = f"{rows:,} rows = {rows * work.block:,} tokens a step"
    return f"Recommended: {plan.config}, activations {way}, {plan.memory / GB:.1f} GB on a GPU at the peak, {batch}:"


# --- the command line -------------------------------------------------------------------------------------------------


def make_parser() -> StrictParser:
    parser = StrictParser(__doc__ or "")
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint folder, or a config.json")
    parser.add_argument("--gpus", type=number_from(1), required=True, metavar="N", help="GPUs of all nodes")
    parser.add_argument("--gpu_memory", type=number_from(1), required=True, metavar="GB", help="memory of a GPU")
    parser.add_argument("--gpus_per_node", type=number_from(1), default=8, metavar="N", help="default: 8")
    parser.add_argument("--gpu", choices=sorted(SPEEDS), default="", help="for an estimate of the speed")
    parser.add_argument("--host_memory", type=number_from(1), default=0, metavar="GB", help="memory of a node")
    parser.add_argument("--precision", choices=("bf16", "fp16"), default="", help="default: bf16; fp16 on V100")
    parser.add_argument(
        "--block_size", type=number_from(2), default=0, metavar="N",
        help=f"tokens of a row (default: the model's context, at most {LARGEST_BLOCK})",
    )  # fmt: skip
    parser.add_argument(
        "--global_batch_rows", type=number_from(1), default=0, metavar="N",
        help=f"rows of a step on all GPUs (default: some {STEP_TOKENS:,} tokens)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one line of JSON, sizes in bytes")
    return parser


def read_task(args: argparse.Namespace) -> tuple[Work, Machine]:
    """What is to be trained and on what; ValueError where the options do not go together."""
    shape, gpus, per_node = read_shape(args.model), args.gpus, args.gpus_per_node
    if gpus > per_node and gpus % per_node:
        raise ValueError(f"--gpus {gpus} is no whole number of nodes of {per_node}; say --gpus_per_node")
    if args.global_batch_rows % gpus:
        nearest = max(1, round(args.global_batch_rows / gpus)) * gpus
        raise ValueError(f"--global_batch_rows {args.global_batch_rows} is no multiple of {gpus} GPUs; try {nearest}")
    if args.block_size > shape.context:
        raise ValueError(f"--block_size {args.block_size} is over the context of {args.model}; try {shape.context}")
    if args.gpu == "v100" and args.precision == "bf16":
        raise ValueError("--precision bf16 is nothing a V100 computes in; leave it out, or say fp16")
    block = args.block_size or min(shape.context, LARGEST_BLOCK)
    precision = args.precision or ("fp16" if args.gpu == "v100" else "bf16")
    work = Work(shape, block, precision, args.global_batch_rows)
    return work, Machine(gpus, per_node, args.gpu_memory * GB, args.host_memory * GB)


def main() -> None:
    """Read, plan, print."""
    args = make_parser().parse_args()
    work, machine = read_task(args)
    plans = make_plans(work, machine)
    best = recommend(plans, work.block)
    line = command(best, args.model, work, machine) if best else None
    parameters = parameter_count(work.shape)
    if args.json:
        best_as_dict = asdict(best) if best else None
        found = {"parameters": parameters, "plans": [asdict(plan) for plan in plans], "recommended": best_as_dict}
        print(json.dumps(found | {"command": line}))
    else:
        size = f"{parameters / 1e9:.2f} billion parameters, {work.precision}, rows of {work.block:,} tokens"
        print(f"{args.model}: {size}; {machine.gpus} GPUs of {args.gpu_memory} GB, nodes: {machine.nodes}\n")
        print(f"{table(plans, work, machine, args.gpu)}\n\n{assumptions(args.gpu)}\n")
    if best is None:
        raise ValueError(shortage(work, machine, plans))
    if not args.json:
        print(f"{outcome(best, work, machine)}\n{line}")


if __name__ == "__main__":
    run_command(main)
