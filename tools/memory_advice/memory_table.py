"""The table of `checkpoint.py memory`: what each use of a model needs, and whether it fits a card."""

from pathlib import Path

from checkpoint_io.checkpoint_folders import read_json
from memory_estimate.model_shape import Shape, format_count, parameter_count, read_shape
from memory_estimate.training_memory import GIB, MEMORY_SHARE, host_bytes

from memory_advice.gpu_uses import (
    CONVERSATION,
    CUTOFF,
    GPUS_PER_NODE,
    LORA_RANK,
    MICRO_BATCH,
    OFFLOAD_CONFIG,
    GpuUse,
    cache_bytes_per_token,
    inference_uses,
    tuning_uses,
)

# Shapes of Llama-3.2-1B, LLaMA-7B, LLaMA-13B and Llama-2-70B, for the names 1B, 7B, 13B and 70B.
PUBLISHED_SHAPES = {
    "1B": Shape(128256, 2048, 8192, 16, 32, 8, 64, 131072, tied=True),
    "7B": Shape(32000, 4096, 11008, 32, 32, 32, 128, 2048),
    "13B": Shape(32000, 5120, 13824, 40, 40, 40, 128, 2048),
    "70B": Shape(32000, 8192, 28672, 80, 64, 8, 128, 4096),
}
CACHE_BLOCK = 16  # tokens of a block of vLLM's KV cache


def shape_of(folder: str) -> Shape:
    """Return the shape of a checkpoint folder, a config.json or a name of PUBLISHED_SHAPES, also in lower case.

    Raises FileNotFoundError or ValueError.
    """
    if folder.upper() in PUBLISHED_SHAPES and not Path(folder).exists():
        return PUBLISHED_SHAPES[folder.upper()]
    try:
        return read_shape(Path(folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or one of {', '.join(PUBLISHED_SHAPES)}") from None


def is_quantised(folder: str) -> bool:
    """Return whether config.json says that the weights are quantised. folder: see `shape_of`."""
    path = Path(folder)
    file = path / "config.json" if path.is_dir() else path
    return file.exists() and "quantization_config" in read_json(file)


def describe_fit(use: GpuUse, shape: Shape, card: float) -> str:
    """Return whether a use fits a card of `card` GiB, as text; for the server, also the capacity of its KV cache."""
    left = MEMORY_SHARE * card * GIB - use.fixed
    tokens = int(left // (CACHE_BLOCK * cache_bytes_per_token(shape))) * CACHE_BLOCK
    if not use.is_server:
        return "yes" if left >= use.cached * cache_bytes_per_token(shape) else "no"
    if tokens < CACHE_BLOCK:
        return "no"
    fits = tokens >= use.cached
    return f"yes, {tokens:,} tokens of KV cache" if fits else f"with --max-model-len {tokens}"


def memory_table(folder: str, card: float) -> str:
    """Return the table. folder: see `shape_of`. card: memory of the card in GiB; 0 omits the column for the card."""
    shape = shape_of(folder)
    parameters, per_token = parameter_count(shape), cache_bytes_per_token(shape)
    rows = [("use", "bits", "needs GiB", f"card of {card:g} GiB" if card else "")]
    for use in (*inference_uses(shape, card), *tuning_uses(shape)):
        needed = (use.fixed + use.cached * per_token) / MEMORY_SHARE / GIB
        rows.append((use.name, str(use.bits), f"{needed:.1f}", describe_fit(use, shape, card) if card else ""))
    lines = [f"{name:<48}  {bits:>4}  {needed:>9}  {fits}".rstrip() for name, bits, needed, fits in rows]
    conversation = min(CONVERSATION, shape.context)
    host = host_bytes(OFFLOAD_CONFIG, parameters, GPUS_PER_NODE, 1) / GIB
    lines = [
        f"{folder}: {format_count(parameters)} parameters, context of {shape.context:,} tokens, "
        f"{per_token / 2**10:,.0f} KiB of KV cache a token",
        "",
        *lines,
        "",
        f"Estimates. CUDA, NCCL and fragmentation take {1 - MEMORY_SHARE:.0%} of a card.",
        f"Demo: prompt and answer of {conversation:,} tokens.",
        "Server: a request of the whole context; the KV cache takes the rest of the card.",
        f"Tuning: activations recomputed, --micro_batch_size {MICRO_BATCH} --cutoff_len {CUTOFF} --lora_r {LORA_RANK};",
        f"{OFFLOAD_CONFIG} takes {host:,.0f} GiB of host memory. More on full tuning: pretrain/plan.py.",
    ]
    if is_quantised(folder):
        lines.insert(1, f"{folder} is already quantised; the rows estimate the unquantised model")
    return "\n".join(lines)
