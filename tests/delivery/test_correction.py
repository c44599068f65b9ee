"""The loop against a simulated device: true latency is a hidden function of a plan's size, measured with noise."""

import numpy as np
import pytest

from prune_export.delivery.correction import CLOSE_ENOUGH, Proposal, Trial, best, correct
from prune_export.errors import InfeasibleError

STEP = 0.01  # sizes are whole multiples of it, in table units


class Device:
    def __init__(self, *, bias: float, fixed: float, noise: float = 0.0, smallest: float = 0.2, step: float = STEP):
        self.bias, self.fixed, self.noise, self.smallest, self.step = bias, fixed, noise, smallest, step
        self.random = np.random.default_rng(0)
        self.budgets: list[float] = []

    def propose(self, budget: float) -> Proposal[float]:
        self.budgets.append(budget)
        size = np.floor(budget / self.step + 1e-9) * self.step
        if size < self.smallest:
            raise InfeasibleError(f"smallest is {self.smallest}")
        return Proposal(plan=float(size), key=f"{size:.6f}", predicted=float(size))

    def attempt(self, limit: float):
        def run(proposal: Proposal[float], budget: float, expected: float) -> Trial[float]:
            true = self.fixed + self.bias * proposal.plan
            measured = true * (1 + self.noise * self.random.standard_normal())
            return Trial(proposal, budget, expected, float(measured), limit, perplexity=10.0 / proposal.plan)

        return run


@pytest.mark.parametrize("bias", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("fixed", [0.0, 0.2])
@pytest.mark.parametrize("limit", [0.5, 0.8])
def test_a_biased_table_is_corrected_to_a_close_fit(bias: float, fixed: float, limit: float) -> None:
    device = Device(bias=bias, fixed=fixed)
    trials = correct(limit, scale=fixed + bias, propose=device.propose, attempt=device.attempt(limit), rounds=6)
    chosen = best(trials)
    assert chosen is not None
    assert 0.0 <= chosen.undershoot <= CLOSE_ENOUGH + STEP * bias / limit
    assert len(trials) <= 6


def test_the_least_perplexity_among_those_that_met_is_best() -> None:
    proposal = Proposal(1.0, "a", 1.0)
    trials = (
        Trial(proposal, 1.0, 1.0, 0.9, 1.0, perplexity=12.0),
        Trial(proposal, 1.0, 1.0, 0.8, 1.0, perplexity=11.0),
        Trial(proposal, 1.0, 1.0, 1.1, 1.0, perplexity=10.0),
    )
    assert best(trials) is trials[1]
    assert best(trials[2:]) is None


def test_an_infeasible_target_is_refused_at_once_but_ends_later_rounds_quietly() -> None:
    device = Device(bias=1.0, fixed=0.0, smallest=0.5)
    with pytest.raises(InfeasibleError, match=r"smallest is 0.5"):
        correct(0.3, scale=1.0, propose=device.propose, attempt=device.attempt(0.3), rounds=4)
    slow = Device(bias=1.0, fixed=0.3, smallest=0.5)
    trials = correct(0.6, scale=1.0, propose=slow.propose, attempt=slow.attempt(0.6), rounds=6)
    assert trials
    assert best(trials) is None


def test_coarse_steps_end_without_building_a_plan_twice() -> None:
    device = Device(bias=1.2, fixed=0.0, step=0.25, smallest=0.25)
    trials = correct(0.7, scale=1.0, propose=device.propose, attempt=device.attempt(0.7), rounds=6)
    keys = [trial.proposal.key for trial in trials]
    assert len(keys) == len(set(keys))
    chosen = best(trials)
    assert chosen is not None
    assert chosen.proposal.plan == 0.5


def test_noise_does_not_send_the_loop_outside_its_bracket() -> None:
    for seed in range(20):
        device = Device(bias=1.1, fixed=0.05, noise=0.02)
        device.random = np.random.default_rng(seed)
        trials = correct(0.6, scale=1.0, propose=device.propose, attempt=device.attempt(0.6), rounds=6)
        assert best(trials) is not None
        high = float("inf")
        for trial in trials:
            assert trial.budget < high
            high = high if trial.met else min(high, trial.budget)
