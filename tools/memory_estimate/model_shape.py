"""Read the shape of a LLaMA, Mistral, Qwen2 or Qwen3 model from config.json, and count its parameters."""

import json
from dataclasses import dataclass
from pathlib import Path

# Values that transformers 5 uses for keys that are missing in config.json (configuration_*.py of each type):
# key-value heads (None: one for each head), width of a head (None: hidden width / heads), context in tokens.
DEFAULTS: dict[str, tuple[int | None, int | None, int]] = {
    "llama": (None, None, 2048),
    "mistral": (8, None, 131072),
    "qwen2": (32, None, 32768),
    "qwen3": (32, 128, 32768),
}


@dataclass(frozen=True)
class Shape:
    """The values of config.json that determine a model's size; widths in elements, `context` in tokens.

    tied: the output matrix is the embedding. qkv_bias, output_bias, mlp_bias: biases of the linear layers of attention
    and MLP. qk_norm: queries and keys are normalised in each head, as in Qwen3.
    """

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def query(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of the keys of all heads, and of the values."""
        return self.kv_heads * self.head_dim


def read_shape(path: Path) -> Shape:
    """Read the shape from a checkpoint folder or config.json; raises FileNotFoundError or ValueError."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; give a checkpoint folder or a config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); download it again") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in DEFAULTS:
        raise ValueError(f"{file} has model_type {kind}, which is not supported; known: {', '.join(DEFAULTS)}")

    def number(name: str, default: int | None = None) -> int:
        value = default if config.get(name) is None else config[name]
        if type(value) is not int or value < 1:
            raise ValueError(f"{file} has {name} {json.dumps(value)}, not a whole number above 0; download it again")
        return value

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    kv_heads, head_dim, context = DEFAULTS[kind]
    kv_heads = heads if kv_heads is None or "num_key_value_heads" in config else kv_heads
    head_dim = hidden // heads if head_dim is None or "head_dim" in config else head_dim
    kv_heads = number("num_key_value_heads", kv_heads)
    if heads % kv_heads:
        raise ValueError(
            f"{file} has num_attention_heads {heads}, which num_key_value_heads {kv_heads} does not divide; download "
            "it again"
        )
    bias = kind in ("llama", "qwen3") and bool(config.get("attention_bias"))
    return Shape(
        number("vocab_size"), hidden, number("intermediate_size"), number("num_hidden_layers"), heads,
        kv_heads, number("head_dim", head_dim),
        number("max_position_embeddings", context), tied=bool(config.get("tie_word_embeddings")),
        qkv_bias=bias or kind == "qwen2", output_bias=bias,
        mlp_bias=kind == "llama" and bool(config.get("mlp_bias")), qk_norm=kind == "qwen3",
    )  # fmt: skip


def linear_layers(shape: Shape) -> list[tuple[int, int]]:
    """Return (inputs, outputs) of a decoder block's linear layers: query, key, value, output, gate, up, down."""
    hidden, query, key, intermediate = shape.hidden, shape.query, shape.key, shape.intermediate
    attention = [(hidden, query), (hidden, key), (hidden, key), (query, hidden)]
    return [*attention, (hidden, intermediate), (hidden, intermediate), (intermediate, hidden)]


def linear_count(shape: Shape) -> int:
    """Return the number of weights of the linear layers of all blocks, without biases and the output matrix."""
    return shape.layers * sum(inputs * outputs for inputs, outputs in linear_layers(shape))


def parameter_count(shape: Shape) -> int:
    """Return the number of parameters of transformers' causal language model; tied embeddings count once."""
    hidden = shape.hidden
    biases = shape.qkv_bias * (shape.query + 2 * shape.key) + shape.output_bias * hidden
    biases += shape.mlp_bias * (2 * shape.intermediate + hidden)
    norms = 2 * hidden + shape.qk_norm * 2 * shape.head_dim
    embeddings = shape.vocabulary * hidden * (1 if shape.tied else 2)
    return embeddings + linear_count(shape) + shape.layers * (biases + norms) + hidden


def format_count(count: int) -> str:
    """Return a count as text: `640`, `12.35 thousand`, `125.00 million`, `13.02 billion`."""
    for unit, name in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if count >= max(0.999995 * unit, 1000):  # 999,995 would round to 1000.00 thousand
            return f"{count / unit:.2f} {name}"
    return str(count)
