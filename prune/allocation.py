"""Which size each sub-block gets within a budget: the one of least harm, interactions included.

The harm of a plan is modelled as the quadratic form that its parts' effects on the logits give: with u_b the (sketched)
effect of block b's option, |u_b|^2 its own divergence from the dense model,
    harm = |sum_b u_b|^2 = sum_b |u_b|^2 + sum_{a != b} u_a . u_b.
The separable part is solved exactly (a multiple-choice knapsack, by HiGHS through scipy), with costs as they are; the
interactions are then taken in by exchanging options until no change of one or two blocks is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from prune_export.prune.native_output import dropped

_LINEAR_ROUNDS = 6
_EXCHANGES = 500
_TIGHTER = 8
_TOLERANCE = 1e-6  # of HiGHS, on whole numbers too


@dataclass(frozen=True)
class Problem:
    """Options of all blocks in one row, M in all.

    Attributes:
        owner: [M] block of each option, ascending; every block's options follow each other.
        cost: [M] what each adds to the cost.
        gram: [M, M] inner products of the options' effects; the diagonal is the harm of each alone.
        vital: [M] the option keeps a sub-block without which no model is left (an attention or a mixer); one must stay.
    """

    owner: NDArray[np.int64]
    cost: NDArray[np.float64]
    gram: NDArray[np.float64]
    vital: NDArray[np.bool_]

    def harm(self, chosen: NDArray[np.int64]) -> float:
        """Predicted divergence of a choice [blocks] of options."""
        return float(self.gram[np.ix_(chosen, chosen)].sum())


class Allocator(Protocol):
    """Allocates budgets; this module is one, `uniform.UniformAllocation` another."""

    def allocate(self, problem: Problem, budget: float) -> list[NDArray[np.int64]] | None:
        """Choices whose cost is at most `budget`, best first; None when there is none."""
        ...

    def exchanges(
        self, problem: Problem, chosen: NDArray[np.int64], budget: float, *, most: int
    ) -> list[NDArray[np.int64]]:
        """Choices near `chosen` that may be better than it."""
        ...

    def cheapest(self, problem: Problem) -> NDArray[np.int64]:
        """The choice of least cost that leaves a model."""
        ...


def allocate(problem: Problem, budget: float) -> list[NDArray[np.int64]] | None:
    """Choices of one option a block whose cost is at most `budget`, best first; None when there is none.

    The first one takes interactions into account; the second, if it differs, is the optimum of the separable part.
    """
    alone = problem.gram.diagonal()
    separable = _knapsack(problem, alone, budget)
    if separable is None:
        return None
    best, chosen = separable, separable
    for _ in range(_LINEAR_ROUNDS):
        following = _knapsack(problem, alone + 2.0 * _field(problem, chosen), budget)
        if following is None or np.array_equal(following, chosen):
            break
        chosen = following
        if problem.harm(chosen) < problem.harm(best):
            best = chosen
    found = [_exchange(problem, best, budget)]
    second = _exchange(problem, separable, budget)
    if problem.harm(second) < problem.harm(found[0]):
        found = [second]
    return found if np.array_equal(found[0], separable) else [*found, separable]


def cheapest(problem: Problem) -> NDArray[np.int64]:
    """The choice of least cost that leaves a model; ties go to less harm."""
    penalty = problem.gram.diagonal() / max(1e-300, float(problem.gram.diagonal().sum()))
    scale = float(np.ptp(problem.cost)) or 1.0
    chosen = _knapsack(problem, problem.cost / scale + 1e-9 * penalty, np.inf)
    assert chosen is not None, "no option keeps an attention"
    return chosen


def _knapsack(problem: Problem, value: NDArray[np.float64], budget: float) -> NDArray[np.int64] | None:
    """One option a block of least total value within the budget."""
    less = 0.0
    for _ in range(_TIGHTER):
        chosen = _solved(problem, value, budget - less)
        if chosen is None or float(problem.cost[chosen].sum()) <= budget:
            return chosen
        less = 2.0 * less or _TOLERANCE * float(np.abs(problem.cost).max())
    return None


def _solved(problem: Problem, value: NDArray[np.float64], budget: float) -> NDArray[np.int64] | None:
    """The same, the budget within the tolerance of the solver."""
    count = len(value)
    blocks = int(problem.owner[-1]) + 1
    one_each = np.zeros((blocks, count))
    one_each[problem.owner, np.arange(count)] = 1.0
    constraints = [
        LinearConstraint(one_each, 1.0, 1.0),
        LinearConstraint(problem.vital[None].astype(float), 1.0, np.inf),
    ]
    if np.isfinite(budget):
        scale = float(np.abs(problem.cost).max()) or 1.0
        constraints.append(LinearConstraint(problem.cost[None] / scale, -np.inf, budget / scale))
    with dropped():
        solved = milp(
            value / max(1e-300, float(np.abs(value).max())),
            constraints=constraints,
            integrality=np.ones(count),
            bounds=Bounds(0.0, 1.0),
            options={"mip_rel_gap": 1e-6, "time_limit": 20.0},
        )
    if solved.x is None:
        return None
    chosen: NDArray[np.int64] = np.flatnonzero(solved.x > 0.5)
    return chosen


def _field(problem: Problem, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """[M] inner product of each option with the chosen ones of the other blocks."""
    field: NDArray[np.float64] = (
        problem.gram[:, chosen].sum(1) - problem.gram[np.arange(len(problem.owner)), chosen[problem.owner]]
    )
    return field


def exchanges(problem: Problem, chosen: NDArray[np.int64], budget: float, *, most: int) -> list[NDArray[np.int64]]:
    """The choices of least predicted harm that differ from `chosen` in one or two blocks, at most `most`."""
    change = _changes(problem, chosen, budget)
    found: list[NDArray[np.int64]] = []
    for flat in np.argsort(change, axis=None, kind="stable"):
        first, second = divmod(int(flat), len(problem.owner))
        if len(found) >= most or not np.isfinite(change[first, second]):
            break
        other = _changed(problem, chosen, first, second)
        if not any(np.array_equal(other, known) for known in (chosen, *found)):
            found.append(other)
    return found


def _exchange(problem: Problem, start: NDArray[np.int64], budget: float) -> NDArray[np.int64]:
    """Changes one or two blocks at a time as long as that lowers the harm within the budget."""
    chosen = start
    for _ in range(_EXCHANGES):
        change = _changes(problem, chosen, budget)
        first, second = divmod(int(change.argmin()), len(problem.owner))
        if not change[first, second] < -1e-9 * max(1e-12, problem.harm(chosen)):
            break
        chosen = _changed(problem, chosen, first, second)
    return chosen


def _changed(problem: Problem, chosen: NDArray[np.int64], first: int, second: int) -> NDArray[np.int64]:
    result = chosen.copy()
    result[problem.owner[first]] = first
    result[problem.owner[second]] = second
    return result


def _changes(problem: Problem, chosen: NDArray[np.int64], budget: float) -> NDArray[np.float64]:
    """[M, M] change of the harm when two blocks take these options (one, on the diagonal); infinite if not allowed."""
    gram, owner, cost = problem.gram, problem.owner, problem.cost
    same = np.arange(len(owner))
    mine = chosen[owner]
    field = _field(problem, chosen)
    single = gram.diagonal() - gram.diagonal()[mine] + 2.0 * (field - field[mine])
    pair: NDArray[np.float64] = single[:, None] + single[None]
    pair += 2.0 * (gram - gram[:, mine] - gram[mine] + gram[np.ix_(mine, mine)])
    spent, extra = float(cost[chosen].sum()), cost - cost[mine]
    lost = problem.vital[mine].astype(int) - problem.vital
    left = int(problem.vital[chosen].sum())
    forbidden = owner[:, None] == owner[None]
    forbidden |= spent + extra[:, None] + extra[None] > budget
    forbidden |= left - lost[:, None] - lost[None] < 1
    pair[forbidden] = np.inf
    pair[same, same] = np.where((spent + extra <= budget) & (left - lost >= 1), single, np.inf)
    return pair
