"""The closed loop's logic, free of models and devices: propose, measure, correct, repeat, confirm.

A plan is proposed for a budget in table units.  The table is right for the dense model, which was measured, so what a
trial corrects is the worth of what was removed: the line through the dense model and the trials gives the next budget.
Budgets that met and budgets that missed bracket it, so noise cannot send the loop round in circles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import median
from typing import Generic, Protocol, TypeVar

from prune_export.errors import InfeasibleError

Plan = TypeVar("Plan")
MARGIN = 0.015  # aim this much below the limit: half of the undershoot that is good enough to stop at
CLOSE_ENOUGH = 0.03
_SMALLEST_STEP = 0.01
CONFIRMATIONS = 3
# Trials within this share of the limit count alike, those farther away less: a line fits only so far.
_NEAR = 0.05
# The table's own worth of what was removed counts as one trial with this share of the dense cost removed.
_PRIOR = 0.03


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
        base: the dense model's figure, measured beside the trial.
        perplexity: held-out perplexity.
        error: relative standard error of what it is judged by.
    """

    proposal: Proposal[Plan]
    budget: float
    expected: float
    measured: float
    limit: float
    base: float
    perplexity: float
    error: float = 0.0

    @property
    def met(self) -> bool:
        """Measured within the limit."""
        return self.measured <= self.limit

    @property
    def undershoot(self) -> float:
        """Share of the limit left unused; negative when it was missed."""
        return 1.0 - self.measured / self.limit


class Closing(Protocol):
    """What a confirming measurement found of a plan."""

    @property
    def figure(self) -> float: ...

    @property
    def limit(self) -> float: ...


Confirmed = TypeVar("Confirmed", bound=Closing)


@dataclass(frozen=True)
class Dense:
    """The dense model: what it costs by the table, and the metric's figure as measured before the first trial."""

    predicted: float
    measured: float


@dataclass(frozen=True)
class Confirmation(Generic[Plan, Confirmed]):
    """How the loop ended.

    Attributes:
        trials: all of them; a plan that was not confirmed carries the median of its measurements.
        closing: the last confirming measurement, or None where no trial met the limit.
    """

    trials: tuple[Trial[Plan], ...]
    closing: Confirmed | None

    @property
    def confirmed(self) -> bool:
        """The last confirming measurement met the limit."""
        return self.closing is not None and self.closing.figure <= self.closing.limit


def correct_and_confirm(
    limit: float,
    *,
    dense: Dense,
    propose: Callable[[float], Proposal[Plan]],
    attempt: Callable[[Proposal[Plan], float, float], Trial[Plan]],
    confirm: Callable[[Trial[Plan]], Confirmed],
    rounds: int,
) -> Confirmation[Plan, Confirmed]:
    """Corrects until the best plan's closing measurement confirms the limit, for at most `CONFIRMATIONS` plans.

    A plan met the limit in its trial; if its closing measurement does not, one of the two was disturbed and another
    closing measurement decides.  If that misses as well, the plan's figure is the median of the three, and the
    correction goes on from there.

    Args:
        limit, dense, propose, attempt, rounds: as for `correct`.
        confirm: the closing measurement of a trial's plan.
    """
    trials: tuple[Trial[Plan], ...] = ()
    closing: Confirmed | None = None
    for _ in range(CONFIRMATIONS):
        trials = correct(limit, dense=dense, propose=propose, attempt=attempt, rounds=rounds, earlier=trials)
        chosen = best(trials)
        if chosen is None:
            return Confirmation(trials, None)
        shares = [chosen.measured / chosen.limit]
        for _ in range(2):
            closing = confirm(chosen)
            if closing.figure <= closing.limit:
                return Confirmation(trials, closing)
            shares.append(closing.figure / closing.limit)
        missed = replace(chosen, measured=chosen.limit * median(shares))
        trials = tuple(missed if trial is chosen else trial for trial in trials)
    return Confirmation(trials, closing)


def correct(
    limit: float,
    *,
    dense: Dense,
    propose: Callable[[float], Proposal[Plan]],
    attempt: Callable[[Proposal[Plan], float, float], Trial[Plan]],
    rounds: int,
    earlier: tuple[Trial[Plan], ...] = (),
) -> tuple[Trial[Plan], ...]:
    """Runs at most `rounds` trials and returns all of them in order, after those that ran earlier.

    Args:
        limit: the metric's limit as known before the first trial.
        dense: the dense model.
        propose: the best plan within a budget in table units; raises InfeasibleError.
        attempt: builds and measures a proposal; the other arguments are its budget and the expected figure.
        rounds: trials at most.
        earlier: trials of the same plans, to go on from.

    Raises:
        InfeasibleError: from the first proposal; later ones end the loop.
    """
    line = _Line(dense, limit, earlier)
    tried = {trial.proposal.key for trial in earlier}
    low, high = _bracket(earlier)
    budget = line.budget() if not earlier else _next_budget(line.budget(), low, high)
    first = _first(propose, line) if not earlier else None
    while budget is not None and len(line.trials) - len(earlier) < rounds:
        try:
            proposal = first or propose(budget)
        except InfeasibleError:
            break
        first = None
        if proposal.key in tried:
            # The search's steps are coarser than the bracket: a met plan is final, a missed one needs a smaller budget.
            if any(trial.proposal.key == proposal.key and trial.met for trial in line.trials):
                break
            high = min(high, budget)
            budget = min(budget * (1.0 - 2 * _SMALLEST_STEP), proposal.predicted * (1.0 - _SMALLEST_STEP))
            if budget <= low:
                break
            continue
        tried.add(proposal.key)
        trial = attempt(proposal, budget, line.expected(proposal.predicted))
        line = _Line(dense, limit, (*line.trials, trial))
        # Closer than the measurement itself can tell, the next plan would follow its noise.
        near = max(CLOSE_ENOUGH, 2 * trial.error)
        if trial.met and trial.undershoot <= near:
            break
        low, high = _bracket(line.trials)
        # Nor is there more to gain between a plan that met and one that missed.
        if low > 0.0 and line.worth(high - low) <= near:
            break
        budget = _next_budget(line.budget(), low, high)
    return line.trials


def best(trials: tuple[Trial[Plan], ...]) -> Trial[Plan] | None:
    """The trial with the least perplexity among those that met the limit, or None."""
    met = [trial for trial in trials if trial.met]
    return min(met, key=lambda trial: trial.perplexity) if met else None


class _Line(Generic[Plan]):
    """Figure as a share of the limit, over cost by the table: the line through the dense model that fits the trials.

    share(cost) = dense share - slope (dense cost - cost).  Weighted least squares for the slope: trials near the limit
    count more, and the proportional table is a trial of its own, so that noise on a small removal decides nothing.
    """

    def __init__(self, dense: Dense, limit: float, trials: tuple[Trial[Plan], ...]) -> None:
        self.trials = trials
        self._limit = trials[-1].limit if trials else limit
        self._dense = dense.predicted
        # The machine may have changed since the first measurement: the baselines beside the trials know better.
        self._share = median(trial.base / trial.limit for trial in trials) if trials else dense.measured / limit
        proportional = self._share / self._dense
        removed = _PRIOR * self._dense
        above = removed * proportional * removed / _NEAR**2
        below = removed**2 / _NEAR**2
        for trial in trials:
            weight = 1.0 / (_NEAR**2 + (1.0 - trial.measured / trial.limit) ** 2)
            removed = self._dense - trial.proposal.predicted
            above += weight * removed * (trial.base - trial.measured) / trial.limit
            below += weight * removed**2
        # Never flat: where trials say that removing buys nothing, budgets still shrink.
        self._slope = max(above / below, 0.1 * proportional)

    def expected(self, cost: float) -> float:
        """The figure of a plan of this cost."""
        return self._limit * (self._share - self._slope * (self._dense - cost))

    def worth(self, cost: float) -> float:
        """What a difference in cost makes of the figure, as a share of the limit."""
        return self._slope * cost

    def budget(self, margin: float | None = None) -> float:
        """The cost whose figure lies within the limit by the margin; it grows with the misses in a row."""
        if margin is None:
            margin = MARGIN * max(1, _misses(self.trials))
        return self._dense - (self._share - (1.0 - margin)) / self._slope


def _misses(trials: tuple[Trial[Plan], ...]) -> int:
    """Trials in a row, up to the last one, that missed their limit."""
    return len(list(takewhile(lambda trial: not trial.met, reversed(trials))))


def _bracket(trials: tuple[Trial[Plan], ...]) -> tuple[float, float]:
    """The largest budget known to meet and the smallest known to miss."""
    low = max((trial.budget for trial in trials if trial.met), default=0.0)
    return low, min((trial.budget for trial in trials if not trial.met), default=float("inf"))


def _first(propose: Callable[[float], Proposal[Plan]], line: _Line[Plan]) -> Proposal[Plan]:
    """The plan for the wanted budget, or where nothing is that small, for the whole limit."""
    try:
        return propose(line.budget())
    except InfeasibleError:
        return propose(line.budget(margin=0.0))


def _next_budget(wanted: float, low: float, high: float) -> float | None:
    """The budget wanted, kept inside the bracket; None where the bracket leaves no room."""
    budget = min(wanted, high * (1.0 - _SMALLEST_STEP))
    if low > 0.0:
        if high / low < 1.0 + 2 * _SMALLEST_STEP:
            return None
        budget = max(budget, low * (1.0 + _SMALLEST_STEP / 2))
    return budget if budget > 0.0 else None
