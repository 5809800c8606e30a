"""Rows in one line that never see each other: attention row by row, and the proof of it on the model at hand.

FlashAttention keeps rows apart by itself, told where they begin. Elsewhere (V100, machines without a GPU) transformers
would spread a mask over the whole line, and all that it blots out would be computed and thrown away. Here every row is
causal attention of its own.

Not a script: instruction_trainer.py trains through it.
"""

import inspect
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "sdpa_by_row"


def attend_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_lengths: list[int] | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for attention; (1, tokens, heads, width) comes back, and no attention weights.

    query: (1, heads, tokens, width); key, value: the same with perhaps fewer heads. row_lengths: tokens of each row of
    the line; without it, this is transformers' own sdpa. sliding_window: how far back a token sees, itself included.
    """
    if row_lengths is None:
        more |= {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    rows = []
    for q, k, v in zip(*(tensor.split(row_lengths, dim=2) for tensor in (query, key, value)), strict=True):
        tokens = q.shape[2]
        near = _window(tokens, sliding_window, q.device) if sliding_window and tokens > sliding_window else None
        rows.append(
            scaled_dot_product_attention(
                q, k, v, near, dropout, is_causal=near is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
            )
        )
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None


def _window(tokens: int, width: int, device: torch.device) -> torch.Tensor:
    """Which tokens (columns) each token (line) of a row sees, (tokens, tokens) bool."""
    back = torch.arange(tokens, device=device)[:, None] - torch.arange(tokens, device=device)
    return (back >= 0) & (back < width)


def arguments_for(implementation: str, row_lengths: list[int], device: torch.device) -> dict[str, Any]:
    """What a forward pass is told besides ids and positions, so that attention keeps these rows apart."""
    if "flash" not in implementation:
        return {"row_lengths": row_lengths}
    ends = torch.tensor([0, *row_lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
    longest = max(row_lengths)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def can_pack(model: Any) -> bool:
    """Whether the architecture hands keywords down to its attention, which is how rows are told apart."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(base.forward).parameters.values())
    return open_ended and base.config._attn_implementation in (NAME, "flash_attention_2", "flash_attention_3")


def keeps_rows_apart(model: Any, implementation: str, vocabulary: int, device: torch.device) -> bool:
    """Try it: the logits of a row must not change, not by a bit, when the row before it does.

    Under ZeRO-3 all ranks call this together.
    """
    lengths = [8, 9]
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
    draw = torch.Generator().manual_seed(0)
    line = torch.randint(0, vocabulary, (1, sum(lengths)), generator=draw)
    said = []
    training = model.training
    model.eval()
    with torch.no_grad():
        for shift in (0, 1):
            line[0, : lengths[0]] = (line[0, : lengths[0]] + shift) % vocabulary
            logits = model(
                input_ids=line.to(device), position_ids=positions, use_cache=False,
                **arguments_for(implementation, lengths, device),
            ).logits  # fmt: skip
            said.append(logits[0, lengths[0] :])
    model.train(training)
    return torch.equal(*said)


def register() -> None:
    """Make it known to transformers under its name."""
    AttentionInterface.register(NAME, attend_by_row)
