"""Attention sample by sample, for packed rows where FlashAttention is not to be had: V100, machines without a GPU.

transformers' way there is one causal mask over the whole row with all but the samples blotted out: it computes what it
then throws away, and no kernel skips it. Each sample by itself is plain causal attention, which kernels do in half the
operations, and of a row of n equal samples it is an n-th.

`pretrain/train.py` is the command line.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

NAME = "sdpa_by_sample"  # for --attn_implementation


def attend_by_sample(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sample_lengths: list[list[int]] | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for attention; returns (rows, tokens, heads, width), and no attention weights.

    query, key, value: (rows, heads, tokens, width), of the latter two fewer heads where the model groups them.
    sample_lengths: of each row, tokens of its samples, the rest of the row counted as one more.
    """
    if sample_lengths is None or attention_mask is not None:
        raise ValueError(f"--attn_implementation {NAME} is for packed rows; with --no_packing take sdpa")
    groups = query.shape[1] // key.shape[1]
    rows = zip(query, repeat_kv(key, groups), repeat_kv(value, groups), sample_lengths, strict=True)
    attended = [
        torch.cat(
            [
                scaled_dot_product_attention(
                    q[None], k[None], v[None], dropout_p=dropout, is_causal=True, scale=scaling
                )
                for q, k, v in zip(*(each.split(lengths, 1) for each in parts), strict=True)
            ],
            2,
        )
        for *parts, lengths in rows
    ]
    return torch.cat(attended).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make it known to transformers under its name."""
    AttentionInterface.register(NAME, attend_by_sample)
