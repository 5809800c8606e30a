"""The original LLaMA: small checkpoints in the original layout, and a reference forward pass.

The forward pass is float32 and independent of transformers. The rotary embedding multiplies neighbouring pairs as
complex numbers, after https://github.com/meta-llama/llama and https://github.com/meta-llama/llama-models.
"""

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

TINY = {"dim": 64, "n_heads": 4, "n_layers": 2, "multiple_of": 32, "norm_eps": 1e-5, "vocab_size": -1}
GROUPED = TINY | {"n_heads": 8, "n_kv_heads": 4, "ffn_dim_multiplier": 1.3, "norm_eps": 1e-6}
THREE = TINY | {"n_kv_heads": 2, "rope_theta": 500000.0, "multiple_of": 64}
SCALED = THREE | {
    "rope_theta": 10000.0,
    "use_scaled_rope": True,
}  # with longer waves, scaling has no effect on 200 tokens


State = dict[str, torch.Tensor]
Make = Callable[..., tuple[Path, State]]  # makes an original checkpoint; returns its folder and joined weights

SPLIT = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1}


def feed_forward_size(params: Mapping[str, Any]) -> int:
    hidden = int(params.get("ffn_dim_multiplier", 1) * int(8 * params["dim"] / 3))
    return math.ceil(hidden / params["multiple_of"]) * params["multiple_of"]


def random_state(params: Mapping[str, Any], vocabulary: int, dtype: torch.dtype, seed: int = 0) -> State:
    """Return random weights by their original names, large enough that every part affects the logits."""
    draw = torch.Generator().manual_seed(seed)
    dim, heads = params["dim"], params["n_heads"]
    keys, hidden = dim // heads * params.get("n_kv_heads", heads), feed_forward_size(params)
    layer: dict[str, tuple[int, ...]] = {
        "attention.wq": (dim, dim), "attention.wk": (keys, dim), "attention.wv": (keys, dim),
        "attention.wo": (dim, dim), "feed_forward.w1": (hidden, dim), "feed_forward.w2": (dim, hidden),
        "feed_forward.w3": (hidden, dim), "attention_norm": (dim,), "ffn_norm": (dim,),
    }  # fmt: skip
    shapes = {f"layers.{number}.{name}": shape for number in range(params["n_layers"]) for name, shape in layer.items()}
    shapes |= {"tok_embeddings": (vocabulary, dim), "norm": (dim,), "output": (vocabulary, dim)}

    def weight(shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=draw)
        return (1 + 0.2 * noise if len(shape) == 1 else noise * 2 / math.sqrt(shape[1])).to(dtype)

    return {f"{name}.weight": weight(shape) for name, shape in shapes.items()}


def split(state: State, ranks: int, embedding_axis: int) -> list[State]:
    """Return the parts of `ranks` tensor-parallel ranks, with the frequency table that old files contain."""
    axes: dict[str, int] = SPLIT | {"tok_embeddings": embedding_axis}
    parts: list[State] = [{} for _ in range(ranks)]
    for name, value in state.items():
        axis = axes.get(name.split(".")[-2])
        pieces = [value] * ranks if axis is None else value.chunk(ranks, axis)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    for part in parts:
        part["rope.freqs"] = torch.zeros(4)
    return parts


def write_original(
    folder: Path, params: Mapping[str, Any], state: State, tokenizer: Path, ranks: int = 1, embedding_axis: int = 1
) -> Path:
    """Write params.json, consolidated.NN.pth, tokenizer.model and checklist.chk, all into `folder`."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    for rank, part in enumerate(split(state, ranks, embedding_axis)):
        torch.save(part, folder / f"consolidated.{rank:02d}.pth")
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Write checklist.chk in md5sum's format, for all other files in the folder."""
    files = sorted(path for path in folder.iterdir() if path.name != "checklist.chk")
    lines = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "checklist.chk").write_text("".join(lines))


def write_ranks_table(path: Path, tokens: list[bytes]) -> Path:
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    path.write_bytes(b"".join(lines))
    return path


def frequencies(params: Mapping[str, Any], scale: float) -> torch.Tensor:
    """Return (head_dim / 2,) radians per token; with use_scaled_rope, low frequencies are divided by `scale`."""
    head_dim = params["dim"] // params["n_heads"]
    plain = params.get("rope_theta", 10000.0) ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    if not params.get("use_scaled_rope"):
        return plain
    result = []
    for frequency in plain.tolist():
        waves = 8192 * frequency / (2 * math.pi)  # number of waves in the original context of 8192 tokens
        share = min(1.0, max(0.0, (waves - 1) / (4 - 1)))  # below 1 wave: divided; above 4 waves: unchanged
        result.append((1 - share) * frequency / scale + share * frequency)
    return torch.tensor(result)


def norm(values: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(heads: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring pairs as complex numbers. heads: (tokens, heads, head_dim); turns: (tokens, head_dim / 2)."""
    pairs = torch.view_as_complex(heads.reshape(*heads.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * turns[:, None]).flatten(2)


def logits(state: State, params: Mapping[str, Any], ids: list[int], scale: float = 8.0) -> torch.Tensor:
    """Return the logits, (tokens, vocabulary) float32."""
    weights = {name.removesuffix(".weight"): value.float() for name, value in state.items()}
    count, heads, eps = len(ids), params["n_heads"], params["norm_eps"]
    groups = heads // params.get("n_kv_heads", heads)
    angles = torch.outer(torch.arange(count).float(), frequencies(params, scale))
    turns = torch.polar(torch.ones_like(angles), angles)
    hidden = weights["tok_embeddings"][ids]
    mask = torch.full((count, count), -math.inf).triu(1)
    for number in range(params["n_layers"]):
        own = {name.removeprefix(f"layers.{number}."): value for name, value in weights.items()}
        inner = norm(hidden, own["attention_norm"], eps)
        query, key, value = (
            F.linear(inner, own[f"attention.w{part}"]).view(count, -1, params["dim"] // heads) for part in "qkv"
        )
        query, key = rotate(query, turns), rotate(key, turns)
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(params["dim"] // heads) + mask
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1)
        hidden = hidden + F.linear(mixed, own["attention.wo"])
        inner = norm(hidden, own["ffn_norm"], eps)
        gate = F.silu(F.linear(inner, own["feed_forward.w1"])) * F.linear(inner, own["feed_forward.w3"])
        hidden = hidden + F.linear(gate, own["feed_forward.w2"])
    return F.linear(norm(hidden, weights["norm"], eps), weights.get("output", weights["tok_embeddings"]))


def change(folder: Path, edit: Callable[[State], object], *ranks: int) -> None:
    for rank in ranks:
        part = torch.load(folder / f"consolidated.{rank:02d}.pth", weights_only=True)
        edit(part)
        torch.save(part, folder / f"consolidated.{rank:02d}.pth")
    seal(folder)


def change_params(folder: Path, **entries: object) -> None:
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(params | entries))
    seal(folder)


def flip(folder: Path) -> None:
    content = bytearray((folder / "consolidated.01.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "consolidated.01.pth").write_bytes(content)
