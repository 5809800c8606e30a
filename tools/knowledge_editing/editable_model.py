"""A model in memory whose MLP output matrices are edited: their inputs (keys), their updates, and parts of the model.

The output matrix W of an MLP is read as a linear associative memory (Meng et al. 2022, https://arxiv.org/abs/2202.05262):
its input is the key k, its output the value v = W k. All methods return low-rank updates of such matrices.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from knowledge_editing.matrix_updates import LowRank

MLP_OUTPUT = "model.layers.{}.mlp.down_proj"  # of LLaMA, Mistral, Qwen2 and Qwen3


class EditableModel:
    """Access to the layers of a transformers model; the model is in evaluation mode and its weights have no gradients.

    Attributes:
        model: the causal language model.
        module: name of the edited matrix's module, in which {} stands for the number of the layer.
        layers: the number of layers.
    """

    def __init__(self, model: Any, module: str = MLP_OUTPUT) -> None:
        """Raises ValueError if the model has no such modules."""
        self.model = model.eval().requires_grad_(False)
        self.module = module
        names = {name for name, _ in model.named_modules()}
        prefix = module.partition(".{}")[0]
        if module.count("{}") != 1 or module.replace("{}", "0") not in names:
            raise ValueError(
                f"the model has no module {module.replace('{}', '0')}; name the output matrix of its MLPs with "
                f"--module, as in --module {MLP_OUTPUT}"
            )
        self._stack = model.get_submodule(prefix.rpartition(".")[0])
        self._stack_name = prefix.rpartition(".")[2]
        self.layers = len(getattr(self._stack, self._stack_name))

    def weight_name(self, layer: int) -> str:
        """Return the tensor name of a layer's edited matrix."""
        return f"{self.module.replace('{}', str(layer))}.weight"

    def matrix(self, layer: int) -> torch.Tensor:
        """Return a layer's edited matrix, (hidden size, MLP size); it may be changed in place."""
        return self.model.get_parameter(self.weight_name(layer)).data

    def change(self, updates: Mapping[str, LowRank]) -> None:
        """Add updates to the matrices in memory."""
        for name, update in updates.items():
            weight = self.model.get_parameter(name).data
            product = torch.from_numpy(update.left) @ torch.from_numpy(update.right)
            weight += product.to(weight)

    @contextmanager
    def unchanged_after(self, layers: Sequence[int]) -> Iterator[None]:
        """Restore the edited matrices of the layers at the end of the context, bit for bit."""
        kept = {layer: self.matrix(layer).clone() for layer in layers}
        try:
            yield
        finally:
            for layer, weight in kept.items():
                self.matrix(layer).copy_(weight)

    @contextmanager
    def _only_layers(self, start: int, stop: int, has_norm: bool) -> Iterator[None]:
        """Reduce the model to the layers start to stop (exclusive), with or without the final norm."""
        layers, norm = getattr(self._stack, self._stack_name), self._stack.norm
        setattr(self._stack, self._stack_name, layers[start:stop])
        self._stack.norm = norm if has_norm else torch.nn.Identity()
        try:
            yield
        finally:
            setattr(self._stack, self._stack_name, layers)
            self._stack.norm = norm

    def hidden_after(self, layer: int, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the hidden states after a layer, (rows, tokens, hidden size); only the layers up to it are computed.

        input_ids: (rows, tokens), padded on the right: causal attention keeps padding from changing earlier positions.
        """
        with torch.no_grad(), self._only_layers(0, layer + 1, has_norm=False):
            return self._stack(input_ids=input_ids, use_cache=False).last_hidden_state

    def logits_from(
        self, layer: int, hidden: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits at some positions, (len(rows), vocabulary), given the hidden states after `layer`.

        hidden: (rows, tokens, hidden size); rows, positions: the indices of the wanted logits. Gradients flow to
        `hidden`.
        """
        with self._only_layers(layer + 1, self.layers, has_norm=True):
            last = self._stack(inputs_embeds=hidden, use_cache=False).last_hidden_state
        logits: torch.Tensor = self.model.lm_head(last[rows, positions])
        return logits

    def keys(self, layer: int, input_ids: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the inputs of a layer's edited matrix at some positions, (len(rows), MLP size) float32."""
        found: list[torch.Tensor] = []
        module = self.model.get_submodule(self.module.replace("{}", str(layer)))
        hook = module.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][rows, positions].float()))
        try:
            self.hidden_after(layer, input_ids)
        finally:
            hook.remove()
        return found[0]


def pad_right(sequences: Sequence[Sequence[int]], device: Any = "cpu") -> torch.Tensor:
    """Return sequences of token ids as (rows, tokens) int64, padded on the right with 0."""
    rows = [torch.tensor(list(sequence), dtype=torch.int64) for sequence in sequences]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
