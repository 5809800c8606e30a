"""LLaMA's params.json: its content, the released size and version that it matches, and the equivalent config.json.

Sources: params.json and model.py of https://github.com/meta-llama/llama and https://github.com/meta-llama/llama-models.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_io.checkpoint_folders import read_json

# Released sizes: dim, n_layers, key-value heads. The paper calls 30B 33B; 34B is Code LLaMA's.
SIZES = {
    "1B": (2048, 16, 8), "3B": (3072, 28, 8), "7B": (4096, 32, 32), "8B": (4096, 32, 8), "13B": (5120, 40, 40),
    "30B": (6656, 60, 52), "34B": (8192, 48, 8), "65B": (8192, 80, 64), "70B": (8192, 80, 8),
}  # fmt: skip
CONTEXT = {"1": 2048, "2": 4096, "3": 8192, "3.1": 131072, "3.2": 131072, "3.3": 131072}  # tokens, by version
CODE_CONTEXT = 16384  # Code LLaMA, the only model before version 3 whose rope_theta is not 10000
# Scaling factor of the rotary frequencies. The small models of 3.2 were trained with 32: it is missing in their
# params.json, the original code first had 8 (meta-llama/llama-models #166), and their published config.json has 32.
SCALE = {"3.1": 8.0, "3.2": 32.0, "3.3": 8.0}

# The transformers version whose format config.json has. Without this entry, transformers 5 treats every tokenizer of
# more than 100,000 pieces as a faulty Mistral tokenizer and recommends a setting that would break it.
TRANSFORMERS = "5.19.0"

KNOWN = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps",
    "rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len", "max_batch_size",
}  # fmt: skip


@dataclass(frozen=True)
class Params:
    """The content of params.json, with the original code's defaults filled in."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int  # width of the feed-forward layers
    norm_eps: float
    rope_theta: float
    scaled_rope: bool
    scale: float | None  # scaling factor of the rotary frequencies, if given
    vocabulary: int  # 0 if not given

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def size(self) -> str:
        """Return the released size, or the dimensions of a model of another size."""
        shape = (self.dim, self.layers, self.kv_heads)
        known = (name for name, entry in SIZES.items() if entry == shape)
        return next(known, f"dim {self.dim}, {self.layers} layers, {self.kv_heads} key-value heads")


def feed_forward_size(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Return the feed-forward width: 2/3 of 4 dim, times the multiplier, rounded up to `multiple_of`."""
    hidden = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


def read_params(path: Path) -> Params:
    """Read params.json; ValueError for a missing, invalid or unknown entry."""
    content = read_json(path)
    for name, value in content.items():
        if name not in KNOWN:
            raise ValueError(f"{path}: {name}={value!r} is not an entry of a LLaMA text model; it is not supported")

    def number(name: str, default: float | None = None, whole: bool = True) -> Any:
        value = default if content.get(name) is None else content[name]
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < math.inf:
            raise ValueError(f"{path}: {name} is {value!r}, not a positive number; download it again")
        return value

    dim, heads = number("dim"), number("n_heads")
    kv_heads = number("n_kv_heads", heads)
    if dim % heads or heads % kv_heads or dim // heads % 2:
        raise ValueError(f"{path}: dim {dim}, n_heads {heads} and n_kv_heads {kv_heads} do not fit; download it again")
    multiplier = number("ffn_dim_multiplier", whole=False) if content.get("ffn_dim_multiplier") is not None else None
    return Params(
        dim=dim,
        layers=number("n_layers"),
        heads=heads,
        kv_heads=kv_heads,
        hidden=feed_forward_size(dim, number("multiple_of", 256), multiplier),
        norm_eps=float(number("norm_eps", whole=False)),
        rope_theta=float(number("rope_theta", 10000.0, whole=False)),
        scaled_rope=bool(content.get("use_scaled_rope")),
        scale=float(number("rope_scaling_factor", whole=False)) if content.get("rope_scaling_factor") else None,
        vocabulary=0 if content.get("vocab_size", -1) == -1 else number("vocab_size"),
    )


def check_size(size: str, params: Params, path: Path) -> None:
    """Raise ValueError if --model_size is unknown or differs from params.json; `auto` accepts any size."""
    if size == "auto":
        return
    shape = SIZES.get(size.removesuffix("f").upper())
    if shape is None:
        raise ValueError(
            f"--model_size {size} is unknown; use {', '.join(SIZES)} (7Bf and so on for chat models), or auto to rely "
            "on params.json"
        )
    if shape != (params.dim, params.layers, params.kv_heads):
        raise ValueError(
            f"--model_size {size} has dim {shape[0]}, {shape[1]} layers, {shape[2]} key-value heads, but {path} is of "
            f"{params.size}; correct --model_size or --input_dir"
        )


def version_of(params: Params, dtype: str, ranked: bool) -> str:
    """Infer the LLaMA version of a checkpoint; 3.3 is reported as 3.1, because their files do not differ.

    dtype: of the weights; version 1 was released in float16, version 2 in bfloat16 (huggingface/transformers #25446).
    ranked: tokenizer.model is a rank table, not a SentencePiece model.
    """
    if ranked:
        small = params.size in ("1B", "3B")
        return "3" if not params.scaled_rope else "3.2" if small else "3.1"
    grouped = params.kv_heads != params.heads
    return "2" if dtype == "BF16" or grouped or params.rope_theta > 10000 else "1"


def check_version(version: str, params: Params, ranked: bool) -> None:
    """Raise ValueError if --llama_version is unknown or contradicts the files."""
    if version not in CONTEXT:
        raise ValueError(f"--llama_version {version} is unknown; use one of {', '.join(CONTEXT)}")
    contradictions = {
        "tokenizer.model is a table of ranks, as since version 3": ranked and version < "3",
        "tokenizer.model is a SentencePiece model, as before version 3": not ranked and version >= "3",
        "params.json has use_scaled_rope, as since version 3.1": params.scaled_rope and version not in SCALE,
        "params.json has no use_scaled_rope, as before version 3.1": not params.scaled_rope and version in SCALE,
    }
    for fact, is_so in contradictions.items():
        if is_so:
            raise ValueError(f"--llama_version {version} contradicts the files: {fact}; omit it to infer the version")


def context_of(params: Params, version: str) -> int:
    """Return the context length of the model in tokens."""
    return CODE_CONTEXT if version < "3" and params.rope_theta > 10000 else CONTEXT[version]


def model_config(params: Params, version: str, dtype: str) -> dict[str, Any]:
    """Return config.json without vocab_size, token ids and tie_word_embeddings, which the caller adds.

    dtype: PyTorch's name, such as float16. The rotary settings appear twice: transformers 5 reads `rope_parameters`,
    earlier versions and other programs read `rope_theta` and `rope_scaling`. All of them read `torch_dtype`.
    """
    scaling = None
    if params.scaled_rope:
        scaling = {
            "rope_type": "llama3", "factor": params.scale or SCALE[version], "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": params.head_dim,
        "hidden_act": "silu",
        "hidden_size": params.dim,
        "initializer_range": 0.02,
        "intermediate_size": params.hidden,
        "max_position_embeddings": context_of(params, version),
        "mlp_bias": False,
        "num_attention_heads": params.heads,
        "num_hidden_layers": params.layers,
        "num_key_value_heads": params.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": params.norm_eps,
        "rope_parameters": {**(scaling or {"rope_type": "default"}), "rope_theta": params.rope_theta},
        "rope_scaling": scaling,
        "rope_theta": params.rope_theta,
        "torch_dtype": dtype,
        "transformers_version": TRANSFORMERS,
        "use_cache": True,
    }
