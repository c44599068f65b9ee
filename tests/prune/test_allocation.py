"""Allocation of a budget, against every choice there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from prune_export.prune.allocation import Problem, allocate, cheapest, exchanges


def random_problem(seed: int, *, interactions: bool, blocks: int = 4, options: int = 4) -> Problem:
    """Blocks of alternately vital and other parts; the last option of each is whole and free of harm."""
    random = np.random.default_rng(seed)
    effects = random.normal(size=(blocks, options, 9)) * np.linspace(1.0, 0.0, options)[None, :, None]
    effects += 0.5 * effects[:, :, :1]  # effects of a text's own direction, which add up or cancel
    rows = effects.reshape(-1, 9)
    gram = rows @ rows.T
    if not interactions:
        gram = np.diag(gram.diagonal())
    costs = np.sort(random.integers(0, 50, size=(blocks, options)).astype(float), axis=1)
    vital = [(block % 2 == 0) and option > 0 for block in range(blocks) for option in range(options)]
    return Problem(np.repeat(np.arange(blocks), options), costs.reshape(-1), gram, np.asarray(vital))


def all_choices(problem: Problem, budget: float) -> list[NDArray[np.int64]]:
    """Every choice within the budget that leaves a vital option."""
    blocks = [np.flatnonzero(problem.owner == block) for block in range(problem.owner[-1] + 1)]
    choices = [np.asarray(choice) for choice in itertools.product(*blocks)]
    return [item for item in choices if problem.cost[item].sum() <= budget and problem.vital[item].any()]


def budgets(problem: Problem) -> list[float]:
    low, high = problem.cost[cheapest(problem)].sum(), problem.cost.reshape(-1, 4)[:, -1].sum()
    return [float(low), float(low + 0.3 * (high - low)), float(low + 0.6 * (high - low)), float(high)]


@pytest.mark.parametrize("seed", range(4))
def test_without_interactions_it_is_the_optimum(seed: int) -> None:
    problem = random_problem(seed, interactions=False)
    for budget in budgets(problem):
        found = allocate(problem, budget)
        assert found is not None
        best = min(problem.harm(item) for item in all_choices(problem, budget))
        assert problem.harm(found[0]) == pytest.approx(best, abs=1e-9)
        assert problem.cost[found[0]].sum() <= budget


@pytest.mark.parametrize("seed", range(6))
def test_interactions_are_never_for_the_worse(seed: int) -> None:
    problem = random_problem(seed, interactions=True)
    separable = Problem(problem.owner, problem.cost, np.diag(problem.gram.diagonal()), problem.vital)
    gaps = []
    for budget in budgets(problem):
        found, plain = allocate(problem, budget), allocate(separable, budget)
        assert found is not None
        assert plain is not None
        harms = sorted(problem.harm(item) for item in all_choices(problem, budget))
        assert problem.harm(found[0]) <= problem.harm(plain[0]) + 1e-9
        assert all(problem.cost[item].sum() <= budget and problem.vital[item].any() for item in found)
        gaps.append(harms.index(min(harms, key=lambda harm: abs(harm - problem.harm(found[0])))) / len(harms))
    assert max(gaps) < 0.05  # among the best twentieth of all choices


def test_nothing_is_cheaper_than_the_cheapest() -> None:
    for seed in range(4):
        problem = random_problem(seed, interactions=True)
        lowest = min(problem.cost[item].sum() for item in all_choices(problem, np.inf))
        assert problem.cost[cheapest(problem)].sum() == lowest
        assert problem.vital[cheapest(problem)].any()
        assert allocate(problem, lowest - 1.0) is None


def test_large_costs_stay_within_the_budget() -> None:
    """The solver's tolerance is relative: with costs of billions it is thousands."""
    for seed in range(6):
        small = random_problem(seed, interactions=True, blocks=6)
        random = np.random.default_rng(seed)
        costs = small.cost * 1e9 + random.integers(0, 1000, len(small.cost))
        problem = Problem(small.owner, costs, small.gram, small.vital)
        for share in (0.3, 0.5, 0.7):
            choice = random.integers(2, 4, 6) + 4 * np.arange(6)
            budget = float(costs[choice].sum()) - share  # one choice is over the budget by a hair
            found = allocate(problem, budget)
            assert found is not None
            assert all(costs[item].sum() <= budget for item in found)


def test_exchanges_are_the_best_neighbours() -> None:
    problem = random_problem(1, interactions=True)
    budget = budgets(problem)[2]
    chosen = allocate(problem, budget)[0]  # type: ignore[index]
    near = [
        item for item in all_choices(problem, budget)
        if 1 <= (item != chosen).sum() <= 2
    ]  # fmt: skip
    expected = sorted(problem.harm(item) for item in near)[:3]
    found = exchanges(problem, chosen, budget, most=3)
    assert [problem.harm(item) for item in found] == pytest.approx(expected)
