"""Map a GGUF file's metadata and tensors to transformers' configuration, names and layout; inverts gguf_model.py.

Supports llama.cpp's architectures llama (LLaMA, Mistral), qwen2 and qwen3. A setting that config.json cannot express is
an error. For llama, llama.cpp rotates neighbouring rows of q and k, and transformers rotates row i with row
i + head_dim / 2, so the rows are put back in order. Metadata keys: docs/gguf.md of the ggml project.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from io import FileIO
from itertools import product
from typing import Any

import numpy as np
from checkpoint_io.bit_patterns import from_float32, to_float32
from checkpoint_io.ordered_parallel import in_order
from checkpoint_io.tensors import CHUNK, ITEMSIZE, TORCH_NAME, Spec, Tensor, check_finite

from gguf_files.gguf_header import GgufFile, StoredTensor

MODEL_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# Matrices and norms of a layer: llama.cpp's name -> (transformers' name, dimensions)
LAYER = {
    "attn_norm.weight": ("input_layernorm.weight", "hidden"),
    "attn_q.weight": ("self_attn.q_proj.weight", "queries hidden"),
    "attn_k.weight": ("self_attn.k_proj.weight", "keys hidden"),
    "attn_v.weight": ("self_attn.v_proj.weight", "keys hidden"),
    "attn_output.weight": ("self_attn.o_proj.weight", "hidden queries"),
    "ffn_norm.weight": ("post_attention_layernorm.weight", "hidden"),
    "ffn_gate.weight": ("mlp.gate_proj.weight", "inner hidden"),
    "ffn_up.weight": ("mlp.up_proj.weight", "inner hidden"),
    "ffn_down.weight": ("mlp.down_proj.weight", "hidden inner"),
}
QKV_BIASES = {
    "attn_q.bias": ("self_attn.q_proj.bias", "queries"), "attn_k.bias": ("self_attn.k_proj.bias", "keys"),
    "attn_v.bias": ("self_attn.v_proj.bias", "keys"),
}  # fmt: skip
ATTENTION_BIASES = QKV_BIASES | {"attn_output.bias": ("self_attn.o_proj.bias", "hidden")}  # attention_bias of LLaMA
MLP_BIASES = {
    "ffn_gate.bias": ("mlp.gate_proj.bias", "inner"), "ffn_up.bias": ("mlp.up_proj.bias", "inner"),
    "ffn_down.bias": ("mlp.down_proj.bias", "hidden"),
}  # fmt: skip
HEAD_NORMS = {
    "attn_q_norm.weight": ("self_attn.q_norm.weight", "head_dim"),
    "attn_k_norm.weight": ("self_attn.k_norm.weight", "head_dim"),
}
OUTSIDE = {
    "token_embd.weight": ("model.embed_tokens.weight", "vocabulary hidden"),
    "output_norm.weight": ("model.norm.weight", "hidden"),
    "output.weight": ("lm_head.weight", "vocabulary hidden"),
}
REMEDY = "download the file again"
OUTPUT, ROPE_DIVISORS = "output.weight", "rope_freqs.weight"
READ_KEYS = {
    "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "vocab_size",
}  # fmt: skip
NEUTRAL_KEYS = {"tensor_data_layout", "rope.scaling.finetuned"}  # they do not change the computation
# Values that do not change the computation; for every other key, the neutral value is 0.
NEUTRAL_VALUES = {"attention.causal": True, "rope.scaling.attn_factor": 1.0, "rope.scale_linear": 1.0}
F16_LARGEST = 65504.0
FLOAT_SMALLEST, FLOAT_LARGEST = 2.0**-126, float(np.finfo(np.float32).max)
INT_LIMIT = (1 << 31) - 1  # llama.cpp's limit
LLAMA3_BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # in every released LLaMA 3 with scaling


@dataclass(frozen=True)
class ImportedTensor(Spec):
    """A tensor of the new checkpoint, and its source."""

    source: StoredTensor
    head_dim: int  # rows per head if llama.cpp reordered them, else 0


@dataclass(frozen=True)
class ImportedModel:
    """The checkpoint that a GGUF file describes: config.json without token ids, and the tensors."""

    config: dict[str, Any]
    tensors: list[ImportedTensor]


def read_imported_model(file: GgufFile, dtype: str) -> ImportedModel:
    """Return the checkpoint for a GGUF file. dtype: type of the new tensors, F32, F16 or BF16.

    Raises ValueError for an unsupported architecture or setting, one file of a split model, and a tensor that is
    missing, unexpected, or of another shape than the metadata requires.
    """
    parts = file.metadata.get("split.count", 0)  # 0 in a merged file
    if isinstance(parts, int) and parts > 1:
        raise ValueError(f"{file.path} is one of {parts} files of a split model; merge them: llama-gguf-split --merge")
    content = file.metadata.get("general.type", "model")
    if content != "model":  # a LoRA adapter, an image encoder, …
        raise ValueError(f"{file.path} holds the type {str(content)[:80]!r}, not a model; use the model's own file")
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in MODEL_CLASSES:
        raise ValueError(
            f"{file.path}: the architecture {str(architecture)[:80]!r} is not supported; "
            f"supported are {', '.join(MODEL_CLASSES)}"
        )
    check_keys(file, architecture)
    sizes = dimensions(file, architecture)
    layers = positive_int(file, f"{architecture}.block_count")
    if layers > len(file.tensors):
        fact = f"{architecture}.block_count is {layers:,}, but there are fewer tensors"
        raise ValueError(f"{file.path}: {fact}; download the file again")
    expected, settings = layer_tensors(file, architecture)
    names = dict(OUTSIDE)
    if tied := OUTPUT not in file.tensors:
        del names[OUTPUT]
    for layer, (name, (own, shape)) in product(range(layers), expected.items()):
        names[f"blk.{layer}.{name}"] = (f"model.layers.{layer}.{own}", shape)
    tensors = []
    for name, (own, shape) in names.items():
        source = checked_tensor(file, name, tuple(sizes[one] for one in shape.split()))
        is_reordered = architecture == "llama" and name.split(".")[-2] in ("attn_q", "attn_k")
        tensors.append(ImportedTensor(own, dtype, source.shape, source, sizes["head_dim"] if is_reordered else 0))
    for name in file.tensors:
        if name not in names and name != ROPE_DIVISORS:
            fact = f"tensor {name[:80]} does not belong to a {architecture} model"
            raise ValueError(f"{file.path}: {fact}, so the file is not supported")
    config = model_config(file, architecture, sizes) | settings
    config |= {"num_hidden_layers": layers, "tie_word_embeddings": tied, "torch_dtype": TORCH_NAME[dtype]}
    return ImportedModel(config, tensors)


def check_keys(file: GgufFile, architecture: str) -> None:
    """Raise ValueError for a metadata key that is not read here and has a value that may change the computation."""
    context = positive_int(file, f"{architecture}.context_length")
    for key, value in file.metadata.items():
        name = key.removeprefix(f"{architecture}.")
        if name == key or name in READ_KEYS or name in NEUTRAL_KEYS:
            continue
        if isinstance(value, int | float) and value == NEUTRAL_VALUES.get(name, 0):
            continue
        if name == "attention.sliding_window" and isinstance(value, int) and value >= context:
            continue
        raise ValueError(f"{file.path}: {key[:80]} = {str(value)[:80]} is not supported; config.json cannot express it")


def positive_int(file: GgufFile, key: str, default: int | None = None) -> int:
    """Return a positive integer of the metadata; ValueError for other values, and for a missing one without default."""
    value = file.metadata.get(key, default)
    if type(value) is not int or not 0 < value <= INT_LIMIT:
        fact = f"is {str(value)[:80]}, not a positive integer up to {INT_LIMIT:,}"
        fact = fact if key in file.metadata else "is missing"
        raise ValueError(f"{file.path}: {key} {fact}; use a file that llama.cpp's converter wrote for this model")
    return value


def positive_float(file: GgufFile, key: str, default: float | None = None) -> float:
    """Return a positive float32 of the metadata as the shortest decimal that rounds to it; raises like positive_int."""
    value = file.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not FLOAT_SMALLEST <= value <= FLOAT_LARGEST:
        fact = "is missing" if key not in file.metadata else f"is {str(value)[:80]}, not a positive float32"
        raise ValueError(f"{file.path}: {key} {fact}; use a file that llama.cpp's converter wrote for this model")
    return float(str(np.float32(value)))


def dimensions(file: GgufFile, architecture: str) -> dict[str, int]:
    """Return the sizes of the dimensions named in LAYER and OUTSIDE; ValueError if they contradict each other."""
    hidden = positive_int(file, f"{architecture}.embedding_length")
    heads = positive_int(file, f"{architecture}.attention.head_count")
    kv_heads = positive_int(file, f"{architecture}.attention.head_count_kv", heads)
    head_dim = positive_int(file, f"{architecture}.attention.key_length", hidden // heads)
    value_dim = positive_int(file, f"{architecture}.attention.value_length", head_dim)
    rotated = positive_int(file, f"{architecture}.rope.dimension_count", head_dim)
    if heads % kv_heads or head_dim % 2 or not head_dim == value_dim == rotated:
        raise ValueError(
            f"{file.path}: {heads} heads, {kv_heads} key-value heads, key_length {head_dim}, value_length {value_dim} "
            f"and rope.dimension_count {rotated} are not supported together"
        )
    embedding = file.tensors.get("token_embd.weight")
    return {
        "hidden": hidden, "head_dim": head_dim, "queries": heads * head_dim, "keys": kv_heads * head_dim,
        "inner": positive_int(file, f"{architecture}.feed_forward_length"),
        "vocabulary": embedding.shape[0] if embedding else 0,
    }  # fmt: skip


def layer_tensors(file: GgufFile, architecture: str) -> tuple[dict[str, tuple[str, str]], dict[str, bool]]:
    """Return the tensors of every layer in LAYER's form, and the settings of config.json for optional biases."""
    if architecture == "qwen2":
        return LAYER | QKV_BIASES, {"use_sliding_window": False}
    if architecture == "qwen3":
        return LAYER | HEAD_NORMS, {"attention_bias": False, "use_sliding_window": False}
    attention, mlp = "blk.0.attn_q.bias" in file.tensors, "blk.0.ffn_gate.bias" in file.tensors
    biases = (ATTENTION_BIASES if attention else {}) | (MLP_BIASES if mlp else {})
    return LAYER | biases, {"attention_bias": attention, "mlp_bias": mlp}


def checked_tensor(file: GgufFile, name: str, shape: tuple[int, ...]) -> StoredTensor:
    """Return the tensor with this name; ValueError if it is missing or has another shape."""
    if name not in file.tensors:
        raise ValueError(f"{file.path}: tensor {name} is missing; download the file again")
    tensor = file.tensors[name]
    if tensor.shape != shape:
        raise ValueError(
            f"{file.path}: tensor {name} has the shape {list(tensor.shape)}, but the metadata require {list(shape)}; "
            "download the file again"
        )
    return tensor


def model_config(file: GgufFile, architecture: str, sizes: dict[str, int]) -> dict[str, Any]:
    """Return the entries of config.json for the shape of the model and its rotary embeddings.

    The rotary settings appear twice: transformers 5 reads `rope_parameters`, earlier versions and other programs
    read `rope_theta` and `rope_scaling`.
    """
    theta = positive_float(file, f"{architecture}.rope.freq_base", 10000.0)
    scaling = rope_scaling(file, architecture, sizes)
    return {
        "architectures": [MODEL_CLASSES[architecture]],
        "model_type": architecture,
        "attention_dropout": 0.0,
        "head_dim": sizes["head_dim"],
        "hidden_act": "silu",
        "hidden_size": sizes["hidden"],
        "initializer_range": 0.02,
        "intermediate_size": sizes["inner"],
        "max_position_embeddings": positive_int(file, f"{architecture}.context_length"),
        "num_attention_heads": sizes["queries"] // sizes["head_dim"],
        "num_key_value_heads": sizes["keys"] // sizes["head_dim"],
        "rms_norm_eps": positive_float(file, f"{architecture}.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {**(scaling or {"rope_type": "default"}), "rope_theta": theta},
        "rope_scaling": scaling,
        "rope_theta": theta,
        "transformers_version": version("transformers"),
        "use_cache": True,
        "vocab_size": sizes["vocabulary"],
    }


def rope_scaling(file: GgufFile, architecture: str, sizes: dict[str, int]) -> dict[str, Any] | None:
    """Return transformers' `rope_scaling`; None without scaling. Raises ValueError for an unsupported type."""
    key = f"{architecture}.rope.scaling"
    kind = file.metadata.get(f"{key}.type", "none")
    if not isinstance(kind, str) or kind not in ("none", "linear", "yarn"):
        raise ValueError(f"{file.path}: {key}.type {str(kind)[:80]!r} is not supported; only linear and yarn are")
    if ROPE_DIVISORS in file.tensors:
        if kind != "none":
            raise ValueError(f"{file.path}: {key}.type {kind} together with {ROPE_DIVISORS} is not supported")
        return llama3_scaling(file, positive_float(file, f"{architecture}.rope.freq_base", 10000.0), sizes["head_dim"])
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": positive_float(file, f"{key}.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = positive_int(file, f"{key}.original_context_length")
    return scaling


def llama3_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Return the parameters of LLaMA 3.1's rotary scaling that give the divisors in the file; None if all are 1.

    The file has only the divisors: 1 for wavelengths below original / high_freq_factor, the factor above
    original / low_freq_factor, and a smooth transition in between. Raises ValueError if no original context gives them.
    """
    tensor = checked_tensor(file, ROPE_DIVISORS, (head_dim // 2,))
    bits = Tensor(tensor.name, "F32", tensor.shape, file.path, FileIO(file.path), tensor.offset)
    if tensor.kind != "F32":
        raise ValueError(f"{file.path}: tensor {ROPE_DIVISORS} is {tensor.kind}, not F32; {REMEDY}")
    divisors = to_float32(bits.read(), "F32").astype(np.float64)
    if not np.isfinite(divisors).all() or divisors.min() <= 0:
        raise ValueError(f"{file.path}: tensor {ROPE_DIVISORS} holds NaN, infinity or a number <= 0; {REMEDY}")
    factor = float(str(np.float32(divisors.max())))
    factor = round(factor) if abs(factor - round(factor)) < 1e-4 else factor
    if np.allclose(divisors, 1):
        return None
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = LLAMA3_BANDS["low_freq_factor"], LLAMA3_BANDS["high_freq_factor"]
    for original in (1 << power for power in range(4, 24)):
        smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
        if np.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
            bands = {**LLAMA3_BANDS, "original_max_position_embeddings": original}
            return {"rope_type": "llama3", "factor": float(factor), **bands}
    raise ValueError(f"{file.path}: tensor {ROPE_DIVISORS} does not hold LLaMA 3's divisors, so it is not supported")


def tensor_chunks(file: GgufFile, tensor: ImportedTensor, source: FileIO) -> Iterator[np.ndarray]:
    """Yield the tensor's bit patterns in its new type and order, in chunks of whole rows; several threads compute them.

    source: the open file. Raises ValueError for a value that is not finite, or that float16 cannot represent.
    """
    from gguf import GGMLQuantizationType, quants

    stored, is_matrix = tensor.source, len(tensor.shape) == 2
    rows, columns = tensor.shape if is_matrix else (1, tensor.elements)
    unit = tensor.head_dim if tensor.head_dim and is_matrix else 1
    step = max(1, CHUNK // columns // unit) * unit
    row_bytes = stored.nbytes // rows
    content = Tensor(stored.name, "U8", (stored.nbytes,), file.path, source, stored.offset)
    written = Tensor(stored.name, tensor.dtype, tensor.shape, file.path, source)  # for the message of `check_finite`

    @np.errstate(over="ignore", invalid="ignore")  # instead of numpy's warnings, check_finite reports damaged scales
    def convert(first: int) -> np.ndarray:
        packed = content.read(first * row_bytes, min(first + step, rows) * row_bytes)
        if stored.kind == tensor.dtype:
            bits = packed.view(f"<u{tensor.itemsize}")
        else:
            if stored.kind in TORCH_NAME:
                values = to_float32(packed.view(f"<u{ITEMSIZE[stored.kind]}"), stored.kind)
            else:
                values = quants.dequantize(packed.reshape(-1, row_bytes), GGMLQuantizationType[stored.kind]).reshape(-1)
            check_range(values, written)
            bits = from_float32(values, tensor.dtype)
        check_finite(bits, written, REMEDY)
        if tensor.head_dim:  # the order of each head's rows becomes 0, 2, 4, …, 1, 3, 5, …
            bits = bits.reshape(-1, tensor.head_dim // 2, 2, columns if is_matrix else 1).swapaxes(1, 2)
        return np.ascontiguousarray(bits).reshape(-1)

    yield from in_order(convert, range(0, rows, step))


def check_range(values: np.ndarray, tensor: Tensor) -> None:
    """Raise ValueError if the tensor's type is float16 and a finite value is too large for it."""
    if tensor.dtype == "F16" and F16_LARGEST < np.abs(values).max() < np.inf:
        raise ValueError(
            f"{tensor.file}: tensor {tensor.name} holds {np.abs(values).max():.4g}, which float16 cannot represent; "
            "use --dtype bfloat16 or float32"
        )
