"""Map a checkpoint's configuration and tensors to llama.cpp's names and layout.

transformers' model class gives the names and shapes of the tensors that a configuration requires; the gguf package has
llama.cpp's names for them. For LLaMA and Mistral, llama.cpp rotates neighbouring rows of q and k, and transformers
rotates row i with row i + head_dim / 2, so the rows of q and k are reordered. Qwen2 and Qwen3 keep their order.
Metadata keys: docs/gguf.md of the ggml project.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_io.bit_patterns import FLOATS
from checkpoint_io.checkpoint_folders import read_json
from checkpoint_io.tensors import Tensor, read_weights
from checkpoint_io.tied_matrices import has_own_output
from model_folders.diff_recognition import refuse_diff

EXPORT_ORIGINAL = "export the original model, which is not quantised"
# transformers class -> llama.cpp architecture
ARCHITECTURES = {
    "LlamaForCausalLM": "llama", "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3",
}  # fmt: skip
SCALING = ("default", "linear", "yarn", "llama3")
# YaRN's other parameters must equal llama.cpp's constants.
YARN = {
    "beta_fast": 32, "beta_slow": 1, "truncate": True, "attention_factor": None, "mscale": None, "mscale_all_dim": None,
}  # fmt: skip


@dataclass
class GgufModel:
    """The content of a GGUF file: `settings` by key, `tensors` by llama.cpp's name in file order."""

    architecture: str
    settings: dict[str, int | float | str]
    tensors: dict[str, Tensor]
    rope_factors: np.ndarray | None  # (head_dim / 2,) float32 divisors of the frequencies (LLaMA 3)
    vocabulary_size: int  # rows of the embedding
    head_dim: int
    tied: bool  # whether the output matrix is tied to the embedding


def read_model(folder: Path) -> GgufModel:
    """Return the content of the GGUF file for a checkpoint folder; gguf_writer.py reads the weights later.

    Raises ValueError for a setting that llama.cpp would treat differently from transformers, and for a tensor that is
    missing, unexpected, or not of the shape that config.json requires.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    refuse_diff(folder)
    path = folder / "config.json"
    content = read_json(path)
    names = content.get("architectures") or [content.get("model_type")]
    if len(names) != 1 or names[0] not in ARCHITECTURES:
        raise ValueError(
            f"{path}: {', '.join(map(str, names))} is not supported; export one of {', '.join(ARCHITECTURES)}"
        )
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        check_settings(config, names[0], path)
        with torch.device("meta"):
            state = AutoModelForCausalLM.from_config(config, trust_remote_code=False).state_dict()
    except Exception as error:  # transformers raises many types
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope: dict[str, Any] = config.rope_parameters
    settings: dict[str, int | float | str] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] in ("linear", "yarn"):
        settings |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        settings["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
    weights, architecture = read_weights(folder), ARCHITECTURES[names[0]]
    tied = bool(config.tie_word_embeddings) and not has_own_output(weights)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if not (tied and name == "lm_head.weight")}
    return GgufModel(
        architecture,
        {f"{architecture}.{key}": value for key, value in settings.items()},
        named_tensors(weights, shapes, architecture, config.num_hidden_layers),
        llama3_divisors(config, head_dim) if rope["rope_type"] == "llama3" else None,
        config.vocab_size,
        head_dim,
        tied,
    )


def check_settings(config: Any, model_class: str, path: Path) -> None:
    """Raise ValueError for the first setting that llama.cpp does not support for these architectures."""
    if getattr(config, "quantization_config", None):
        raise ValueError(f"the model is quantised; {EXPORT_ORIGINAL}")
    window, rope = getattr(config, "sliding_window", None), config.rope_parameters
    unsupported = {
        "hidden_act": config.hidden_act != "silu",
        "sliding_window": window is not None and window < config.max_position_embeddings,
        "layer_types": any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []),
        "attention_bias": model_class == "Qwen3ForCausalLM" and config.attention_bias,
    }
    for key, is_present in unsupported.items():
        if is_present:
            raise ValueError(f"{key}={getattr(config, key)!r} is not supported by llama.cpp for this architecture")
    if rope["rope_type"] not in SCALING:
        raise ValueError(
            f"rotary embeddings of type {rope['rope_type']!r} are not supported, only {', '.join(SCALING)}"
        )
    for key, value in ((YARN if rope["rope_type"] == "yarn" else {}) | {"partial_rotary_factor": 1}).items():
        if rope.get(key) not in (None, value):
            raise ValueError(f"{key}={rope[key]!r} of the rotary embeddings is not supported")


def llama3_divisors(config: Any, head_dim: int) -> np.ndarray:
    """Return the divisors of LLaMA 3.1's rotary frequencies, (head_dim / 2,) float32: 1 for short wavelengths."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    unscaled = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
    divisors: np.ndarray = (unscaled / scaled).numpy()
    return divisors


def named_tensors(
    weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], architecture: str, layers: int
) -> dict[str, Tensor]:
    """Return the tensors by llama.cpp's names, in file order. shapes: required shapes by name in transformers.

    Raises ValueError for a missing or unexpected tensor, or one of another type or shape.
    """
    from gguf import MODEL_ARCH, get_tensor_name_map

    translate = get_tensor_name_map(MODEL_ARCH[architecture.upper()], layers).get_name
    named = {}
    for name, tensor in weights.items():
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and name not in shapes):
            continue  # computed from the configuration, or tied to the embedding
        if name not in shapes:
            raise ValueError(
                f"{tensor.file}: tensor {name} does not belong to the model of config.json; download both again"
            )
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{tensor.file}: tensor {name} is {tensor.dtype}; {EXPORT_ORIGINAL}")
        if tensor.shape != shapes[name]:
            raise ValueError(
                f"{tensor.file}: tensor {name} has the shape {list(tensor.shape)}, but config.json requires "
                f"{list(shapes[name])}; download both again"
            )
        named[str(translate(name, try_suffixes=(".weight", ".bias")))] = tensor
    for name in shapes:
        if name not in weights:
            raise ValueError(f"the weights have no tensor {name}, which config.json requires; download them again")
    return named
