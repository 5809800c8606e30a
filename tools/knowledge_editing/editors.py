"""The editing methods by name. An editor changes a model in memory, batch by batch, and returns the updates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from knowledge_editing.closed_form import null_space
from knowledge_editing.editable_model import EditableModel
from knowledge_editing.gradient_edits import fine_tune, lora_edit
from knowledge_editing.locate_then_edit import AlphaUpdate, MemitUpdate, distributed_update, rome
from knowledge_editing.matrix_updates import EditedWeights, add_updates
from knowledge_editing.target_vectors import OptimisationSettings, Rewriting


@dataclass(frozen=True)
class EditOptions:
    """Options of all methods; each method reads its own.

    layers: the layers whose matrices change; () for the method's default. moments: {layer: E[k kᵀ]}, empty if the
    statistics were turned off. moment_weight: number of tokens of text for which the unchanged behaviour counts in
    MEMIT. null_share: largest share of the text's squared norm in the directions that AlphaEdit may change. bound:
    largest change of a weight in fine-tuning.
    """

    layers: tuple[int, ...] = ()
    moments: Mapping[int, torch.Tensor] = field(default_factory=dict)
    optimisation: OptimisationSettings = field(default_factory=OptimisationSettings)
    moment_weight: float = 1000.0
    null_share: float = 0.02
    damping: float = 1.0
    steps: int = 25
    learning_rate: float = 1e-3
    bound: float = 0.02
    rank: int = 8
    seed: int = 0


class Editor:
    """Base of the editors. `edit` returns the updates of a batch and leaves the model changed by them."""

    fractions: tuple[float, ...] = (0.25,)  # depths of the default layers, between 0 and 1
    defaults = EditOptions()
    needs_subject = True  # changes the hidden state of the subject's last token
    needs_moments = True

    def __init__(self, model: EditableModel, options: EditOptions) -> None:
        self.model, self.options = model, options

    @classmethod
    def default_layers(cls, layers: int) -> tuple[int, ...]:
        """Return the method's layers of a model with `layers` layers, ascending."""
        return tuple(sorted({min(layers - 1, int(fraction * layers)) for fraction in cls.fractions}))

    def edit(self, rewritings: Sequence[Rewriting]) -> EditedWeights:
        updates = self.updates(rewritings)
        self.model.change(updates)
        return updates

    def updates(self, rewritings: Sequence[Rewriting]) -> EditedWeights:
        raise NotImplementedError


class Rome(Editor):
    """Rank-one edits of one matrix, one after the other: each sees the earlier ones."""

    def edit(self, rewritings: Sequence[Rewriting]) -> EditedWeights:
        layer, total = self.options.layers[-1], EditedWeights()
        name = self.model.weight_name(layer)
        for item in rewritings:
            updates = {name: rome(self.model, layer, [item], self.options.moments, self.options.optimisation)[0]}
            self.model.change(updates)
            total = add_updates(total, updates)
        return total


class Memit(Editor):
    """Many edits at once, distributed over several matrices."""

    fractions = (0.15, 0.2, 0.25)

    def edit(self, rewritings: Sequence[Rewriting]) -> EditedWeights:
        update = MemitUpdate(self.options.moments, self.options.moment_weight)
        return distributed_update(self.model, self.options.layers, rewritings, self.options.optimisation, update)


class AlphaEdit(Editor):
    """Like MEMIT, in the null space of the text's keys; the values of earlier batches' keys are kept."""

    fractions = Memit.fractions

    def __init__(self, model: EditableModel, options: EditOptions) -> None:
        super().__init__(model, options)
        projections = {layer: null_space(options.moments[layer], options.null_share) for layer in options.layers}
        self.update = AlphaUpdate(projections, options.damping)

    def edit(self, rewritings: Sequence[Rewriting]) -> EditedWeights:
        return distributed_update(self.model, self.options.layers, rewritings, self.options.optimisation, self.update)


class FineTuneMasked(Editor):
    """FT-M: norm-bounded fine-tuning of one matrix on the answer's tokens."""

    fractions = (0.7,)
    needs_subject = needs_moments = False
    from_prompt = False

    def updates(self, rewritings: Sequence[Rewriting]) -> EditedWeights:
        options = self.options
        return fine_tune(
            self.model, options.layers[-1], rewritings, self.from_prompt, options.steps, options.learning_rate,
            options.bound,
        )  # fmt: skip


class FineTuneLast(FineTuneMasked):
    """FT-L: like FT-M, but all tokens of the answer are predicted from the prompt's last token."""

    from_prompt = True


class LoraEdit(Editor):
    """Trains a LoRA adapter on the edits."""

    fractions = (0.5, 0.6, 0.7)
    defaults = EditOptions(learning_rate=5e-3)
    needs_subject = needs_moments = False

    def updates(self, rewritings: Sequence[Rewriting]) -> EditedWeights:
        options = self.options
        return lora_edit(
            self.model, options.layers, rewritings, options.rank, options.steps, options.learning_rate, options.seed
        )


EDITORS: dict[str, type[Editor]] = {
    "rome": Rome, "memit": Memit, "alphaedit": AlphaEdit, "ft-m": FineTuneMasked,
    "ft-l": FineTuneLast, "lora": LoraEdit,
}  # fmt: skip
