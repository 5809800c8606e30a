"""Plan a training run: the DeepSpeed configuration and the micro batch that fit a machine.

memory_estimate/ estimates memory; training_speed.py estimates FLOPs and traffic. The command is pretrain/plan.py.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memory_estimate.model_shape import Shape, parameter_count
from memory_estimate.training_memory import (
    GIB,
    MEMORY_SHARE,
    buffer_bytes,
    host_bytes,
    sequence_bytes,
    state_bytes,
    step_bytes,
)

from pretraining.training_speed import SPEEDS, flops_per_token, sent_bytes

USEFUL_TOKENS = 2048  # tokens of the smallest micro batch that keeps a GPU busy
STEP_TOKENS = 2**19  # tokens of a global batch if --global_batch is not given
MAX_GPUS = 4096  # maximum number of GPUs that `describe_shortage` tries


@dataclass(frozen=True)
class Machine:
    """A machine or cluster.

    gpus: GPUs of all nodes. per_node: GPUs of a node. gpu_memory: bytes of a GPU. host_memory: bytes of a node; 0 if
    not known.
    """

    gpus: int
    per_node: int
    gpu_memory: float
    host_memory: float = 0.0

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)


@dataclass(frozen=True)
class Workload:
    """A model and its batches.

    block: tokens of a packed sequence. precision: bf16 or fp16. global_batch: sequences of a step; 0: about STEP_TOKENS
    tokens.
    """

    shape: Shape
    block: int
    precision: str
    global_batch: int = 0


@dataclass(frozen=True)
class ConfigPlan:
    """Memory and micro batch (0: no sequence fits) of a DeepSpeed configuration, activations kept or recomputed."""

    config: str
    recompute: bool
    state_bytes: float  # per GPU: weights, gradients, Adam
    buffer_bytes: float  # per GPU
    step_bytes: float  # per GPU: float32 gradients during Adam's step, when buffers and activations are freed
    sequence_bytes: float  # per GPU: activations and logits of a sequence
    host_bytes: float  # per node
    largest_micro_batch: int
    micro_batch: int
    accumulation: int
    sent_bytes: float  # per GPU and step

    @property
    def memory(self) -> float:
        """Peak bytes per GPU, with at least one sequence."""
        running = self.buffer_bytes + max(self.micro_batch, 1) * self.sequence_bytes
        return self.state_bytes + max(running, self.step_bytes)


def divide_batch(largest: int, gpus: int, load: Workload) -> tuple[int, int]:
    """Return micro batch and accumulation steps of a GPU; (0, 0) if no sequence fits.

    largest: the largest micro batch that fits. The product of both results is the number of sequences of a GPU in a
    step: its share of the global batch or, if no global batch is given, about STEP_TOKENS / gpus tokens.
    """
    if largest < 1:
        return 0, 0
    if load.global_batch:
        share = load.global_batch // gpus
        micro_batch = next(size for size in range(min(share, largest), 0, -1) if share % size == 0)
        return micro_batch, share // micro_batch
    share = max(1, round(STEP_TOKENS / load.block / gpus))
    accumulation = -(-share // largest)
    return -(-share // accumulation), accumulation


def make_config_plan(config: str, recompute: bool, load: Workload, machine: Machine) -> ConfigPlan:
    """Estimate the memory of a configuration and the largest micro batch that fits."""
    parameters, gpus = parameter_count(load.shape), machine.gpus
    states, buffers = state_bytes(config, parameters, gpus), buffer_bytes(config, load.shape)
    step, sequence = step_bytes(config, parameters, gpus), sequence_bytes(load.shape, load.block, recompute)
    host, left = host_bytes(config, parameters, gpus, machine.nodes), MEMORY_SHARE * machine.gpu_memory - states
    too_large = step > left or (machine.host_memory and host > machine.host_memory)
    largest = 0 if too_large else max(0, int((left - buffers) // sequence))
    micro_batch, accumulation = divide_batch(largest, gpus, load)
    sent = sent_bytes(config, parameters, gpus, accumulation)
    return ConfigPlan(
        config, recompute, states, buffers, step, sequence, host, largest, micro_batch, accumulation, sent
    )


def make_plans(load: Workload, machine: Machine) -> list[ConfigPlan]:
    """Return the plans of all configurations, simplest first: each with activations kept, then recomputed."""
    stage_3 = "zero3-fp16" if load.precision == "fp16" else "zero3"
    names = ("zero1", "zero2", stage_3, "zero3-offload-optimizer", "zero3-offload-all")
    return [make_config_plan(name, recompute, load, machine) for name in names for recompute in (False, True)]


def recommend(plans: Sequence[ConfigPlan], block: int) -> ConfigPlan | None:
    """Return the simplest plan with a micro batch of USEFUL_TOKENS or more, else the simplest that fits, else None.

    A smaller micro batch is enough if it is a GPU's whole share of the global batch. Plans with offloading are
    considered only if no other plan fits. block: tokens of a sequence.
    """
    for offload in (False, True):
        fitting = [plan for plan in plans if plan.micro_batch and ("offload" in plan.config) == offload]
        useful = [plan for plan in fitting if plan.micro_batch * block >= USEFUL_TOKENS or plan.accumulation == 1]
        if fitting:
            return (useful or fitting)[0]
    return None


def describe_shortage(load: Workload, machine: Machine, plans: Sequence[ConfigPlan]) -> str:
    """Return one line that says how much memory is missing and how many of these GPUs are enough."""
    allowed, host = MEMORY_SHARE * machine.gpu_memory, machine.host_memory or float("inf")
    # Host memory is compared last, since it is easier to add.
    closest = min(plans, key=lambda plan: (max(plan.memory - allowed, 0), max(plan.host_bytes - host, 0)))
    lacking = []
    if closest.memory > allowed:
        lacking.append(
            f"{(closest.memory - allowed) / GIB:,.1f} GiB on each GPU for one sequence of {load.block:,} tokens"
        )
    if closest.host_bytes > host:
        lacking.append(f"{(closest.host_bytes - host) / GIB:,.0f} GiB of host memory on a node")
    line = f"no configuration fits: {closest.config} comes closest and lacks {' and '.join(lacking)}"
    within = range(machine.gpus + 1, machine.per_node)
    for gpus in [*within, *range(machine.per_node, MAX_GPUS + 1, machine.per_node)]:
        larger = Machine(gpus, machine.per_node, machine.gpu_memory, machine.host_memory)
        free = Workload(load.shape, load.block, load.precision)
        found = recommend(make_plans(free, larger), load.block) if gpus > machine.gpus else None
        if found:
            return f"{line}; {gpus} such GPUs are enough, with {found.config}"
    return f"{line}, and no number of such GPUs is enough; lower --block_size, or use GPUs and hosts with more memory"


def tokens_per_second(plan: ConfigPlan, load: Workload, gpus: int, gpu: str) -> float:
    """Return the tokens per second of all GPUs at the share of the peak in SPEEDS; recomputation costs a quarter."""
    peak, share = SPEEDS[gpu]
    return gpus * peak * share / flops_per_token(load.shape, load.block) * (0.75 if plan.recompute else 1)


def recipe_command(plan: ConfigPlan, model: Path, load: Workload, machine: Machine) -> str:
    """Return the command line of the training recipe."""
    folder = model.parent if model.is_file() else model
    settings = f"MODEL={shlex.quote(str(folder))} DATA=corpus/all OUT=trained PRECISION={load.precision}"
    settings += f" CONFIG=pretrain/configs/{plan.config}.json"
    settings += f" MICRO_BATCH={plan.micro_batch} ACCUMULATION={plan.accumulation}"
    recipe = "train.sh" if machine.nodes == 1 else "train_multinode.sh"
    kept = "" if plan.recompute else " --gradient_checkpointing False"
    return f"{settings} bash pretrain/scripts/{recipe} --block_size {load.block}{kept}"


def format_table(plans: Sequence[ConfigPlan], load: Workload, machine: Machine, gpu: str) -> str:
    """Return a table with one line per configuration.

    A line has the memory with activations kept and with activations recomputed, and the traffic and speed of the
    recommended plan of the two.
    """
    lines = [
        f"{'':<23}  {'GiB on a GPU':^14}  {'kept':^14}  {'recomputed':^14}  host GiB  GiB sent  tokens",
        f"{'configuration':<23}  {'states':>6} {'buffers':>7}" + f"  {'GiB a seq':>9} {'seqs':>4}" * 2
        + "    a node    a step     a s",
    ]  # fmt: skip
    for kept, recomputed in zip(plans[::2], plans[1::2], strict=True):
        sizes = "".join(
            f"  {plan.sequence_bytes / GIB:>9.2f} {plan.largest_micro_batch or '-':>4}" for plan in (kept, recomputed)
        )
        best = recommend([kept, recomputed], load.block)
        sent = f"{best.sent_bytes / GIB:,.0f}" if best else "-"
        speed = f"{tokens_per_second(best, load, machine.gpus, gpu):,.0f}" if best and gpu else "-"
        memory = f"{kept.state_bytes / GIB:>6.1f} {kept.buffer_bytes / GIB:>7.1f}"
        lines.append(f"{kept.config:<23}  {memory}{sizes}  {kept.host_bytes / GIB:>8,.0f}  {sent:>8} {speed:>7}")
    return "\n".join(lines)


def assumptions(gpu: str) -> str:
    """Return the meaning of the columns and the assumptions of the estimate."""
    text = f"""\
states: weights, gradients and Adam's states, 16 bytes a parameter, partitioned by the ZeRO stage. buffers: DeepSpeed's
buckets, the largest gradient and gathered weights. GiB a seq: logits of a packed sequence and its activations, which
are kept or recomputed (--gradient_checkpointing True, as in the recipes). seqs: the largest micro batch that fits in
{MEMORY_SHARE:.0%} of the memory, - if none fits; the rest is for CUDA, NCCL and fragmentation. host GiB: memory of a
node for loading or offloading. GiB sent: traffic of a GPU."""
    if not gpu:
        return f"{text}\ntokens a s: give --gpu for an estimate."
    peak, share = SPEEDS[gpu]
    return f"""{text}
tokens a s: an upper bound, at {share:.0%} of {peak / 1e12:.0f} TFLOP/s as in a published run, and a quarter less if
activations are recomputed; communication and offloading are assumed to take no time."""


def describe_plan(plan: ConfigPlan, load: Workload, machine: Machine) -> str:
    """Return the recommended plan as one line."""
    sequences, way = plan.micro_batch * plan.accumulation * machine.gpus, "recomputed" if plan.recompute else "kept"
    batch = f"{sequences:,} sequence{'s' * (sequences != 1)} = {sequences * load.block:,} tokens a step"
    return f"Recommended: {plan.config}, activations {way}, peak {plan.memory / GIB:.1f} GiB a GPU, {batch}:"
