"""Least squares with whole inputs removed, against dense solvers."""

from __future__ import annotations

import pytest
import torch
from least_squares import brute_force, problem  # type: ignore[import-not-found]

from prune_export.prune.closed_form import mean_diagonal, regression, shared_update


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("tokens", "ridge"), [(60, 0.0), (60, 1e-3), (9, 1e-2)])
def test_kept_inputs_get_the_constrained_optimum(tokens: int, ridge: float) -> None:
    """Nine tokens for twelve inputs: without the ridge there would be many optima."""
    weights, inputs = problem(5, 12, tokens)
    moment = inputs @ inputs.T / tokens
    kept = torch.tensor([0, 3, 4, 7, 8, 11])
    found = shared_update(weights, moment, kept, ridge=ridge)
    removed = torch.ones(12, dtype=torch.bool)
    removed[kept] = False
    damping = ridge * float(moment.diagonal().mean())
    design = torch.cat([inputs / tokens**0.5, damping**0.5 * torch.eye(12, dtype=torch.float64)], 1)
    expected = torch.stack([brute_force(row, removed, design)[0] for row in weights])
    assert relative(found, expected[:, kept]) < 1e-8


def test_nothing_removed_and_nothing_kept() -> None:
    weights, inputs = problem(3, 4, 20)
    moment = inputs @ inputs.T
    assert torch.equal(shared_update(weights, moment, torch.tensor([2, 0, 1, 3]), ridge=0.1), weights[:, [2, 0, 1, 3]])
    assert shared_update(weights, moment, torch.tensor([], dtype=torch.long), ridge=0.1).shape == (3, 0)


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_regression_is_least_squares(ridge: float) -> None:
    targets, inputs = problem(40, 7, 40)[0].T[:5], problem(1, 7, 40, seed=3)[1]
    scale = mean_diagonal(inputs @ inputs.T)
    wide = torch.cat([inputs, (ridge * scale) ** 0.5 * torch.eye(7, dtype=torch.float64)], 1)
    padded = torch.cat([targets, torch.zeros(5, 7, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(wide.T, padded.T, driver="gelsd").solution.T
    found = regression(inputs @ inputs.T, targets @ inputs.T, ridge=ridge, scale=scale)
    assert relative(found, expected) < 1e-8


def test_singular_moments_give_the_least_norm_solution() -> None:
    """Twelve inputs that follow four, and one that is silent."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(12, 4, generator=generator).double() @ torch.randn(4, 50, generator=generator).double()
    inputs[3] = 0.0
    targets = torch.randn(6, 50, generator=generator).double()
    found = regression(inputs @ inputs.T, targets @ inputs.T, ridge=0.0, scale=1.0)
    expected = torch.linalg.lstsq(inputs.T, targets.T, driver="gelsd").solution.T
    assert relative(found, expected) < 1e-6


def test_silent_inputs_change_nothing() -> None:
    weights = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).double()
    kept = torch.tensor([1, 4])
    assert torch.equal(shared_update(weights, torch.zeros(6, 6), kept, ridge=1e-3), weights[:, kept])
    assert torch.equal(
        regression(torch.zeros(2, 2), torch.zeros(3, 2), ridge=1e-3, scale=0.0), torch.zeros(3, 2).double()
    )
