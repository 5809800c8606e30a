"""Attention for packed sequences: each segment attends to itself and to its shared prefix, if any.

A segment is a pretraining sample, a tuning example, a shared prefix, an example without its shared prefix, or padding.
FlashAttention separates segments by their boundaries. Without it (V100, CPU) transformers builds one mask over the
whole sequence and also computes the scores of all masked pairs. Here a separate causal attention is computed for each
segment. With n equal segments, this computes 1/n of the scores.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from model_folders.attention_backends import attention_backend
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "sdpa_by_segment"  # the value of --attn_implementation
# Keywords that do not change the result of causal attention without caches; transformers passes them to every backend.
WITHOUT_EFFECT = {
    "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "return_dict",
    "num_items_in_batch", "logits_to_keep", "deterministic", "is_causal",
}  # fmt: skip
# PyTorch 2.13's SDPA in bfloat16 on a CPU (fused kernel, forward and backward) takes 2.8 times as long as transformers'
# eager attention for 184 tokens, 2.1 for 400, 1.2 for 800; the eager one stores the scores of all pairs of tokens.
EAGER_TOKENS = 512


@dataclass(frozen=True)  # not a tuple: Trainer would traverse it
class Segment:
    """Consecutive tokens of a packed sequence. parent: the index of the segment that is its shared prefix, if any."""

    length: int
    parent: int | None = None


def attend_by_segment(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Sequence[Sequence[Segment]] | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function for transformers; returns (sequences, tokens, heads, width) and None for attention weights.

    query: (sequences, heads, tokens, width). key, value: the same, possibly with fewer heads. segments: the segments of
    each sequence; None: use transformers' SDPA, or eager attention to the whole sequence if `more` requires it.
    sliding_window: the largest number of tokens that a token attends to, itself included. more: further arguments of
    the model. If SDPA does not implement one, such as softcap (Gemma 2) or s_aux (GPT-OSS), the model's eager attention
    is used. Raises ValueError if that is impossible: see `_eager_attention`; if segments is None, it is also impossible
    with an attention mask or a cache.

    In bfloat16 on a CPU, the model's eager attention, if there is one, is also used for segments that attend to at most
    EAGER_TOKENS tokens.
    """
    special = {name: more[name] for name in more if name not in WITHOUT_EFFECT and more[name] is not None}
    if more.get("is_causal") is False:
        special["is_causal"] = False
    if segments is None and special:
        if attention_mask is not None or query.shape[2] != key.shape[2]:
            raise _unsupported(module, special)
        segments = [[Segment(query.shape[2])]] * len(query)
    if segments is None:
        more |= {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    eager, eager_tokens = None, query.shape[2]
    if special:
        eager = _eager_attention(module, special, query.shape[2])
    elif query.device.type == "cpu" and query.dtype == torch.bfloat16 and _has_eager_attention(module):
        eager, eager_tokens = _eager_attention(module, {}, query.shape[2]), EAGER_TOKENS
    attended = [
        _attend(q[None], k[None], v[None], sequence_segments, scaling, dropout, sliding_window, eager, eager_tokens)
        for q, k, v, sequence_segments in zip(query, key, value, segments, strict=True)
    ]
    return torch.cat(attended).transpose(1, 2).contiguous(), None


def _has_eager_attention(module: torch.nn.Module) -> bool:
    return hasattr(sys.modules[type(module).__module__], "eager_attention_forward")


def _eager_attention(module: torch.nn.Module, special: dict[str, Any], tokens: int) -> Callable[..., torch.Tensor]:
    """Return a function of (q, k, v, mask, dropout, scale) that calls the module's eager attention.

    Its tensors have the layouts that SDPA takes and returns. special: keywords for the eager attention. tokens: length
    of the sequence. Raises ValueError if the module's file has no eager attention, if a keyword holds values for each
    token (they are not split by segment), or if the attention is not causal.
    """
    attention = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    per_token = any(isinstance(value, torch.Tensor) and tokens in value.shape for value in special.values())
    if attention is None or per_token or "is_causal" in special:
        raise _unsupported(module, special)

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, dropout: float, scale: float | None
    ) -> torch.Tensor:
        additive = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, torch.finfo(q.dtype).min)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        output: torch.Tensor
        output, _ = attention(module, q, k, v, additive[None, None], scaling=scale, dropout=dropout, **special)
        return output.transpose(1, 2)  # (1, heads, tokens, width)

    return attend


def _unsupported(module: torch.nn.Module, special: dict[str, Any]) -> ValueError:
    return ValueError(
        f"{NAME} does not implement {', '.join(special)}, which {type(module).__name__} passes to its attention; "
        "give --attn_implementation eager"
    )


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Sequence[Segment],
    scaling: float | None, dropout: float, window: int | None, eager: Callable[..., torch.Tensor] | None,
    eager_tokens: int,
) -> torch.Tensor:  # fmt: skip
    """Return the attention output of one sequence, (1, heads, tokens, width).

    eager: used instead of SDPA for segments that attend to at most `eager_tokens` tokens.
    """
    lengths = [segment.length for segment in segments]
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    attended = []
    for segment, q, k, v in zip(segments, queries, keys, values, strict=True):
        before, parent = 0, segment.parent
        if parent is not None:
            before = lengths[parent]
            k, v = torch.cat([keys[parent], k], 2), torch.cat([values[parent], v], 2)
        effective_window = window if window is not None and before + segment.length > window else None
        if eager is not None and before + segment.length <= eager_tokens:
            attended.append(eager(q, k, v, _mask(segment.length, before, effective_window, q.device), dropout, scaling))
            continue
        mask = _mask(segment.length, before, effective_window, q.device) if effective_window or before else None
        attended.append(
            scaled_dot_product_attention(
                q, k, v, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
            )
        )
    return torch.cat(attended, dim=2)


@lru_cache(maxsize=4096)
def _mask(tokens: int, before: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which tokens of the prefix and of the segment each token attends to, (tokens, before + tokens) bool."""
    back = torch.arange(before, before + tokens)[:, None] - torch.arange(before + tokens)
    return ((back >= 0) & (back < (window or before + tokens))).to(device)


def attention_arguments(
    implementation: str, segments: Sequence[Sequence[Segment]], device: torch.device
) -> dict[str, Any]:
    """Return the arguments with which a forward pass hands the segments to the attention backend.

    FlashAttention takes the boundaries in the concatenated sequences. Other backends take no argument: they detect
    segments by restarting positions, or ignore them (see isolation_check.py).
    """
    if implementation == NAME:
        return {"segments": segments}
    if "flash" not in implementation:
        return {}
    lengths = [segment.length for sequence in segments for segment in sequence]
    ends = torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(lengths), "max_length_k": max(lengths)}


def can_pack(model: Any) -> bool:
    """Return whether the model forwards keyword arguments to an attention backend that supports segments."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(base.forward).parameters.values())
    return open_ended and attention_of(base) in (NAME, "flash_attention_2", "flash_attention_3")


def attention_of(model: Any) -> str:
    """Return the name of the model's attention backend; transformers has no public attribute for it."""
    return str(model.config._attn_implementation)


def padded_attention(model: Any) -> str:
    """Return the name of the backend to use for padded sequences instead of NAME."""
    return attention_backend(model.config) or "sdpa"


def register() -> None:
    """Register `attend_by_segment` with transformers as NAME."""
    AttentionInterface.register(NAME, attend_by_segment)
