"""Closed-form updates: they move the given keys and leave the keys of the text in place."""

import numpy as np
import pytest
import torch
from knowledge_editing.closed_form import alpha_update, memit_update, null_space, rank_one_update
from knowledge_editing.matrix_updates import LowRank

COLUMNS, ROWS = 24, 8


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def applied(update: LowRank, keys: torch.Tensor) -> torch.Tensor:
    """Return how much an update changes the values of keys, (keys, rows)."""
    return keys @ torch.from_numpy(update.right).T @ torch.from_numpy(update.left).T


@pytest.fixture
def moment() -> torch.Tensor:
    """Return E[k kᵀ] of text whose keys lie in 12 of the 24 dimensions, with unequal variances."""
    text = random(1000, COLUMNS, seed=1) * torch.cat((torch.linspace(3, 1, 12), torch.zeros(12)))
    return text.T @ text / len(text)


def test_rank_one_update_moves_the_key_of_the_question_by_exactly_the_residual(moment: torch.Tensor) -> None:
    keys, residual = random(3, COLUMNS), random(1, ROWS, seed=2)
    for given in (moment, None):
        update = rank_one_update(given, keys, residual)
        assert update.left.shape == (ROWS, 1)
        torch.testing.assert_close(applied(update, keys[:1]), residual, rtol=1e-3, atol=1e-4)


def test_statistics_of_the_text_keep_its_values_in_place(moment: torch.Tensor) -> None:
    keys, residual = random(1, COLUMNS), random(1, ROWS, seed=2)
    text = random(200, COLUMNS, seed=3) * torch.cat((torch.ones(12), torch.zeros(12)))
    with_moment, without = (applied(rank_one_update(each, keys, residual), text).norm() for each in (moment, None))
    assert with_moment < 0.02 * without


def test_memit_update_equals_the_published_formula(moment: torch.Tensor) -> None:
    keys, residuals = random(5, COLUMNS), random(5, ROWS, seed=2)
    metric = moment.double() + 1e-6 * moment.double().trace() / COLUMNS * torch.eye(COLUMNS)
    expected = residuals.double().T @ keys.double() @ torch.linalg.inv(7 * metric + keys.double().T @ keys.double())
    update = memit_update(moment, keys, residuals, weight=7)
    np.testing.assert_allclose(update.left @ update.right, expected.numpy(), rtol=1e-2, atol=1e-3)


def test_alpha_update_changes_nothing_in_the_space_of_the_text_and_keeps_earlier_edits(moment: torch.Tensor) -> None:
    projection = null_space(moment, 1e-3)
    assert round(projection.trace().item()) == 12
    keys, residuals, earlier = random(4, COLUMNS), random(4, ROWS, seed=2), random(3, COLUMNS, seed=4)
    update = alpha_update(projection, keys, residuals, earlier, damping=1e-6)
    text = random(50, COLUMNS, seed=3) * torch.cat((torch.ones(12), torch.zeros(12)))
    assert applied(update, text).abs().max() < 1e-4
    torch.testing.assert_close(applied(update, keys), residuals, rtol=1e-2, atol=1e-2)
    assert applied(update, earlier).abs().max() < 1e-2
