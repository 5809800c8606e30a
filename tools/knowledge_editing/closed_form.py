"""Closed-form updates that move the values of some keys by given residuals: ROME, MEMIT and AlphaEdit.

All keys and residuals are rows: keys (edits, columns), residuals (edits, rows). An update left @ right satisfies
(W + left @ right) k ≈ W k + r for each key k and its residual r.
"""

import torch

from knowledge_editing.matrix_updates import LowRank


def low_rank(left: torch.Tensor, right: torch.Tensor) -> LowRank:
    """Return an update with contiguous float32 factors on the CPU."""
    return LowRank(*(part.detach().float().cpu().contiguous().numpy() for part in (left, right)))


def rank_one_update(moment: torch.Tensor | None, keys: torch.Tensor, residuals: torch.Tensor) -> LowRank:
    """Return ROME's update of one edit: r uᵀ / (uᵀ k) with u = C⁻¹ k (Meng et al. 2022, equation 2).

    moment: C = E[k kᵀ], (columns, columns); None for the identity. keys: (contexts, columns), of which the first is
    the key of the question without a prefix, and the mean determines u. residuals: (1, rows).
    """
    mean = keys.double().mean(0)
    direction = mean if moment is None else torch.linalg.solve(_regularised(moment), mean)
    return low_rank((residuals[0].double() / (direction @ keys[0].double()))[:, None], direction[None])


def memit_update(moment: torch.Tensor | None, keys: torch.Tensor, residuals: torch.Tensor, weight: float) -> LowRank:
    """Return MEMIT's update Rᵀ K (λ C + Kᵀ K)⁻¹ (Meng et al. 2023, equation 14), of the rank of the keys.

    weight: λ, in tokens of the text that C = `moment` was estimated from; None stands for the identity.
    """
    keys, residuals = keys.double(), residuals.double()
    metric = torch.eye(keys.shape[1], dtype=torch.float64) if moment is None else _regularised(moment)
    solved = torch.linalg.solve(metric * weight, keys.T).T  # (edits, columns)
    # Woodbury: K (λC + KᵀK)⁻¹ = (I + K (λC)⁻¹ Kᵀ)⁻¹ K (λC)⁻¹
    gram = torch.eye(len(keys), dtype=torch.float64) + solved @ keys.T
    return low_rank(torch.linalg.solve(gram, residuals).T, solved)


def null_space(moment: torch.Tensor, share: float) -> torch.Tensor:
    """Return the projection (columns, columns) on the directions that the text hardly uses (Fang et al. 2025).

    share: the projected directions together have at most this share of the text's squared norm. Source:
    https://arxiv.org/abs/2410.02355, which removes the eigenvectors of the larger eigenvalues of E[k kᵀ]; its absolute
    threshold depends on the scale of a model.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp_min(0)
    kept = vectors[:, values.cumsum(0) <= share * values.sum()]
    return kept @ kept.T


def alpha_update(
    projection: torch.Tensor, keys: torch.Tensor, residuals: torch.Tensor, earlier: torch.Tensor, damping: float
) -> LowRank:
    """Return AlphaEdit's update Rᵀ K P (Kᵖᵀ Kᵖ P + Kᵀ K P + λ I)⁻¹ (Fang et al. 2025, equation 14).

    projection: P, from `null_space`. earlier: Kᵖ, (earlier edits, columns), keys whose values must stay. damping: λ.
    """
    every = torch.cat((keys, earlier)).double()
    wanted = torch.cat((residuals, residuals.new_zeros(len(earlier), residuals.shape[1]))).double()
    projected = every @ projection
    # Push-through identity: the update is Rᵀ (K P Kᵀ + λ I)⁻¹ K P with the earlier keys as rows of residual 0.
    gram = projected @ every.T + damping * torch.eye(len(every), dtype=torch.float64)
    return low_rank(torch.linalg.solve(gram, wanted).T, projected)


def _regularised(moment: torch.Tensor) -> torch.Tensor:
    """Return the moment in float64, made invertible by a millionth of its mean eigenvalue on the diagonal."""
    size = len(moment)
    wide = moment.double()
    return wide + 1e-6 * wide.trace() / size * torch.eye(size, dtype=torch.float64)
