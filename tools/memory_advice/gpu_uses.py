"""The GPU memory of each use of a model: demo, server, LoRA, QLoRA and full tuning, in 16, 8 and 4 bits.

Training uses the arithmetic of pretrain/plan.py (memory_estimate/). Only the linear layers of the decoder blocks are
quantised. Embedding, norms, biases and output matrix keep 16 bits for inference, as in quantize.py, bitsandbytes and
vLLM; for tuning on a quantised base, PEFT converts them to float32.
"""

from typing import NamedTuple

from memory_estimate.model_shape import Shape, linear_count, linear_layers, parameter_count
from memory_estimate.training_memory import (
    buffer_bytes,
    layer_bytes,
    logits_bytes,
    sequence_bytes,
    state_bytes,
    step_bytes,
)

CONVERSATION = 2048  # tokens of a demo's prompt and answer, if the context is not shorter
LORA_RANK, MICRO_BATCH, CUTOFF = 16, 4, 512  # finetune.py's --lora_r, --micro_batch_size and --cutoff_len
GPUS_PER_NODE, OFFLOAD_CONFIG = 8, "zero3-offload-optimizer"  # for full tuning; the latter is in pretrain/configs
# (minimum GiB of the card, max_num_batched_tokens, max_num_seqs): vLLM's defaults (vllm/engine/arg_utils.py, 0.32). An
# A100 of 80 GB has the defaults of the last row, so it needs less memory than estimated here.
SERVER_BATCHES = ((160, 16384, 1024), (70, 8192, 1024), (0, 2048, 256))
# Bits per weight with scales: NF4 with double quantisation (Dettmers et al. 2023, section 3), GPTQ with a 16-bit scale
# for 128 weights. 8-bit layers have a float32 scale per output (`weight_bytes`).
NF4_BITS, GPTQ_BITS = 4 + 8 / 64 + 32 / (64 * 256), 4 + 16 / 128


class GpuUse(NamedTuple):
    """A use of a model on one GPU.

    fixed: bytes without the KV cache. cached: tokens in the KV cache, 0 in training. is_server: whether the KV cache
    takes the rest of the memory.
    """

    name: str
    bits: int
    fixed: float
    cached: int = 0
    is_server: bool = False


def weight_bytes(shape: Shape, bits: float, other: int = 2) -> float:
    """Return the bytes of the weights. bits: per weight of a linear layer. other: bytes per other parameter."""
    linear = linear_count(shape)
    scales = 4 * shape.layers * sum(outputs for _, outputs in linear_layers(shape)) if bits == 8 else 0
    return linear * bits / 8 + scales + other * (parameter_count(shape) - linear)


def cache_bytes_per_token(shape: Shape) -> int:
    """Return the bytes of one token in the KV cache: keys and values of each layer in 16 bits."""
    return 2 * 2 * shape.layers * shape.key


def prefill_activation_bytes(shape: Shape, tokens: int) -> int:
    """Return the peak bytes of the activations during the prefill of `tokens` prompt tokens.

    The peak is in the MLP. Bytes per hidden element: 2 for the residual, 2 for the input, 4 for its norm in float32.
    Bytes per intermediate element: 2 each for gate, up projection and their product.
    """
    return tokens * (8 * shape.hidden + 6 * shape.intermediate)


def inference_uses(shape: Shape, card: float) -> list[GpuUse]:
    """Return the uses by the demos and the server. card: memory of the card in GiB, 0 if unknown."""
    tokens = min(CONVERSATION, shape.context)
    _, batched, requests = next(row for row in SERVER_BATCHES if card >= row[0])
    demo = prefill_activation_bytes(shape, tokens)
    sampling = requests * 12 * shape.vocabulary  # bytes: float32 logits and sampling buffers
    server = prefill_activation_bytes(shape, batched) + sampling
    demos = (("", 16, 16), (" --load_8bit", 8, 8), (" after quantize.py --method nf4", 4, NF4_BITS))
    quantised = ((" after quantize.py --method fp8", 8, 8), (" after quantize.py --method gptq", 4, GPTQ_BITS))
    uses = [GpuUse(f"demo{way}", bits, weight_bytes(shape, exact) + demo, tokens) for way, bits, exact in demos]
    return uses + [
        GpuUse(f"server{way}", bits, weight_bytes(shape, exact) + server, shape.context, is_server=True)
        for way, bits, exact in (("", 16, 16), *quantised)
    ]


def lora_tuning_bytes(shape: Shape, bits: float) -> float:
    """Return the peak bytes of LoRA tuning as in lora.sh and qlora.sh, with gradient checkpointing.

    The adapter is on all linear layers; its weights, gradients and Adam states are float32. PEFT casts the adapter's
    inputs to float32, which adds 4 bytes per intermediate and per hidden element to the estimate of `sequence_bytes`.
    With a quantised base, PEFT also converts the weights that are not quantised to float32. Then the stored block
    inputs are float32, autocast makes a 16-bit copy of the output matrix, and each quantised matrix is dequantised to
    16 bits when it is multiplied.
    """
    quantised, hidden = bits < 16, shape.hidden
    factors = LORA_RANK * shape.layers * sum(sum(sizes) for sizes in linear_layers(shape))
    copies = 2 * hidden * (shape.vocabulary + shape.intermediate) if quantised else 0
    backward = layer_bytes(shape) + 8 * shape.intermediate + 6 * hidden
    inputs = shape.layers * (4 if quantised else 2) * hidden
    activations = MICRO_BATCH * CUTOFF * (inputs + max(logits_bytes(shape), backward))
    return weight_bytes(shape, bits, other=4 if quantised else 2) + 16 * factors + copies + activations


def full_tuning_bytes(shape: Shape, config: str, gpus: int) -> float:
    """Return the peak bytes per GPU of full.sh with gradient checkpointing. config: a file of pretrain/configs."""
    parameters = parameter_count(shape)
    running = buffer_bytes(config, shape) + sequence_bytes(shape, MICRO_BATCH * CUTOFF, recompute=True)
    return state_bytes(config, parameters, gpus) + max(running, step_bytes(config, parameters, gpus))


def tuning_uses(shape: Shape) -> list[GpuUse]:
    """Return the uses of a model by the recipes in finetune/scripts."""
    return [
        GpuUse("lora.sh", 16, lora_tuning_bytes(shape, 16)),
        GpuUse("lora.sh --load_in 8bit", 8, lora_tuning_bytes(shape, 8)),
        GpuUse("qlora.sh", 4, lora_tuning_bytes(shape, NF4_BITS)),
        GpuUse("full.sh, 1 GPU", 16, full_tuning_bytes(shape, "zero3", 1)),
        GpuUse(f"full.sh, each of {GPUS_PER_NODE} GPUs", 16, full_tuning_bytes(shape, "zero3", GPUS_PER_NODE)),
        GpuUse(
            f"full.sh, each of {GPUS_PER_NODE} GPUs, {OFFLOAD_CONFIG}",
            16,
            full_tuning_bytes(shape, OFFLOAD_CONFIG, GPUS_PER_NODE),
        ),
    ]
