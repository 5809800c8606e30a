"""The layout of LLaMA's original checkpoints: the parts of each weight, and how they are joined.

There is one file consolidated.NN.pth per tensor-parallel rank. Each contains a part of every matrix and a copy of every
norm. The joined weights equal the weights of transformers' LlamaForCausalLM, except wq and wk: the original rotates
neighbouring rows of a head (2i, 2i + 1), transformers rotates row i with row i + head_dim / 2, so a head's even rows
are moved before its odd rows. The values are unchanged.

Files are memory-mapped, and only a chunk of a few MB is in memory at a time. Layout: model.py of
https://github.com/meta-llama/llama and of https://github.com/meta-llama/llama3, and the parallel layers of fairscale
that they use.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from checkpoint_io.bit_patterns import FLOATS, to_float32
from checkpoint_io.tensors import CHUNK, Spec, Tensor, read_bin

from llama_conversion.llama_params import LlamaParams

# Original name -> name in transformers, and the dimension that is split across ranks (None: each rank has a copy).
LAYER: dict[str, tuple[str, int | None]] = {
    "attention_norm": ("input_layernorm", None),
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "ffn_norm": ("post_attention_layernorm", None),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
}
EMBEDDING, NORM, OUTPUT = "tok_embeddings.weight", "norm.weight", "output.weight"
COMPUTED = re.compile(r"(layers\.\d+\.attention\.inner_attention\.)?rope\.freqs")  # computed from params.json

Ranks = Mapping[Path, Mapping[str, Tensor]]  # {file: {original name: tensor}} in rank order


@dataclass(frozen=True)
class JoinedWeight:
    """A weight of the new checkpoint and its parts in rank order."""

    spec: Spec
    parts: tuple[Tensor, ...]
    axis: int | None  # the dimension that is split across ranks; None: each rank has a copy
    head_dim: int = 0  # rows per head if they are reordered, else 0


def read_ranks(folder: Path) -> dict[Path, dict[str, Tensor]]:
    """Read consolidated.00.pth, consolidated.01.pth, …; FileNotFoundError if one is missing, ValueError if damaged."""
    existing = sorted(folder.glob("consolidated.*.pth"))
    files = [folder / f"consolidated.{rank:02d}.pth" for rank in range(max(1, len(existing)))]
    for file in files:
        if file not in existing:
            raise FileNotFoundError(f"{file} is missing ({len(existing)} of these files exist); download it again")
    return {file: read_bin(file) for file in files}


def weight_names(layers: int) -> Iterator[tuple[str, str, int | None]]:
    """Yield (original name, name in transformers, split dimension) of all weights in forward order.

    The embedding's split dimension depends on the version; see `embedding_split`.
    """
    yield EMBEDDING, "model.embed_tokens.weight", None
    for layer in range(layers):
        for name, (other, axis) in LAYER.items():
            yield f"layers.{layer}.{name}.weight", f"model.layers.{layer}.{other}.weight", axis
    yield NORM, "model.norm.weight", None
    yield OUTPUT, "lm_head.weight", 0


def check_names(ranks: Ranks, params: LlamaParams, may_be_tied: bool) -> None:
    """Raise ValueError for the first missing or unknown tensor.

    may_be_tied: whether the output matrix may be missing, because it is tied to the embedding.
    """
    names = {name for name, _, _ in weight_names(params.n_layers)}
    if may_be_tied and not any(OUTPUT in rank for rank in ranks.values()):
        names.remove(OUTPUT)
    for file, rank in ranks.items():
        if missing := sorted(names - rank.keys()):
            raise ValueError(f"{file} lacks tensor {missing[0]}, which params.json requires; download both again")
        for name in rank:
            if name not in names and not COMPUTED.fullmatch(name):
                raise ValueError(
                    f"{file} contains {name}, which a LLaMA of {params.n_layers} layers does not have; download it "
                    "again"
                )


def embedding_split(shape: Sequence[int], ranks: int, dim: int) -> tuple[int, int]:
    """Return (split dimension, vocabulary size) of the embedding. shape: one rank's part; ranks: number of ranks.

    Version 3 splits the embedding by rows (VocabParallelEmbedding), earlier versions by columns (ParallelEmbedding).
    """
    rows, columns = shape if len(shape) == 2 else (0, 0)
    return (0, rows * ranks) if columns == dim else (1, rows)


def full_shape(name: str, params: LlamaParams, vocabulary: int) -> tuple[int, ...]:
    """Return the shape of a joined weight. name: its original name."""
    dim, keys, hidden = params.dim, params.kv_heads * params.head_dim, params.hidden
    shapes = {
        "wq": (dim, dim), "wk": (keys, dim), "wv": (keys, dim), "wo": (dim, dim), "w1": (hidden, dim),
        "w3": (hidden, dim), "w2": (dim, hidden), "tok_embeddings": (vocabulary, dim), "output": (vocabulary, dim),
    }  # fmt: skip
    return shapes.get(name.split(".")[-2], (dim,))


def plan_weights(ranks: Ranks, params: LlamaParams, may_be_tied: bool = False) -> list[JoinedWeight]:
    """Return the joined weights, in forward order.

    Raises ValueError for a tensor that is missing, unexpected, or of a wrong shape or type.
    """
    check_names(ranks, params, may_be_tied)
    first, count = next(iter(ranks.values())), len(ranks)
    if params.kv_heads % count:
        folder = next(iter(ranks)).parent
        raise ValueError(
            f"{folder}: {params.kv_heads} key-value heads cannot be split among {count} files; remove files of other "
            "models"
        )
    split, vocabulary = embedding_split(first[EMBEDDING].shape, count, params.dim)
    joined = []
    for original, new, axis in weight_names(params.n_layers):
        if original not in first:
            continue
        axis = split if original == EMBEDDING else axis
        shape = full_shape(original, params, vocabulary)
        part_shape = [size / count if dimension == axis else size for dimension, size in enumerate(shape)]
        parts = tuple(rank[original] for rank in ranks.values())
        for part in parts:
            if list(part.shape) != part_shape:
                raise ValueError(
                    f"{part.file}: tensor {original} has the shape {list(part.shape)}, but params.json requires "
                    f"{list(shape)} for the whole tensor (files here: {count}); download all files again: one is "
                    "missing or belongs to another model"
                )
            if part.dtype not in FLOATS or part.dtype != parts[0].dtype:
                raise ValueError(f"{part.file}: tensor {original} has the type {part.dtype}; give the original weights")
        rotary = original.endswith(("attention.wq.weight", "attention.wk.weight"))
        joined.append(JoinedWeight(Spec(new, parts[0].dtype, shape), parts, axis, params.head_dim if rotary else 0))
    if params.vocab_size not in (-1, vocabulary):
        raise ValueError(
            f"{next(iter(ranks)).parent / 'params.json'} says vocab_size {params.vocab_size}, the embedding has "
            f"{vocabulary} rows; download both again"
        )
    return joined


def compare_copies(joined: Sequence[JoinedWeight], tolerance: float) -> float:
    """Return the largest difference between two ranks' copies of a tensor; ValueError if it exceeds `tolerance`."""
    largest = 0.0
    for weight in joined:
        first, *others = weight.parts if weight.axis is None else weight.parts[:1]
        for other in others:
            if np.array_equal(first.read(), other.read()):
                continue
            gap = np.abs(to_float32(first.read(), first.dtype) - to_float32(other.read(), other.dtype)).max()
            if not gap <= tolerance:
                raise ValueError(
                    f"{other.file}: {weight.spec.name} differs by {gap:.3g} from its copy in {first.file.name}; these "
                    "files belong to different models: download them again"
                )
            largest = max(largest, float(gap))
    return largest


def is_output_tied(joined: Sequence[JoinedWeight]) -> bool:
    """Return whether the output matrix (last) is missing or bit-identical to the embedding (first)."""
    one, other = joined[0], joined[-1]
    if other.spec.name != "lm_head.weight":
        return True
    return (one.axis, one.spec.dtype) == (other.axis, other.spec.dtype) and all(
        np.array_equal(left, right)
        for first, second in zip(one.parts, other.parts, strict=True)
        for left, right in zip(first.chunks(), second.chunks(), strict=True)
    )


def stream_weight(weight: JoinedWeight) -> Iterator[np.ndarray]:
    """Yield a weight, joined from its parts, as flat bit patterns in chunks."""
    columns = weight.spec.shape[-1]
    if weight.axis == 1:
        rows = max(1, CHUNK // columns)
        blocks = [part.chunks(rows * part.shape[1]) for part in weight.parts]
        for pieces in zip(*blocks, strict=True):
            shaped = [piece.reshape(-1, part.shape[1]) for piece, part in zip(pieces, weight.parts, strict=True)]
            yield np.concatenate(shaped, axis=1).reshape(-1)
        return
    for part in weight.parts if weight.axis == 0 else weight.parts[:1]:
        for piece in part.chunks(weight.head_dim * columns or CHUNK):
            if weight.head_dim:  # one head: even rows, then odd rows
                piece = np.ascontiguousarray(piece.reshape(-1, 2, columns).swapaxes(0, 1)).reshape(-1)
            yield piece
