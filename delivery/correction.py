"""The closed loop's logic, free of models and devices: propose, measure, correct, repeat.

A plan is proposed for a budget in table units; what it measures corrects the next budget by measured / predicted.
Budgets that met and budgets that missed bracket the next one, so noise cannot send the loop round in circles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from prune_export.errors import InfeasibleError

Plan = TypeVar("Plan")
MARGIN = 0.015  # aim this much below the limit: half of the undershoot that is good enough to stop at
CLOSE_ENOUGH = 0.03
_SMALLEST_STEP = 0.01


@dataclass(frozen=True)
class Proposal(Generic[Plan]):
    """A plan and what the table says of it, in the target metric's unit."""

    plan: Plan
    key: str
    predicted: float


@dataclass(frozen=True)
class Trial(Generic[Plan]):
    """A proposal that was built and measured.

    Attributes:
        proposal: what was tried.
        budget: what the search was allowed, in table units.
        expected: what the corrected table said: the proposal's prediction times the scale known before the trial.
        measured: the metric's figure.
        limit: the limit in force (a speed-up's limit follows the baseline measured beside the trial).
        perplexity: held-out perplexity.
    """

    proposal: Proposal[Plan]
    budget: float
    expected: float
    measured: float
    limit: float
    perplexity: float

    @property
    def met(self) -> bool:
        """Measured within the limit."""
        return self.measured <= self.limit

    @property
    def undershoot(self) -> float:
        """Share of the limit left unused; negative when it was missed."""
        return 1.0 - self.measured / self.limit


def correct(
    limit: float,
    *,
    scale: float,
    propose: Callable[[float], Proposal[Plan]],
    attempt: Callable[[Proposal[Plan], float, float], Trial[Plan]],
    rounds: int,
) -> tuple[Trial[Plan], ...]:
    """Runs at most `rounds` trials and returns all of them in order.

    Args:
        limit: the metric's limit as known before the first trial.
        scale: measured / predicted of the dense model: what a table unit is worth.
        propose: the best plan within a budget in table units; raises InfeasibleError.
        attempt: builds and measures a proposal; the other arguments are its budget and the expected figure.
        rounds: trials at most.

    Raises:
        InfeasibleError: from the first proposal; later ones end the loop.
    """
    trials: list[Trial[Plan]] = []
    tried: set[str] = set()
    low, high = 0.0, float("inf")  # budgets known to meet, known to miss
    budget = limit * (1.0 - MARGIN) / scale
    proposal = _first(propose, budget, limit / scale)
    while len(trials) < rounds:
        if trials or tried:
            try:
                proposal = propose(budget)
            except InfeasibleError:
                break
        if proposal.key in tried:
            # The search's steps are coarser than the bracket: a met plan is final, a missed one needs a smaller budget.
            if any(trial.proposal.key == proposal.key and trial.met for trial in trials):
                break
            high = min(high, budget)
            budget = min(budget * (1.0 - 2 * _SMALLEST_STEP), proposal.predicted * (1.0 - _SMALLEST_STEP))
            if budget <= low:
                break
            continue
        tried.add(proposal.key)
        trial = attempt(proposal, budget, proposal.predicted * scale)
        trials.append(trial)
        scale = trial.measured / proposal.predicted
        if trial.met:
            low = max(low, budget)
            if trial.undershoot <= CLOSE_ENOUGH:
                break
        else:
            high = min(high, budget)
        following = _next_budget(trial.limit, scale, low, high)
        if following is None:
            break
        budget = following
    return tuple(trials)


def _first(propose: Callable[[float], Proposal[Plan]], wanted: float, most: float) -> Proposal[Plan]:
    """The plan for the wanted budget, or where nothing is that small, for the whole limit."""
    try:
        return propose(wanted)
    except InfeasibleError:
        return propose(most)


def best(trials: tuple[Trial[Plan], ...]) -> Trial[Plan] | None:
    """The trial with the least perplexity among those that met the limit, or None."""
    met = [trial for trial in trials if trial.met]
    return min(met, key=lambda trial: trial.perplexity) if met else None


def _next_budget(limit: float, scale: float, low: float, high: float) -> float | None:
    wanted = limit * (1.0 - MARGIN) / scale
    ceiling = high * (1.0 - _SMALLEST_STEP) if high < float("inf") else wanted
    budget = min(wanted, ceiling)
    if low > 0.0:
        if high < float("inf") and high / low < 1.0 + 2 * _SMALLEST_STEP:
            return None
        budget = max(budget, low * (1.0 + _SMALLEST_STEP / 2))
    return budget
