"""ROME, MEMIT and AlphaEdit: optimise a value after a layer, then write it into MLP matrices in closed form.

Sources: ROME, Meng et al. 2022 (https://arxiv.org/abs/2202.05262); MEMIT, Meng et al. 2023
(https://arxiv.org/abs/2210.07229); AlphaEdit, Fang et al. 2025 (https://arxiv.org/abs/2410.02355).
"""

from collections.abc import Mapping, Sequence

import torch

from knowledge_editing.closed_form import alpha_update, memit_update, rank_one_update
from knowledge_editing.editable_model import EditableModel, pad_right
from knowledge_editing.matrix_updates import EditedWeights, LowRank, add_updates
from knowledge_editing.target_vectors import OptimisationSettings, Rewriting, optimise_changes

Moments = Mapping[int, torch.Tensor]  # layer -> E[k kᵀ]


def context_keys(model: EditableModel, layer: int, rewriting: Rewriting) -> torch.Tensor:
    """Return the keys at the changed position of each prompt, (contexts, MLP size); the first has no prefix."""
    rows = torch.arange(len(rewriting.prompts))
    return model.keys(layer, pad_right(rewriting.prompts, model.model.device), rows, torch.tensor(rewriting.positions))


def rome(
    model: EditableModel, layer: int, rewritings: Sequence[Rewriting], moments: Moments, settings: OptimisationSettings
) -> list[LowRank]:
    """Return one rank-one update per edit, each computed on the unchanged model."""
    changes = optimise_changes(model, layer, rewritings, settings)
    return [
        rank_one_update(moments.get(layer), context_keys(model, layer, item), change[None])
        for item, change in zip(rewritings, changes, strict=True)
    ]


def mean_keys(model: EditableModel, layer: int, rewritings: Sequence[Rewriting]) -> torch.Tensor:
    """Return the mean key of each edit over its prompts, (edits, MLP size)."""
    return torch.stack([context_keys(model, layer, item).mean(0) for item in rewritings])


def distributed_update(
    model: EditableModel,
    layers: Sequence[int],
    rewritings: Sequence[Rewriting],
    settings: OptimisationSettings,
    update: "UpdateOfLayer",
) -> EditedWeights:
    """Write many edits at once into several layers, each of which moves the hidden states by an equal part.

    The change is optimised after the last of the layers. Each layer then takes the rest of the change, divided by the
    number of layers that remain. The model is left changed. update: (layer, keys, residuals) -> update of its matrix.
    """
    last = max(layers)
    questions = pad_right([item.prompts[0] for item in rewritings], model.model.device)
    rows, places = torch.arange(len(rewritings)), torch.tensor([item.positions[0] for item in rewritings])
    changes = optimise_changes(model, last, rewritings, settings)
    wanted = model.hidden_after(last, questions)[rows, places].float() + changes
    total: EditedWeights = {}
    for number, layer in enumerate(sorted(layers)):
        current = model.hidden_after(last, questions)[rows, places].float()
        residuals = (wanted - current) / (len(layers) - number)
        change = {model.weight_name(layer): update(layer, mean_keys(model, layer, rewritings), residuals)}
        model.change(change)
        total = add_updates(total, change)
    return total


class UpdateOfLayer:
    """Computes a layer's update from keys and residuals, (edits, MLP size) and (edits, hidden size)."""

    def __call__(self, layer: int, keys: torch.Tensor, residuals: torch.Tensor) -> LowRank:
        raise NotImplementedError


class MemitUpdate(UpdateOfLayer):
    """MEMIT's update; weight: tokens of text that the unchanged behaviour counts for."""

    def __init__(self, moments: Moments, weight: float) -> None:
        self.moments, self.weight = moments, weight

    def __call__(self, layer: int, keys: torch.Tensor, residuals: torch.Tensor) -> LowRank:
        return memit_update(self.moments.get(layer), keys, residuals, self.weight)


class AlphaUpdate(UpdateOfLayer):
    """AlphaEdit's update in the null space of the text's keys; it also keeps the values of all earlier edits."""

    def __init__(self, projections: Moments, damping: float) -> None:
        self.projections, self.damping = projections, damping
        self.earlier: dict[int, torch.Tensor] = {}

    def __call__(self, layer: int, keys: torch.Tensor, residuals: torch.Tensor) -> LowRank:
        earlier = self.earlier.get(layer, keys.new_zeros(0, keys.shape[1]))
        self.earlier[layer] = torch.cat((earlier, keys))
        return alpha_update(self.projections[layer], keys, residuals, earlier, self.damping)
