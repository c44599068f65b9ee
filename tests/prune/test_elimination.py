"""The order of structured OBS and its losses, against joint solutions from scratch at every step."""

from __future__ import annotations

import itertools

import pytest
import torch
from least_squares import problem  # type: ignore[import-not-found]

from prune_export.prune.closed_form import shared_update
from prune_export.prune.elimination import eliminate

RIDGE = 1e-3


def joint_loss(weights: torch.Tensor, moment: torch.Tensor, kept: torch.Tensor) -> float:
    """Damped squared error of the best weights on `kept` alone, by a dense solver."""
    damped = moment + RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    factor = torch.linalg.cholesky(damped)  # |d L|^2 = d C d^T
    target = weights @ factor
    best = torch.zeros_like(weights)
    if len(kept):
        best[:, kept] = torch.linalg.lstsq(factor[kept].T, target.T, driver="gelsd").solution.T
    return float(((best - weights) @ factor).square().sum())


def naive(weights: torch.Tensor, moment: torch.Tensor, columns: torch.Tensor) -> tuple[list[int], list[float]]:
    """Order, last one out first, and losses by kept units: every candidate solved anew."""
    left, order, losses = list(range(len(columns))), [], [0.0]
    while left:
        found = {
            unit: joint_loss(weights, moment, columns[[other for other in left if other != unit]].reshape(-1))
            for unit in left
        }
        unit = min(found, key=lambda unit: found[unit])
        left.remove(unit)
        order.append(unit)
        losses.append(found[unit])
    return order[::-1], losses[::-1]


@pytest.mark.parametrize(("units", "size", "tokens"), [(12, 1, 80), (5, 3, 80), (10, 1, 6)])
def test_equals_the_naive_greedy(units: int, size: int, tokens: int) -> None:
    width = units * size
    weights, inputs = problem(4, width, tokens, seed=units)
    moment = inputs @ inputs.T / tokens
    columns = torch.randperm(width, generator=torch.Generator().manual_seed(1)).view(units, size)
    found = eliminate(weights, moment, columns, ridge=RIDGE)
    order, losses = naive(weights, moment, columns)
    assert list(found.order) == order
    assert torch.allclose(torch.tensor(found.losses), torch.tensor(losses), rtol=1e-6)


def test_losses_rise_and_are_what_the_update_leaves() -> None:
    """Many units in steps of several, with dead ones dropped on the way."""
    width, tokens = 300, 900
    weights, inputs = problem(6, width, tokens)
    moment = inputs @ inputs.T / tokens
    found = eliminate(weights, moment, torch.arange(width).view(-1, 2), ridge=RIDGE, steps=30)
    assert sorted(found.order) == list(range(150))
    assert found.losses[-1] == 0.0
    assert all(low >= high for low, high in itertools.pairwise(found.losses))
    damped = moment + RIDGE * moment.diagonal().mean() * torch.eye(width, dtype=torch.float64)
    for size in (0, 50, 100, 145):  # ends of steps of five units
        kept = (torch.tensor(found.order[:size], dtype=torch.long)[:, None] * 2 + torch.arange(2)).reshape(-1)
        cut = torch.zeros_like(weights)
        cut[:, kept] = shared_update(weights, moment, kept, ridge=RIDGE)
        difference = cut - weights
        assert found.losses[size] == pytest.approx(float(((difference @ damped) * difference).sum()), rel=1e-6)


def test_units_that_are_made_up_for_exactly_go_first() -> None:
    weights, inputs = problem(4, 8, 50)
    inputs[5] = 2.0 * inputs[2]  # either can go
    inputs[6] = 0.0
    found = eliminate(weights, inputs @ inputs.T / 50, torch.arange(8)[:, None], ridge=1e-9)
    assert set(found.order[-2:]) in ({2, 6}, {5, 6})
    assert found.losses[6] < 1e-6 * found.losses[0]


def test_silent_inputs_give_an_order() -> None:
    found = eliminate(torch.ones(2, 4), torch.zeros(4, 4), torch.arange(4)[:, None], ridge=RIDGE)
    assert sorted(found.order) == [0, 1, 2, 3]
    assert all(loss == loss for loss in found.losses)
