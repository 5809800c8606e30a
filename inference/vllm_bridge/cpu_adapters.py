"""Compute LoRA products on machines without a GPU, grouped by adapter; loaded in vLLM's worker processes only.

The preset `--worker-cls` names CpuAdapterWorker. vLLM 0.32's own CPU code (vllm/lora/ops/torch_ops/lora_ops.py) uses
the adapter slot of a token as an index; the base's slot is -1, which selects the last adapter, so requests to the base
are answered with an adapter. It also copies both matrices of the adapter for every token. vLLM's GPU kernels do neither
and are not changed. vllm_hooks.py lists every override in this file. Each row of a tensor belongs to one token.
"""

from typing import Any

import torch

from vllm_bridge.vllm_imports import from_vllm

RowsBySlot = list[tuple[int, torch.Tensor]]  # (adapter slot, indices of its rows as int64)


def rows_by_slot(slots: torch.Tensor) -> RowsBySlot:
    """Group the rows of a batch by adapter slot. slots: (rows,) int64; rows of the base have -1, and are left out."""
    return [(slot, (slots == slot).nonzero()[:, 0]) for slot in slots.unique().tolist() if slot >= 0]


def expand(y: torch.Tensor, rows: torch.Tensor, low: torch.Tensor, b: torch.Tensor, first: int = 0) -> None:
    """Add low B^T to y[rows, first:first + out]; low: (len(rows), r), b: (out, r).

    Rows of B beyond the width of y are ignored: vLLM pads the vocabulary of y and B differently.
    """
    columns = y[:, first : first + b.shape[0]]
    columns.index_add_(0, rows, low.to(y.dtype) @ b[: columns.shape[1]].to(y.dtype).T)


def add_product(
    groups: RowsBySlot, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, y: torch.Tensor, first: int = 0
) -> None:
    """Add B A x of each row's adapter to y, from column `first` on; a: (slots, 1, r, in), b: (slots, 1, out, r).

    A x is computed in float32, as in vLLM's kernels.
    """
    for slot, rows in groups:
        expand(y, rows, x[rows].float() @ a[slot, 0].float().T, b[slot, 0], first)


class GroupedPunicaWrapper(from_vllm("PunicaWrapperCPU")):  # type: ignore[misc]
    """vLLM's LoRA wrapper for CPUs, with grouped products.

    vLLM multiplies alpha / r into B when it loads an adapter, so every `scale` is 1 and is ignored.
    """

    token_groups: RowsBySlot  # of all tokens of the current step
    sampler_groups: RowsBySlot  # of the tokens whose logits are computed

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self.token_groups = rows_by_slot(self.token_lora_indices)
        self.sampler_groups = rows_by_slot(self.sampler_indices)

    def add_lora_linear(
        self, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...], scale: float, output_slices: tuple[int, ...], **kwargs: Any,
    ) -> None:  # fmt: skip
        first = 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            add_product(self.token_groups, x, a, b, y, first)
            first += width

    def add_lora_logits(
        self, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: torch.Tensor, lora_b_stacked: torch.Tensor,
        scale: float, **kwargs: Any,
    ) -> None:  # fmt: skip
        add_product(self.sampler_groups, x, lora_a_stacked, lora_b_stacked, y)

    def add_lora_embedding(self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, **kwargs: Any) -> None:
        for slot, rows in self.token_groups:
            expand(y, rows, x[rows], lora_b_stacked[slot, 0])


class CpuAdapterWorker(from_vllm("CPUWorker")):  # type: ignore[misc]
    """vLLM's CPU worker, with GroupedPunicaWrapper for its adapters."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        wrapper = f"{__name__}.{GroupedPunicaWrapper.__name__}"
        type(from_vllm("current_platform")).get_punica_wrapper = classmethod(lambda cls: wrapper)
        super().__init__(*args, **kwargs)
