"""Estimates for training a LLaMA: parameters, bytes per GPU and per node, bytes sent, floating-point operations.

Only config.json is read. The formulas follow DeepSpeed 0.19 and transformers 5; each function names its source.
"""

import json
from dataclasses import dataclass
from pathlib import Path

BUCKET = 5e7  # elements; reduce_bucket_size and stage3_prefetch_bucket_size in configs/*.json
LIVE = 1e9  # elements; stage3_max_live_parameters and sub_group_size, DeepSpeed's defaults
PINNED = 1.5  # bytes of pinned host memory per requested byte: additional_buffer_factor in zero/stage3.py
# Dense 16-bit peak in FLOP/s (NVIDIA's data sheets, SXM; A800 and H800 differ only in NVLink), and the share of it
# that a published training run reached: V100 15 PFLOP/s on 400 GPUs (Rajbhandari et al. 2020), A100 380 tokens/s per
# GPU with LLaMA-65B (Touvron et al. 2023), H100 38 to 43 % (Llama Team 2024).
SPEEDS = {
    "v100": (125e12, 0.30), "a100": (312e12, 0.47), "a800": (312e12, 0.47),
    "h100": (989e12, 0.40), "h800": (989e12, 0.40), "h200": (989e12, 0.40),
}  # fmt: skip
LONGEST_BLOCK = 4096  # most tokens of a packed sequence, without --block_size
FAMILY = ("llama", "mistral")  # model types whose layers are LLaMA's


@dataclass(frozen=True)
class Shape:
    """The values of a LLaMA's config.json that determine its size; widths in elements, `context` in tokens."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False


def read_shape(path: Path) -> Shape:
    """Read the shape from a checkpoint folder or config.json; raises FileNotFoundError or ValueError."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; --model takes a checkpoint folder or a config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); download it again") from None
    if not isinstance(config, dict) or config.get("model_type") not in FAMILY:
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise ValueError(f"{file} has model_type {kind}, which is not supported; known: {', '.join(FAMILY)}")

    def number(name: str, default: int | None = None) -> int:
        value = default if config.get(name) is None else config[name]
        if type(value) is not int or value < 1:
            raise ValueError(f"{file} has {name} {json.dumps(value)}, not a whole number above 0; download it again")
        return value

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    return Shape(
        number("vocab_size"), hidden, number("intermediate_size"), number("num_hidden_layers"), heads,
        number("num_key_value_heads", heads), number("head_dim", hidden // heads), number("max_position_embeddings"),
        *(bool(config.get(name)) for name in ("tie_word_embeddings", "attention_bias", "mlp_bias")),
    )  # fmt: skip


def parameter_count(shape: Shape) -> int:
    """Return the number of parameters of LlamaForCausalLM with embeddings; tied embeddings count once."""
    hidden, query, key = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = 2 * hidden * (query + key) + shape.attention_bias * (query + 2 * key + hidden)
    mlp = 3 * hidden * shape.intermediate + shape.mlp_bias * (2 * shape.intermediate + hidden)
    embeddings = shape.vocabulary * hidden * (1 if shape.tied else 2)
    return embeddings + shape.layers * (attention + mlp + 2 * hidden) + hidden


def layer_bytes(shape: Shape, block: int) -> int:
    """Return the bytes per token that one layer keeps for the backward pass, with sequences of `block` tokens.

    Counted as in Korthikanti et al. 2022 (Reducing Activation Recomputation in Large Transformer Models), for LLaMA in
    transformers. Bytes per element: two norms that compute in float32, 4 + 2 + 2 each; queries, keys, values (repeated
    for grouped heads) and attention output, 2 each; row sums of attention, 4 per head, and its mask; gate, activated
    gate, up projection and their product, 2 each. There is no dropout, and SDPA and flash attention keep no scores.
    """
    query = shape.heads * shape.head_dim
    return 16 * shape.hidden + 8 * query + 8 * shape.intermediate + 4 * shape.heads + 2 * block + 8


def sequence_bytes(shape: Shape, block: int, recompute: bool) -> int:
    """Return the peak bytes of the activations and logits of a sequence.

    recompute: keep only the input of each layer, and the activations of one layer at a time. A logit takes 2 + 4 + 4
    bytes: 16-bit, float32, and the log-softmax that cross entropy keeps (later its gradient).
    """
    layer = layer_bytes(shape, block)
    layers = shape.layers * 2 * shape.hidden + layer if recompute else shape.layers * layer
    return block * (layers + 8 * shape.hidden + 10 * shape.vocabulary)


def flops_per_token(shape: Shape, block: int) -> float:
    """Return the FLOPs of training per token, with sequences of `block` tokens.

    6 per parameter, and 12 x layers x width x tokens for attention, halved since it is causal (PaLM, appendix B).
    """
    return 6 * parameter_count(shape) + 6 * shape.layers * shape.heads * shape.head_dim * block


def state_bytes(config: str, parameters: int, gpus: int) -> float:
    """Return the bytes per GPU of the model states: per parameter 2 for weights, 2 for gradients, 4 + 4 + 4 for Adam.

    Stage 1 partitions Adam's states, stage 2 also gradients, stage 3 also weights (Rajbhandari et al. 2020, figure 1).
    Gradients are stored and accumulated in 16 bits.
    """
    if "offload" in config:
        return 0.0 if config.endswith("all") else 2 * parameters / gpus
    whole, partitioned = {"zero1": (4, 12), "zero2": (2, 14)}.get(config, (0, 16))
    return whole * parameters + partitioned * parameters / gpus


def buffer_bytes(config: str, shape: Shape) -> float:
    """Return the bytes per GPU of buffers: buckets, the largest gradient, and gathered weights under stage 3."""
    gathered = min(parameter_count(shape), LIVE) if config.startswith("zero3") else 0
    return 8 * BUCKET + 2 * shape.vocabulary * shape.hidden + 2 * gathered


def step_bytes(config: str, parameters: int, gpus: int) -> float:
    """Return the bytes per GPU of float32 gradients during Adam's step, when activations are freed.

    Stage 3 converts `LIVE` elements at a time; an offloaded optimizer runs on the host.
    """
    if "offload" in config:
        return 0.0
    return min(4 * parameters / gpus, 4 * LIVE if config.startswith("zero3") else float("inf"))


def host_bytes(config: str, parameters: int, gpus: int, nodes: int) -> float:
    """Return the bytes per node of host memory for loading or for offloading, whichever is larger.

    Under stages 1 and 2 every rank loads float32 weights; under stage 3 the 16-bit file is mapped and partitioned while
    loading. Offloading keeps in pinned memory, in bytes per parameter: Adam's states 12, float32 and 16-bit gradients
    4 + 2, and with `all` the weights 2.
    """
    if config in ("zero1", "zero2"):
        return 4.0 * parameters * gpus / nodes
    offloaded = 0 if "offload" not in config else 20 if config.endswith("all") else 18
    return max(2.0 * parameters, PINNED * offloaded * parameters / nodes)


def sent_bytes(config: str, parameters: int, gpus: int, accumulation: int) -> float:
    """Return the bytes that a GPU sends in a step: 16-bit elements, twice for all-reduce, else once.

    Volumes as in section 7 of the ZeRO paper. DeepSpeed's stages 1 and 2 all-reduce gradients (stage 1 once a step,
    stage 2 in every micro batch) and gather weights once; stage 3 gathers twice and reduce-scatters once in every micro
    batch.
    """
    times = {"zero1": 3, "zero2": 2 * accumulation + 1}.get(config, 3 * accumulation)
    return 2.0 * times * parameters * (gpus - 1) / gpus
