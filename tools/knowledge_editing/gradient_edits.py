"""Methods that train on the answer's loss: norm-bounded fine-tuning of one matrix (FT-L, FT-M), and a LoRA edit.

Sources: FT-L, Zhu et al. 2020 (https://arxiv.org/abs/2012.00363), with the loss of the published edits: all answer
tokens are predicted from the prompt's last token. FT-M, Zhang et al. 2024 (https://arxiv.org/abs/2401.01286): the usual
loss of the answer's tokens. LoRA, Hu et al. 2021 (https://arxiv.org/abs/2106.09685).
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from knowledge_editing.closed_form import low_rank
from knowledge_editing.editable_model import EditableModel, pad_right
from knowledge_editing.matrix_updates import EditedWeights
from knowledge_editing.target_vectors import Rewriting


def answer_loss(model: EditableModel, rewritings: Sequence[Rewriting], from_prompt: bool = False) -> torch.Tensor:
    """Return the sum over the edits of the mean loss of their answers' tokens, in nats.

    Questions have no prefix. from_prompt: predict every token of an answer from the prompt's last token, without the
    earlier tokens of the answer.
    """
    sequences = [item.prompts[0] + ([] if from_prompt else item.answer[:-1]) for item in rewritings]
    last = model.model(input_ids=pad_right(sequences, model.model.device), use_cache=False).logits.float()
    total = last.new_zeros(())
    for row, item in zip(last, rewritings, strict=True):
        first = len(item.prompts[0]) - 1
        answer = torch.tensor(item.answer, device=row.device)
        logits = row[first].expand(len(answer), -1) if from_prompt else row[first : first + len(answer)]
        total = total + functional.cross_entropy(logits, answer)
    return total


def fine_tune(
    model: EditableModel, layer: int, rewritings: Sequence[Rewriting], from_prompt: bool,
    steps: int, learning_rate: float, bound: float,
) -> EditedWeights:  # fmt: skip
    """Tune one matrix with Adam on a batch of edits; no weight changes by more than `bound` (Zhu et al. 2020).

    from_prompt: as for `answer_loss`; True is FT-L, False FT-M. The model is left unchanged. The update has full rank:
    its left factor is the identity.
    """
    weight = model.model.get_parameter(model.weight_name(layer))
    start = weight.detach().clone()
    weight.requires_grad_(True)
    optimiser = torch.optim.Adam([weight], lr=learning_rate)
    for _ in range(steps):
        loss = answer_loss(model, rewritings, from_prompt)
        if loss.item() / len(rewritings) < 1e-2:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            weight.copy_(torch.minimum(torch.maximum(weight, start - bound), start + bound))
    weight.requires_grad_(False)
    weight.grad = None
    change = (weight.detach() - start).float()
    with torch.no_grad():
        weight.copy_(start)
    return {model.weight_name(layer): low_rank(torch.eye(len(change)), change)}


def lora_edit(
    model: EditableModel, layers: Sequence[int], rewritings: Sequence[Rewriting], rank: int, steps: int,
    learning_rate: float, seed: int = 0,
) -> EditedWeights:  # fmt: skip
    """Train low-rank updates of several matrices with Adam on a batch of edits."""
    generator = torch.Generator().manual_seed(seed)
    factors: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    hooks = []
    for layer in layers:
        rows, columns = model.matrix(layer).shape
        right = torch.empty(rank, columns).normal_(0, columns**-0.5, generator=generator).requires_grad_()
        left = torch.zeros(rows, rank).requires_grad_()
        factors[layer] = left, right
        module = model.model.get_submodule(model.module.replace("{}", str(layer)))
        hooks.append(
            module.register_forward_hook(
                lambda _, inputs, output, left=left, right=right: (
                    output + (inputs[0].float() @ right.T @ left.T).to(output)
                )
            )
        )
    optimiser = torch.optim.Adam([part for pair in factors.values() for part in pair], lr=learning_rate)
    try:
        for _ in range(steps):
            loss = answer_loss(model, rewritings)
            if loss.item() / len(rewritings) < 1e-2:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    finally:
        for hook in hooks:
            hook.remove()
    return {model.weight_name(layer): low_rank(*pair) for layer, pair in factors.items()}
