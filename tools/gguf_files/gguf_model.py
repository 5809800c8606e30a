"""Map a checkpoint's configuration and tensors to llama.cpp's names and layout.

For LLaMA and Mistral, llama.cpp rotates neighbouring rows of q and k, and transformers rotates row i with row
i + head_dim / 2, so the rows of q and k are reordered. Qwen2 and Qwen3 keep their order. Names and keys: docs/gguf.md
of the ggml project and gguf's constants.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_io.bit_patterns import FLOATS
from checkpoint_io.checkpoint_folders import read_json
from checkpoint_io.tensors import Spec, Tensor, read_weights

EXPORT_ORIGINAL = "export the model that it was made from"
# transformers class -> llama.cpp architecture
ARCHITECTURES = {
    "LlamaForCausalLM": "llama", "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3",
}  # fmt: skip
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
MLP = ("gate_proj", "up_proj", "down_proj")
# Type of rotary scaling -> its required parameters. YaRN's other parameters must equal llama.cpp's constants.
SCALING = {"default": (), "linear": ("factor",), "yarn": ("factor", "original_max_position_embeddings")}
SCALING["llama3"] = (*SCALING["yarn"], "low_freq_factor", "high_freq_factor")
YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "truncate": True,
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
}


@dataclass(frozen=True)
class Placement:
    """A tensor's name in llama.cpp, its required shape, and the head width if its rows are reordered."""

    name: str
    shape: tuple[int, ...]
    head: int = 0  # rows per head; 0: not reordered


@dataclass
class GgufModel:
    """The content of a GGUF file: `settings` by key, `tensors` in file order."""

    architecture: str
    settings: dict[str, int | float | str]
    tensors: list[tuple[Tensor, Placement]]
    rope_factors: np.ndarray | None  # (head_dim / 2,) float32 divisors of the frequencies (LLaMA 3)
    rows: int  # vocabulary size
    tied: bool  # the output matrix is tied to the embedding


def read_model(folder: Path) -> GgufModel:
    """Map a checkpoint folder to llama.cpp's model; reads only the headers of the weight files.

    Raises ValueError for a setting that llama.cpp would treat differently from transformers, and for a tensor that is
    missing, unexpected, or not of the shape that config.json requires.
    """
    path = folder / "config.json"
    config = read_json(path)
    names = config.get("architectures") or [config.get("model_type")]
    if len(names) != 1 or names[0] not in ARCHITECTURES:
        raise ValueError(
            f"{path}: {', '.join(map(str, names))} is not supported; export one of {', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[names[0]]
    check(config, path)
    head = config.get("head_dim") or number(config, "hidden_size", path) // number(config, "num_attention_heads", path)
    rope, factors = rope_settings(config, head, path)
    settings: dict[str, int | float | str] = {
        "vocab_size": number(config, "vocab_size", path),
        "context_length": number(config, "max_position_embeddings", path),
        "embedding_length": number(config, "hidden_size", path),
        "block_count": number(config, "num_hidden_layers", path),
        "feed_forward_length": number(config, "intermediate_size", path),
        "attention.head_count": number(config, "num_attention_heads", path),
        "attention.head_count_kv": config.get("num_key_value_heads") or config["num_attention_heads"],
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": number(config, "rms_norm_eps", path, float),
        **rope,
    }
    settings = {f"{architecture}.{key}": value for key, value in settings.items()}
    tied = bool(config.get("tie_word_embeddings"))
    weights = read_weights(folder)
    tensors = list(placed(weights, dict(places(config, names[0], head)), tied))
    return GgufModel(architecture, settings, tensors, factors, config["vocab_size"], tied)


def number(config: Mapping[str, Any], key: str, path: Path, kind: type[int] | type[float] = int) -> Any:
    """Return a required number from config.json; ValueError if it is missing."""
    if not isinstance(config.get(key), kind):
        raise ValueError(f"{path} has no number {key}; download it again")
    return config[key]


def check(config: Mapping[str, Any], path: Path) -> None:
    """Raise ValueError for the first setting that llama.cpp does not support for these architectures."""
    if config.get("quantization_config"):
        raise ValueError(f"{path.parent} is quantised; {EXPORT_ORIGINAL}")
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    unhandled = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "sliding_window": window is not None and window < number(config, "max_position_embeddings", path),
        "layer_types": any(kind != "full_attention" for kind in config.get("layer_types") or []),
        "partial_rotary_factor": config.get("partial_rotary_factor") not in (None, 1),
        "attention_bias": bool(config.get("attention_bias")) and "Qwen3ForCausalLM" in config["architectures"],
    }
    for key, is_so in unhandled.items():
        if is_so:
            raise ValueError(f"{path}: {key}={config.get(key)!r} is not supported by llama.cpp for this architecture")


def rope_settings(
    config: Mapping[str, Any], head: int, path: Path
) -> tuple[dict[str, int | float | str], np.ndarray | None]:
    """Return the GGUF keys of the rotary embedding, and LLaMA 3's divisors (head / 2,) or None.

    Raises ValueError for unsupported scaling.
    """
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = given.get("rope_type") or given.get("type", "default")
    if kind not in SCALING:
        raise ValueError(f"{path}: rotary embeddings of type {kind!r} are not supported, only {', '.join(SCALING)}")
    for key in SCALING[kind]:
        if not isinstance(given.get(key), int | float):
            raise ValueError(f"{path}: rotary embeddings of type {kind} have no number {key}; correct it")
    fixed = (YARN if kind == "yarn" else {}) | {"partial_rotary_factor": 1}
    for key, value in fixed.items():
        if given.get(key) not in (None, value):
            raise ValueError(f"{path}: {key}={given[key]!r} of the rotary embeddings is not supported")
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 10000.0)
    settings: dict[str, int | float | str] = {"rope.dimension_count": head, "rope.freq_base": theta}
    if kind in ("linear", "yarn"):
        settings |= {"rope.scaling.type": kind, "rope.scaling.factor": float(given["factor"])}
    if kind == "yarn":
        settings["rope.scaling.original_context_length"] = int(given["original_max_position_embeddings"])
    return settings, llama3_divisors(theta, head, given) if kind == "llama3" else None


def llama3_divisors(theta: float, head: int, given: Mapping[str, Any]) -> np.ndarray:
    """Return LLaMA 3.1's frequency divisors, (head / 2,) float32.

    The divisor is `factor` for long wavelengths and 1 for short ones, with a smooth transition.
    Method: the reference code of LLaMA 3.1 (github.com/meta-llama/llama-models).
    """
    waves = 2 * math.pi * theta ** (np.arange(0, head, 2) / head)  # wavelengths in positions
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    share = (given["original_max_position_embeddings"] / waves - low) / (high - low)
    share = np.clip(share, 0, 1)  # weight of the unchanged frequency
    return (1 / ((1 - share) / given["factor"] + share)).astype(np.float32)


def places(config: Mapping[str, Any], name: str, head: int) -> Iterator[tuple[str, Placement]]:
    """Yield (name in transformers, placement) for every tensor that the configuration requires."""
    hidden, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * head
    keys = (config.get("num_key_value_heads") or config["num_attention_heads"]) * head
    moved = head if ARCHITECTURES[name] == "llama" else 0
    biased: tuple[str, ...] = ()
    if name == "Qwen2ForCausalLM":
        biased = ATTENTION[:3]
    elif name != "MistralForCausalLM":
        biased = (*(ATTENTION if config.get("attention_bias") else ()), *(MLP if config.get("mlp_bias") else ()))
    matrices = {
        "self_attn.q_proj": Placement("attn_q", (queries, hidden), moved),
        "self_attn.k_proj": Placement("attn_k", (keys, hidden), moved),
        "self_attn.v_proj": Placement("attn_v", (keys, hidden)),
        "self_attn.o_proj": Placement("attn_output", (hidden, queries)),
        "mlp.gate_proj": Placement("ffn_gate", (inner, hidden)),
        "mlp.up_proj": Placement("ffn_up", (inner, hidden)),
        "mlp.down_proj": Placement("ffn_down", (hidden, inner)),
    }
    norms = {name: Placement(place, (hidden,)) for name, place in NORMS.items()}
    if name == "Qwen3ForCausalLM":
        norms |= {f"self_attn.{part}_norm": Placement(f"attn_{part}_norm", (head,)) for part in "qk"}
    yield "model.embed_tokens.weight", Placement("token_embd.weight", (rows, hidden))
    yield "model.norm.weight", Placement("output_norm.weight", (hidden,))
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", Placement("output.weight", (rows, hidden))
    for layer in range(config["num_hidden_layers"]):
        for module, place in (norms | matrices).items():
            ours, theirs = f"model.layers.{layer}.{module}", f"blk.{layer}.{place.name}"
            yield f"{ours}.weight", Placement(f"{theirs}.weight", place.shape, place.head)
            if module.split(".")[-1] in biased:
                yield f"{ours}.bias", Placement(f"{theirs}.bias", place.shape[:1], place.head)


def placed(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Placement], tied: bool
) -> Iterator[tuple[Tensor, Placement]]:
    """Yield each tensor with its placement, in file order.

    Raises ValueError for a missing or unexpected tensor, or one of another type or shape.
    """
    for name, tensor in weights.items():
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue  # computed from the configuration, or tied
        if name not in wanted:
            raise ValueError(f"{tensor.file}: config.json requires no tensor {name}; download both again")
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{tensor.file}: tensor {name} is {tensor.dtype}; {EXPORT_ORIGINAL}")
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{tensor.file}: tensor {name} is {list(tensor.shape)}, by config.json {list(wanted[name].shape)}"
            )
        yield tensor, wanted[name]
    for name in wanted:
        if name not in weights:
            raise ValueError(f"the weights have no tensor {name}, which config.json requires; download them again")


def interleaved(bits: np.ndarray, spec: Spec, head: int) -> np.ndarray:
    """Return flat bit patterns with the two halves of each head interleaved: rows 0, half, 1, half + 1, …"""
    if not head:
        return bits
    columns = spec.shape[1] if len(spec.shape) == 2 else 1
    return bits.reshape(-1, 2, head // 2, columns).swapaxes(1, 2).reshape(-1)
