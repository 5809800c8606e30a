"""Adapters on a machine without a GPU: the rows of a batch that belong to one adapter are multiplied together.

vLLM 0.32 loads this as a general plugin, in each of its processes (knowlm_inference-1.dist-info names it). Its own code
for the CPU (vllm/lora/ops/torch_ops/lora_ops.py) looks an adapter up by the slot of a row, and the base's slot, -1,
finds the last one: what is asked of the base is answered with somebody's adapter. It also copies both matrices of the
adapter for every token of a prompt. vLLM's kernels for GPUs do neither; there, nothing is changed.
"""

from typing import Any

import torch

from vllm_bridge.vllm_imports import part

Rows = list[tuple[int, torch.Tensor | slice]]  # an adapter's slot and its rows, (rows,) int64, or all of them


def rows_by_slot(slots: torch.Tensor) -> Rows:
    """The rows of each adapter in a batch; slots: (rows,) int64, -1 where a row is the base's, which gets nothing."""
    found = slots.unique().tolist()
    return [(slot, slice(None) if len(found) == 1 else (slots == slot).nonzero()[:, 0]) for slot in found if slot >= 0]


def shrunk(x: torch.Tensor, own: torch.Tensor | slice, a: torch.Tensor) -> torch.Tensor:
    """x[own] A^T in float32, as vLLM's kernels have it; x: (rows, in), a: (r, in); returns (own rows, r)."""
    return x[own].float() @ a.float().T


def expand(y: torch.Tensor, own: torch.Tensor | slice, low: torch.Tensor, b: torch.Tensor, first: int = 0) -> None:
    """y[own, first:first + out] += low B^T; low: (own rows, r), b: (out, r). Columns that y lacks are left out."""
    columns = y[:, first : first + b.shape[0]]
    low, b = low.to(y.dtype), b[: columns.shape[1]].to(y.dtype)  # a vocabulary is padded differently here and there
    if isinstance(own, slice):
        columns.addmm_(low, b.T)
    else:
        columns.index_add_(0, own, low @ b.T)


def product(rows: Rows, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, y: torch.Tensor, first: int = 0) -> None:
    """Add each row's B A x to y, from column `first` on; a: (slots, 1, r, in), b: (slots, 1, out, r)."""
    for slot, own in rows:
        expand(y, own, shrunk(x, own, a[slot, 0]), b[slot, 0], first)


class AdapterRows(part("PunicaWrapperCPU")):  # type: ignore[misc]
    """vLLM's handler of adapters on a CPU, with the products above; what is overridden is called as vLLM has it.

    vLLM puts an adapter's alpha / r into its B when it loads it, so that every `scale` is 1.
    """

    tokens: Rows  # of this step
    answers: Rows  # those that get logits

    def update_metadata(self, *mapping: Any, **more: Any) -> None:
        super().update_metadata(*mapping, **more)
        self.tokens = rows_by_slot(self.token_lora_indices)
        self.answers = rows_by_slot(self.sampler_indices)

    def add_lora_linear(
        self, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...], scale: float, output_slices: tuple[int, ...], **buffer: Any,
    ) -> None:  # fmt: skip
        first = 0
        for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            product(self.tokens, x, a, b, y, first)
            first += width

    def add_lora_logits(
        self, y: torch.Tensor, x: torch.Tensor, lora_a_stacked: torch.Tensor, lora_b_stacked: torch.Tensor,
        scale: float, **buffer: Any,
    ) -> None:  # fmt: skip
        product(self.answers, x, lora_a_stacked, lora_b_stacked, y)

    def add_lora_embedding(self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, **add: Any) -> None:
        for slot, own in self.tokens:
            expand(y, own, x[own], lora_b_stacked[slot, 0])

    def _apply_shrink(self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float) -> None:
        """Half of a product whose rank is shared among processes (--fully-sharded-loras)."""
        for slot, own in self.tokens:
            y[own, : w_t_all.shape[-2]] = shrunk(x, own, w_t_all[slot, 0]).to(y.dtype)

    def _apply_expand(
        self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, y_offset: int, *size: Any, **add: Any
    ) -> None:
        for slot, own in self.tokens:
            expand(y, own, x[own], w_t_all[slot, 0], y_offset)


def register() -> None:
    """Have vLLM take the above where it serves on a CPU; called once in each of its processes."""
    platform = part("current_platform")
    if platform.is_cpu():
        type(platform).get_punica_wrapper = classmethod(lambda cls: f"{__name__}.{AdapterRows.__name__}")
