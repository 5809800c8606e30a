"""LLaMA's params.json: its content, the released size and version that it matches, and the equivalent config.json.

Sources: params.json and model.py of https://github.com/meta-llama/llama and https://github.com/meta-llama/llama-models.
"""

import math
from pathlib import Path
from typing import Any

from checkpoint_io.checkpoint_folders import read_json
from model_folders.weight_files import MAX_LAYERS
from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError

# Released sizes: dim, n_layers, key-value heads. The paper calls the 30B model 33B; only Code LLaMA has a size 34B.
SIZES = {
    "1B": (2048, 16, 8), "3B": (3072, 28, 8), "7B": (4096, 32, 32), "8B": (4096, 32, 8), "13B": (5120, 40, 40),
    "30B": (6656, 60, 52), "34B": (8192, 48, 8), "65B": (8192, 80, 64), "70B": (8192, 80, 8),
}  # fmt: skip
CONTEXT = {"1": 2048, "2": 4096, "3": 8192, "3.1": 131072, "3.2": 131072, "3.3": 131072}  # tokens, by version
CODE_CONTEXT = 16384  # Code LLaMA, the only model before version 3 whose rope_theta is not 10000
# Scaling factor of the rotary frequencies. The small models of 3.2 were trained with 32. Their params.json lacks this
# factor, the original code first used 8 (meta-llama/llama-models #166), and their published config.json has 32.
SCALE = {"3.1": 8.0, "3.2": 32.0, "3.3": 8.0}


class LlamaParams(BaseModel, extra="forbid", strict=True, allow_inf_nan=False, frozen=True):
    """The content of params.json, with the original code's defaults."""

    dim: PositiveInt
    n_layers: PositiveInt
    n_heads: PositiveInt
    n_kv_heads: PositiveInt | None = None
    vocab_size: int = -1  # -1: not given
    multiple_of: PositiveInt = 256
    ffn_dim_multiplier: PositiveFloat | None = None
    norm_eps: PositiveFloat
    rope_theta: PositiveFloat = 10000.0
    use_scaled_rope: bool = False
    rope_scaling_factor: PositiveFloat | None = None
    max_seq_len: int | None = None  # this and the next are settings of the original inference code
    max_batch_size: int | None = None

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def hidden(self) -> int:
        """Return the feed-forward width: 2/3 * 4 * dim * multiplier, rounded up to a multiple of `multiple_of`."""
        width = int((self.ffn_dim_multiplier or 1) * int(2 * (4 * self.dim) / 3))
        return self.multiple_of * math.ceil(width / self.multiple_of)

    @property
    def size(self) -> str:
        """Return the released size, or the dimensions of a model of another size."""
        shape = (self.dim, self.n_layers, self.kv_heads)
        known = (name for name, entry in SIZES.items() if entry == shape)
        return next(known, f"dim {self.dim}, {self.n_layers} layers, {self.kv_heads} key-value heads")


def read_params(path: Path) -> LlamaParams:
    """Read params.json; ValueError for a missing, invalid or unknown entry."""
    content = {name: value for name, value in read_json(path).items() if value is not None}
    try:
        params = LlamaParams(**content)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "an entry"  # whose name is not valid Unicode
        value = f"={content[name]!r}" if name in content else ""
        fact = f"{name}{value} is not supported by LLaMA text models ({first['msg']})"
        raise ValueError(f"{path}: {fact}; download it again") from None
    if params.n_layers > MAX_LAYERS:
        raise ValueError(
            f"{path} is damaged (n_layers is {params.n_layers}, more than {MAX_LAYERS:,}); download it again"
        )
    if params.dim % params.n_heads or params.n_heads % params.kv_heads or params.head_dim % 2:
        raise ValueError(
            f"{path}: dim {params.dim}, n_heads {params.n_heads} and n_kv_heads {params.kv_heads} contradict each "
            "other; download it again"
        )
    return params


def check_size(size: str, params: LlamaParams, path: Path) -> None:
    """Raise ValueError if --model_size is unknown or differs from params.json; `auto` accepts any size."""
    if size == "auto":
        return
    shape = SIZES.get(size.removesuffix("f").upper())
    if shape is None:
        raise ValueError(
            f"--model_size {size} is unknown; use {', '.join(SIZES)} (7Bf and so on for chat models), or auto to rely "
            "on params.json"
        )
    if shape != (params.dim, params.n_layers, params.kv_heads):
        raise ValueError(
            f"--model_size {size} has dim {shape[0]}, {shape[1]} layers, {shape[2]} key-value heads, but {path} gives "
            f"{params.size}; correct --model_size or --input_dir"
        )


def infer_version(params: LlamaParams, dtype: str, has_rank_table: bool) -> str:
    """Infer the LLaMA version of a checkpoint; 3.3 is reported as 3.1, because their files do not differ.

    dtype: type of the weights. Version 1 was released in float16, version 2 in bfloat16 (huggingface/transformers
    #25446).
    has_rank_table: tokenizer.model is a rank table, not a SentencePiece model.
    """
    if has_rank_table:
        small = params.size in ("1B", "3B")
        return "3" if not params.use_scaled_rope else "3.2" if small else "3.1"
    grouped = params.kv_heads != params.n_heads
    return "2" if dtype == "BF16" or grouped or params.rope_theta > 10000 else "1"


def check_version(version: str, params: LlamaParams, has_rank_table: bool) -> None:
    """Raise ValueError if --llama_version is unknown or contradicts the files."""
    if version not in CONTEXT:
        raise ValueError(f"--llama_version {version} is unknown; use one of {', '.join(CONTEXT)}")
    contradictions = {
        "tokenizer.model is a rank table, which only version 3 and later have": has_rank_table and version < "3",
        "tokenizer.model is a SentencePiece model, which only versions before 3 have": not has_rank_table
        and version >= "3",
        "params.json has use_scaled_rope, which only version 3.1 and later have": params.use_scaled_rope
        and version not in SCALE,
        "params.json has no use_scaled_rope, which version 3.1 and later have": not params.use_scaled_rope
        and version in SCALE,
    }
    for fact, is_present in contradictions.items():
        if is_present:
            raise ValueError(f"--llama_version {version} contradicts the files: {fact}; omit it to infer the version")


def context_length(params: LlamaParams, version: str) -> int:
    """Return the context length of the model in tokens."""
    return CODE_CONTEXT if version < "3" and params.rope_theta > 10000 else CONTEXT[version]


def model_config(params: LlamaParams, version: str, dtype: str, **settings: Any) -> dict[str, Any]:
    """Return config.json. settings: vocab_size, token ids and tie_word_embeddings.

    dtype: PyTorch's name, such as float16. The rotary settings appear twice: transformers 5 reads `rope_parameters`,
    earlier versions and other programs read `rope_theta` and `rope_scaling`. All of them read `torch_dtype`. Without
    `transformers_version`, transformers 5 treats every tokenizer of more than 100,000 pieces as a faulty Mistral
    tokenizer and recommends a setting that would break it.
    """
    from transformers import LlamaConfig, __version__

    scaling: dict[str, Any] | None = None
    if params.use_scaled_rope:
        scaling = {
            "rope_type": "llama3", "factor": params.rope_scaling_factor or SCALE[version], "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        head_dim=params.head_dim,
        hidden_size=params.dim,
        intermediate_size=params.hidden,
        max_position_embeddings=context_length(params, version),
        num_attention_heads=params.n_heads,
        num_hidden_layers=params.n_layers,
        num_key_value_heads=params.kv_heads,
        rms_norm_eps=params.norm_eps,
        rope_parameters={**(scaling or {"rope_type": "default"}), "rope_theta": params.rope_theta},
        **settings,
    )
    older = {"rope_scaling": scaling, "rope_theta": params.rope_theta, "torch_dtype": dtype}
    return config.to_diff_dict() | older | {"transformers_version": __version__}
