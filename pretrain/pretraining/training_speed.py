"""Estimates of speed: floating-point operations per token, peak FLOP/s of known GPUs, bytes sent in a step."""

from memory_estimate.model_shape import Shape, parameter_count

# Dense 16-bit peak in FLOP/s (NVIDIA's data sheets, SXM; A800 and H800 differ only in NVLink), and the share of it
# that a published training run reached: V100 15 PFLOP/s on 400 GPUs (Rajbhandari et al. 2020), A100 380 tokens/s per
# GPU with LLaMA-65B (Touvron et al. 2023), H100 38 to 43 % (Llama Team 2024).
SPEEDS = {
    "v100": (125e12, 0.30), "a100": (312e12, 0.47), "a800": (312e12, 0.47),
    "h100": (989e12, 0.40), "h800": (989e12, 0.40), "h200": (989e12, 0.40),
}  # fmt: skip


def flops_per_token(shape: Shape, block: int) -> float:
    """Return the FLOPs of training per token, with sequences of `block` tokens.

    6 per parameter, and 12 x layers x width x tokens for attention, halved since it is causal (PaLM, appendix B).
    """
    return 6 * parameter_count(shape) + 6 * shape.layers * shape.query * block


def sent_bytes(config: str, parameters: int, gpus: int, accumulation: int) -> float:
    """Return the bytes that a GPU sends in a step: 16-bit elements, twice for all-reduce, else once.

    Volumes as in section 7 of the ZeRO paper. DeepSpeed's stages 1 and 2 all-reduce gradients (stage 1 once a step,
    stage 2 in every micro batch) and gather weights once; stage 3 gathers twice and reduce-scatters once in every micro
    batch.
    """
    times = {"zero1": 3, "zero2": 2 * accumulation + 1}.get(config, 3 * accumulation)
    return 2.0 * times * parameters * (gpus - 1) / gpus
