"""ConfigPlan a training run: which DeepSpeed configuration fits a machine, and how large its micro batch may be.

The figures come from memory_estimate.py. `pretrain/plan.py` is the command line.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.memory_estimate import (
    SPEEDS,
    Shape,
    buffer_bytes,
    flops_per_token,
    host_bytes,
    parameter_count,
    row_bytes,
    sent_bytes,
    state_bytes,
    step_bytes,
)

GB = 1e9
PLANNED = 0.92  # share of a GPU's memory to fill; CUDA, NCCL and fragmentation need the rest
USEFUL_TOKENS = 2048  # of a micro batch; smaller matrices do not keep a GPU busy
STEP_TOKENS = 2**19  # of a global batch without --global_batch_rows
LARGEST_BLOCK = 4096  # tokens of a row without --block_size: train.py's default
MOST_GPUS = 4096  # of the machines that `shortage` tries


@dataclass(frozen=True)
class Machine:
    """GPUs in nodes of `per_node`; gpu_memory and host_memory (of a node, 0: unknown) in bytes."""

    gpus: int
    per_node: int
    gpu_memory: float
    host_memory: float = 0.0

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)


@dataclass(frozen=True)
class Workload:
    """A model and its batches: rows of `block` tokens, `global_rows` of them a step (0: about STEP_TOKENS tokens)."""

    shape: Shape
    block: int
    precision: str
    global_rows: int = 0


@dataclass(frozen=True)
class ConfigPlan:
    """The memory and the largest micro batch (0: none fits) of a configuration, with activations kept or recomputed."""

    config: str
    recompute: bool
    states: float  # bytes on a GPU: weights, gradients, Adam
    buffers: float  # bytes on a GPU
    step: float  # bytes on a GPU in Adam's step, when buffers and rows are free
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


def divide_batch(rows_fit: int, gpus: int, load: Workload) -> tuple[int, int]:
    """Micro batch and gradient accumulation, for the given global batch or else for about STEP_TOKENS tokens."""
    if rows_fit < 1:
        return 0, 0
    if load.global_rows:
        rows = load.global_rows // gpus
        micro_batch = next(size for size in range(min(rows, rows_fit), 0, -1) if rows % size == 0)
        return micro_batch, rows // micro_batch
    rows = max(1, round(STEP_TOKENS / load.block / gpus))
    accumulation = -(-rows // rows_fit)
    return -(-rows // accumulation), accumulation


def make_plan(config: str, recompute: bool, load: Workload, machine: Machine) -> ConfigPlan:
    """Estimate a configuration's memory and the largest micro batch that fits."""
    parameters, gpus = parameter_count(load.shape), machine.gpus
    states, buffers = state_bytes(config, parameters, gpus), buffer_bytes(config, load.shape)
    step, row = step_bytes(config, parameters, gpus), row_bytes(load.shape, load.block, recompute)
    host, left = host_bytes(config, parameters, gpus, machine.nodes), PLANNED * machine.gpu_memory - states
    too_large = step > left or (machine.host_memory and host > machine.host_memory)
    rows_fit = 0 if too_large else max(0, int((left - buffers) // row))
    micro_batch, accumulation = divide_batch(rows_fit, gpus, load)
    sent = sent_bytes(config, parameters, gpus, accumulation)
    return ConfigPlan(config, recompute, states, buffers, step, row, host, rows_fit, micro_batch, accumulation, sent)


def make_plans(load: Workload, machine: Machine) -> list[ConfigPlan]:
    """Plans for all configurations, the simplest first, each with activations kept and then recomputed."""
    stage_3 = "zero3-fp16" if load.precision == "fp16" else "zero3"
    names = ("zero1", "zero2", stage_3, "zero3-offload-optimizer", "zero3-offload-all")
    return [make_plan(name, recompute, load, machine) for name in names for recompute in (False, True)]


def recommend(plans: Sequence[ConfigPlan], block: int) -> ConfigPlan | None:
    """The simplest plan with a useful micro batch, else with any that fits; offloading only where nothing else fits."""
    for offload in (False, True):
        fitting = [plan for plan in plans if plan.micro_batch and ("offload" in plan.config) == offload]
        useful = [plan for plan in fitting if plan.micro_batch * block >= USEFUL_TOKENS or plan.accumulation == 1]
        if fitting:
            return (useful or fitting)[0]
    return None


def shortage(load: Workload, machine: Machine, plans: Sequence[ConfigPlan]) -> str:
    """One line: the memory that is missing, and the smallest machine of these GPUs that is large enough."""
    allowed, host = PLANNED * machine.gpu_memory, machine.host_memory or float("inf")
    # Host memory is compared last, since it is easier to add.
    closest = min(plans, key=lambda plan: (max(plan.memory - allowed, 0), max(plan.host - host, 0)))
    lacking = []
    if closest.memory > allowed:
        lacking.append(f"{(closest.memory - allowed) / GB:,.1f} GB on each GPU for one row of {load.block:,} tokens")
    if closest.host > host:
        lacking.append(f"{(closest.host - host) / GB:,.0f} GB of host memory on a node")
    line = f"no configuration fits: {closest.config} comes closest and lacks {' and '.join(lacking)}"
    within = range(machine.gpus + 1, machine.per_node)
    for gpus in [*within, *range(machine.per_node, MOST_GPUS + 1, machine.per_node)]:
        larger = Machine(gpus, machine.per_node, machine.gpu_memory, machine.host_memory)
        free = Workload(load.shape, load.block, load.precision)
        found = recommend(make_plans(free, larger), load.block) if gpus > machine.gpus else None
        if found:
            return f"{line}; {gpus} such GPUs are enough, with {found.config}"
    return f"{line}, and no number of such GPUs is enough; lower --block_size, or take GPUs and hosts with more memory"


def tokens_per_second(plan: ConfigPlan, load: Workload, gpus: int, gpu: str) -> float:
    """Tokens a second of all GPUs at the published share of the peak; recomputation takes a quarter of the time."""
    peak, share = SPEEDS[gpu]
    return gpus * peak * share / flops_per_token(load.shape, load.block) * (0.75 if plan.recompute else 1)


# --- the report --------------------------------------------------------------------------------------------------


def command(plan: ConfigPlan, model: Path, load: Workload, machine: Machine) -> str:
    """The command line of the training recipe."""
    folder = model.parent if model.is_file() else model
    settings = f"MODEL={shlex.quote(str(folder))} DATA=corpus/all OUT=trained PRECISION={load.precision}"
    settings += f" CONFIG=pretrain/configs/{plan.config}.json"
    settings += f" MICRO_BATCH={plan.micro_batch} ACCUMULATION={plan.accumulation}"
    recipe = "train.sh" if machine.nodes == 1 else "train_multinode.sh"
    kept = "" if plan.recompute else " --gradient_checkpointing False"
    return f"{settings} bash pretrain/scripts/{recipe} --block_size {load.block}{kept}"


def table(plans: Sequence[ConfigPlan], load: Workload, machine: Machine, gpu: str) -> str:
    """One line per configuration: activations kept, recomputed, and the traffic and speed of the better of the two."""
    lines = [
        f"{'':<23}  {'GB on a GPU':^14}  {'kept':^13}  {'recomputed':^13}  host GB  GB sent  tokens",
        f"{'configuration':<23}  {'states':>6} {'buffers':>7}" + f"  {'GB a row':>8} {'rows':>4}" * 2
        + "   a node   a step     a s",
    ]  # fmt: skip
    for kept, again in zip(plans[::2], plans[1::2], strict=True):
        rows = "".join(f"  {plan.row / GB:>8.2f} {plan.rows_fit or '-':>4}" for plan in (kept, again))
        best = recommend([kept, again], load.block)
        sent = f"{best.sent / GB:,.0f}" if best else "-"
        speed = f"{tokens_per_second(best, load, machine.gpus, gpu):,.0f}" if best and gpu else "-"
        memory = f"{kept.states / GB:>6.1f} {kept.buffers / GB:>7.1f}"
        lines.append(f"{kept.config:<23}  {memory}{rows}  {kept.host / GB:>7,.0f}  {sent:>7} {speed:>7}")
    return "\n".join(lines)


def assumptions(gpu: str) -> str:
    """The meaning of the columns and the assumptions of the estimate."""
    text = f"""\
states: weights, gradients, Adam: 16 bytes a parameter, divided by the stage. GB a row: activations and logits, kept or
recomputed (--gradient_checkpointing True, as the recipes have it). rows: the largest micro batch in {PLANNED:.0%} of
the memory; - is none. host: while loading, and what is offloaded. sent: by a GPU, with the micro batch planned for."""
    if not gpu:
        return f"{text}\ntokens: --gpu gives an estimate."
    peak, share = SPEEDS[gpu]
    return f"""{text}
tokens: at most, {share:.0%} of {peak / 1e12:.0f} TFLOP/s, as a published run had, a quarter of it lost to recomputing;
communication, and the host's load, all hidden behind it."""


def outcome(plan: ConfigPlan, load: Workload, machine: Machine) -> str:
    """The recommended plan as one line."""
    rows, way = plan.micro_batch * plan.accumulation * machine.gpus, "recomputed" if plan.recompute else "kept"
    batch = f"{rows:,} rows = {rows * load.block:,} tokens a step"
    return f"Recommended: {plan.config}, activations {way}, {plan.memory / GB:.1f} GB on a GPU at the peak, {batch}:"
