"""Rows in one line that never see each other: attention row by row, and the proof of it on the model at hand.

FlashAttention keeps rows apart by itself, told where they begin. Elsewhere (V100, machines without a GPU) transformers
would spread a mask over the whole line, and all that it blots out would be computed and thrown away. Here every row is
causal attention of its own.

instruction_trainer.py trains through it.
"""

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "sdpa_by_row"


@dataclass(frozen=True)  # not a tuple, which Trainer would take apart
class Segment:
    """Tokens that follow one another in a line: a row, or the part of rows that a shared prefix comes before.

    parent: the number of the segment that is that prefix.
    """

    length: int
    parent: int | None


def attend_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: list[Segment] | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for attention; (1, tokens, heads, width) comes back, and no attention weights.

    query: (1, heads, tokens, width); key, value: the same with perhaps fewer heads. segments: of the line; without
    them, this is transformers' own sdpa. sliding_window: how far back a token sees, itself included.
    """
    if segments is None:
        more |= {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    lengths = [segment.length for segment in segments]
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    rows = []
    for segment, q, k, v in zip(segments, queries, keys, values, strict=True):
        before, parent = 0, segment.parent
        if parent is not None:
            before = lengths[parent]
            k, v = torch.cat([keys[parent], k], 2), torch.cat([values[parent], v], 2)
        near = sliding_window is not None and before + segment.length > sliding_window
        seen = _seen(segment.length, before, sliding_window if near else None, q.device) if near or before else None
        rows.append(
            scaled_dot_product_attention(
                q, k, v, seen, dropout, is_causal=seen is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
            )
        )
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None


@lru_cache(maxsize=4096)
def _seen(tokens: int, before: int, window: int | None, device: torch.device) -> torch.Tensor:
    """What each token (line) sees of those before the segment and in it (columns), (tokens, before + tokens) bool."""
    back = torch.arange(before, before + tokens)[:, None] - torch.arange(before + tokens)
    return ((back >= 0) & (back < (window or before + tokens))).to(device)


def arguments_for(implementation: str, segments: list[Segment], device: torch.device) -> dict[str, Any]:
    """What a forward pass is told besides ids and positions, so that attention keeps these rows apart."""
    if "flash" not in implementation:
        return {"segments": segments}
    lengths = [segment.length for segment in segments]
    ends = torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(lengths), "max_length_k": max(lengths)}


def can_pack(model: Any) -> bool:
    """Whether the architecture hands keywords down to its attention, which is how rows are told apart."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(base.forward).parameters.values())
    return open_ended and base.config._attn_implementation in (NAME, "flash_attention_2", "flash_attention_3")


def keeps_rows_apart(model: Any, implementation: str, vocabulary: int, device: torch.device) -> bool:
    """Try it: the logits of a row must not change, not by a bit, when the row before it does.

    Under ZeRO-3 all ranks call this together.
    """
    rows = [Segment(8, None), Segment(9, None)]
    one, other = (_logits(model, implementation, vocabulary, device, rows, shift) for shift in (0, 1))
    return torch.equal(one[8:], other[8:])


def shares_prefixes(model: Any, implementation: str, vocabulary: int, device: torch.device) -> bool:
    """Try it: a row's logits must be the same, but for rounding, whether its beginning is its own or a prefix's."""
    if implementation != NAME:
        return False
    whole = _logits(model, implementation, vocabulary, device, [Segment(17, None)]).float()
    cut = _logits(model, implementation, vocabulary, device, [Segment(8, None), Segment(9, 0)]).float()
    return torch.allclose(whole[8:], cut[8:], atol=1e-2 * whole.std().item(), rtol=1e-2)


def _logits(
    model: Any, implementation: str, vocabulary: int, device: torch.device, segments: list[Segment], shift: int = 0
) -> torch.Tensor:
    """Logits (tokens, vocabulary) of a line of random ids, those of its first segment shifted."""
    line = torch.randint(0, vocabulary, (1, 17), generator=torch.Generator().manual_seed(0))
    line[0, :8] = (line[0, :8] + shift) % vocabulary
    starts = [0 if segment.parent is None else segments[segment.parent].length for segment in segments]
    positions = [torch.arange(start, start + segment.length) for start, segment in zip(starts, segments, strict=True)]
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(
            input_ids=line.to(device), position_ids=torch.cat(positions)[None].to(device), use_cache=False,
            **arguments_for(implementation, segments, device),
        ).logits  # fmt: skip
    model.train(training)
    return logits[0]


def register() -> None:
    """Make it known to transformers under its name."""
    AttentionInterface.register(NAME, attend_by_row)
