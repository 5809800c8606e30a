"""Estimate bytes per GPU and per node for training: activations, model states and buffers under DeepSpeed's ZeRO.

The formulas follow DeepSpeed 0.19 and transformers 5. `config` is the name of a file in pretrain/configs, such as
zero3-offload-all; `gpus` is the number of GPUs of all nodes.
"""

from memory_estimate.model_shape import Shape, parameter_count

GIB = 2**30  # bytes; a card that is sold with "32 GB" has 32 GiB
# Share of a card's memory to plan with, vLLM's default (gpu_memory_utilization): CUDA's context, NCCL, workspaces of
# kernels and fragmentation take the rest.
MEMORY_SHARE = 0.92
BUCKET_ELEMENTS = 5e7  # reduce_bucket_size and stage3_prefetch_bucket_size in pretrain/configs/*.json
MAX_LIVE_PARAMETERS = 1e9  # stage3_max_live_parameters and sub_group_size, DeepSpeed's defaults
PINNED_OVERHEAD = 1.5  # pinned host bytes per requested byte: additional_buffer_factor in zero/stage3.py


def layer_bytes(shape: Shape) -> int:
    """Return the bytes per token that one layer keeps for the backward pass.

    Counted as in Korthikanti et al. 2022 (Reducing Activation Recomputation in Large Transformer Models), for packed
    sequences in transformers 5. There is no dropout, and SDPA and flash attention keep no scores.

    tensors                                   bytes per element    reason
    inputs and outputs of the two norms       4 + 2 + 2            computed in float32
    1/RMS of the two norms                    4 per token          float32
    queries                                   2
    attention output                          2 + 2                copied from segments to the sequence
    keys, values                              2 each
    row sums of attention                     4 per head           float32
    gate, activated gate, up, product         2 each
    norms of queries and keys (Qwen3)         4 + 2                computed in float32
    1/RMS of these norms                      4 per head           float32
    """
    kept = 16 * shape.hidden + 6 * shape.query + 4 * shape.key + 8 * shape.intermediate + 4 * shape.heads + 8
    return kept + shape.qk_norm * (6 * (shape.query + shape.key) + 4 * (shape.heads + shape.kv_heads))


def logits_bytes(shape: Shape) -> int:
    """Return the bytes per token of the final norm and the logits in the backward pass of the loss.

    A logit takes 3 x 4 bytes: the log-softmax that cross entropy keeps, its gradient, and the gradient of the logit.
    """
    return 8 * shape.hidden + 12 * shape.vocabulary


def sequence_bytes(shape: Shape, block: int, recompute: bool) -> int:
    """Return the peak bytes of activations, logits and their gradients of a sequence of `block` tokens.

    recompute: keep only the input of each layer, and recompute one layer at a time. The logits are freed before the
    first layer is recomputed; its MLP then has gradients of 4 bytes per element, and the layer's output of 2.
    """
    logits = logits_bytes(shape)
    if not recompute:
        return block * (shape.layers * layer_bytes(shape) + logits)
    backward = layer_bytes(shape) + 4 * shape.intermediate + 2 * shape.hidden
    return block * (shape.layers * 2 * shape.hidden + max(logits, backward))


def state_bytes(config: str, parameters: int, gpus: int) -> float:
    """Return the bytes per GPU of the model states: per parameter 2 for weights, 2 for gradients, 4 + 4 + 4 for Adam.

    Stage 1 partitions Adam's states, stage 2 also gradients, stage 3 also weights (Rajbhandari et al. 2020, figure 1).
    Gradients are stored and accumulated in 16 bits. Offloading moves Adam's states and gradients, and with `all` also
    weights, to the host.
    """
    if "offload" in config:
        return 0.0 if config.endswith("all") else 2 * parameters / gpus
    whole, partitioned = {"zero1": (4, 12), "zero2": (2, 14)}.get(config, (0, 16))
    return whole * parameters + partitioned * parameters / gpus


def buffer_bytes(config: str, shape: Shape) -> float:
    """Return the bytes per GPU of buffers: buckets, the largest gradient, and gathered weights under stage 3."""
    gathered = min(parameter_count(shape), MAX_LIVE_PARAMETERS) if config.startswith("zero3") else 0
    return 8 * BUCKET_ELEMENTS + 2 * shape.vocabulary * shape.hidden + 2 * gathered


def step_bytes(config: str, parameters: int, gpus: int) -> float:
    """Return the bytes per GPU of float32 gradients during Adam's step, when activations are freed.

    Stage 3 converts `MAX_LIVE_PARAMETERS` elements at a time; an offloaded optimizer runs on the host.
    """
    if "offload" in config:
        return 0.0
    return min(4 * parameters / gpus, 4 * MAX_LIVE_PARAMETERS if config.startswith("zero3") else float("inf"))


def host_bytes(config: str, parameters: int, gpus: int, nodes: int) -> float:
    """Return the bytes per node of host memory for loading or for offloading, whichever is larger.

    Under stages 1 and 2 every rank loads float32 weights; under stage 3 the 16-bit file is mapped and partitioned while
    loading. Offloading keeps in pinned memory, in bytes per parameter: Adam's states 12, float32 and 16-bit gradients
    4 + 2, and with `all` the weights 2.
    """
    if config in ("zero1", "zero2"):
        return 4.0 * parameters * gpus / nodes
    offloaded = 0 if "offload" not in config else 20 if config.endswith("all") else 18
    return max(2.0 * parameters, PINNED_OVERHEAD * offloaded * parameters / nodes)
