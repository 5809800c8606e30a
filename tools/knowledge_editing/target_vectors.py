"""Find the change of a hidden state that makes a model give a new answer: the optimised values of ROME and MEMIT.

Source: Meng et al. 2022 (https://arxiv.org/abs/2202.05262, section 3.1) and Meng et al. 2023
(https://arxiv.org/abs/2210.07229, section 4.3). The change is added at one position of the prompt after one layer; it
is found by Adam, for several edits at once. Beside the loss of the new answer, there are two: the KL divergence of the
next-token distributions of prompts that must stay the same, and the norm of the change. The supervised answer includes
the token that ends it, so that generation stops after the new object.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from knowledge_editing.editable_model import EditableModel, pad_right


@dataclass(frozen=True)
class Rewriting:
    """One edit as token ids.

    prompts: the question after different prefixes; the first has no prefix. positions: in each prompt, the position
    that is changed. answer: ids of the new answer and of the end of the answer. kept: prompts whose next token must
    keep its distribution. kept_positions: in each of them, the position that is changed, or -1 if none is.
    """

    prompts: tuple[list[int], ...]
    positions: tuple[int, ...]
    answer: list[int]
    kept: tuple[list[int], ...] = ()
    kept_positions: tuple[int, ...] = ()


@dataclass(frozen=True)
class OptimisationSettings:
    """Settings of `optimise_changes`; the defaults were measured (benchmarks/RESULTS.md)."""

    steps: int = 25
    learning_rate: float = 0.5
    kl_factor: float = 0.0625
    weight_decay: float = 1e-3
    clamp: float = 4.0  # largest norm of the change, in norms of the unchanged hidden state
    stop_at: float = 0.02  # mean loss of the answers in nats at which the optimisation ends


def optimise_changes(
    model: EditableModel, layer: int, rewritings: Sequence[Rewriting], settings: OptimisationSettings
) -> torch.Tensor:
    """Return the change of each edit, (edits, hidden size) float32, to be added after `layer` at its positions."""
    rows = [
        (number, prompt + item.answer[:-1], position, len(prompt) - 1, item.answer)
        for number, item in enumerate(rewritings)
        for prompt, position in zip(item.prompts, item.positions, strict=True)
    ]
    device = model.model.device
    hidden = model.hidden_after(layer, pad_right([ids for _, ids, *_ in rows], device)).float()
    owners = torch.tensor([owner for owner, *_ in rows], device=device)
    places = torch.tensor([position for _, _, position, *_ in rows], device=device)
    counts = [len(answer) for *_, answer in rows]
    answer_rows = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts)).to(device)
    answer_places = torch.cat([torch.arange(first, first + len(answer)) for *_, first, answer in rows]).to(device)
    answers = torch.tensor([token for *_, answer in rows for token in answer], device=device)
    # Each edit has the same weight, whatever its numbers of prompts and tokens.
    weights = torch.tensor(
        [1 / count / len(rewritings[row[0]].prompts) for row, count in zip(rows, counts, strict=True)]
    )
    weights = weights.to(device)[answer_rows]
    kept = _KeptDistributions(model, layer, rewritings)
    firsts = torch.tensor([[row[0] for row in rows].index(number) for number in range(len(rewritings))], device=device)
    norms = hidden[firsts, places[firsts]].norm(dim=-1)  # (edits,)
    change = torch.zeros(len(rewritings), hidden.shape[-1], device=device, requires_grad=True)
    optimiser = torch.optim.Adam([change], lr=settings.learning_rate)
    for step in range(settings.steps + 1):
        optimiser.zero_grad()
        changed = _added(hidden, owners, places, change)
        logits = model.logits_from(layer, changed, answer_rows, answer_places).float()
        losses = functional.cross_entropy(logits, answers, reduction="none") * weights
        answer_loss = losses.sum() / len(rewritings)
        if step == settings.steps or answer_loss.item() < settings.stop_at:
            break
        decay = settings.weight_decay * ((change.norm(dim=-1) / norms) ** 2).sum()
        loss = losses.sum() + settings.kl_factor * kept.divergence(change) + decay
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            limit = settings.clamp * norms[:, None]
            change *= (limit / change.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return change.detach()


def _added(hidden: torch.Tensor, owners: torch.Tensor, places: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return hidden states with each row's change added at its position; a position of -1 is not changed."""
    indices = torch.arange(len(hidden), device=hidden.device)
    added = change[owners] * (places >= 0)[:, None]
    return hidden.index_put((indices, places.clamp_min(0)), added, accumulate=True)


class _KeptDistributions:
    """The next-token distributions of the prompts that an edit must keep."""

    def __init__(self, model: EditableModel, layer: int, rewritings: Sequence[Rewriting]) -> None:
        self.model, self.layer = model, layer
        prompts = [(owner, ids, at) for owner, item in enumerate(rewritings)
                   for ids, at in zip(item.kept, item.kept_positions, strict=True)]  # fmt: skip
        self.empty = not prompts
        if self.empty:
            return
        device = model.model.device
        self.owners = torch.tensor([owner for owner, *_ in prompts], device=device)
        self.places = torch.tensor([at for *_, at in prompts], device=device)
        self.rows = torch.arange(len(prompts), device=device)
        self.last = torch.tensor([len(ids) - 1 for _, ids, _ in prompts], device=device)
        self.weights = torch.tensor([1 / len(rewritings[owner].kept) for owner, *_ in prompts], device=device)
        self.hidden = model.hidden_after(layer, pad_right([ids for _, ids, _ in prompts], device)).float()
        with torch.no_grad():
            logits = model.logits_from(layer, self.hidden, self.rows, self.last).float()
        self.expected = functional.log_softmax(logits, dim=-1)

    def divergence(self, change: torch.Tensor) -> torch.Tensor | float:
        """Return the sum over the edits of the mean KL(before || after) of its kept prompts."""
        if self.empty:
            return 0.0
        changed = _added(self.hidden, self.owners, self.places, change)
        logits = self.model.logits_from(self.layer, changed, self.rows, self.last).float()
        found = functional.log_softmax(logits, dim=-1)
        divergences = functional.kl_div(found, self.expected, reduction="none", log_target=True).sum(-1)
        return (divergences * self.weights).sum()
