"""Decides what is delivered: a dense precision that meets the target, or a pruned model that the loop corrected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from prune_export.delivery import correction
from prune_export.delivery.bench import ROUNDS, figure, measured
from prune_export.delivery.correction import Proposal, Trial
from prune_export.delivery.cost import Cost
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.single import single
from prune_export.delivery.state import KnownTrial
from prune_export.delivery.variants import Build
from prune_export.delivery.workshop import Outcome, Workshop, show
from prune_export.errors import InfeasibleError
from prune_export.manifest import Round
from prune_export.plan import PrunePlan
from prune_export.target import Target

# A plan confirmed too slow by the closing measurement is replaced by one that aims lower by its miss and this much.
_STRICTER = 0.01
_CONFIRMATIONS = 3
# No single measurement, however disturbed, may cost more than this in one step.
_LARGEST_STEP = 0.9


def decide(job: Job, dense: Build) -> Outcome:
    """Dense in the best precision that meets the target, else pruned.

    Args:
        job: the delivery at work.
        dense: the dense model in every allowed precision, measured where the host is the device.

    Raises:
        InfeasibleError: nothing reaches the target.
    """
    target = job.request.target
    if target.speedup is None and target.metric != "parameters" and job.plan is None:
        chosen = _dense_outcome(job, dense)
        if chosen is not None:
            return chosen
    workshop = Workshop(job, dense, fastest(job, dense))
    alone = job.plan is not None or target.metric == "parameters" or not job.measured
    outcome = single(workshop) if alone else _closed_loop(workshop)
    return replace(outcome, finish=workshop.state.forget)


def fastest(job: Job, dense: Build) -> str:
    """The dense precision with the best figure of the target's metric: what needs the least pruning."""
    speeds = {precision: _dense_figure(job, variant) for precision, variant in dense.variants.items()}
    return min(speeds, key=lambda precision: speeds[precision])


def _dense_outcome(job: Job, dense: Build) -> Outcome | None:
    limit = job.request.target.limit
    assert limit is not None
    figures = {precision: _dense_figure(job, variant) for precision, variant in dense.variants.items()}
    for precision, variant in dense.variants.items():
        if figures[precision] <= limit:
            predictions = {("dense", key): value for key, value in figures.items()} if not job.measured else None
            variants, parity = tuple(dense.variants.values()), dense.parity[precision]
            return Outcome(variants, variant, None, parity, limit, figures[precision], (), predictions)
    return None


def _dense_figure(job: Job, variant: Variant) -> float:
    return figure(job, variant) if variant.measurement is not None else Cost(job, variant, None).predict(variant.shape)


def _closed_loop(workshop: Workshop) -> Outcome:
    """Searches, builds, measures and corrects until a plan meets the target, and confirms it.

    Raises:
        InfeasibleError: nothing reaches the target.
    """
    state, target, progress = workshop.state, workshop.target, workshop.job.progress
    if state.known.base is None:
        state.learn(base=figure(workshop.job, workshop.baseline))
    base = state.known.base
    assert base is not None
    limit = base / target.speedup if target.speedup is not None else target.limit
    assert limit is not None
    aim, rounds = limit, []  # type: float, list[Round]
    for _ in range(_CONFIRMATIONS):
        chosen = _trials(workshop, aim, limit, base, rounds)
        outcome = workshop.closing(chosen.proposal, tuple(rounds))
        if outcome.figure > outcome.limit:
            # It met in its round: one of the two was disturbed, and a third measurement decides.
            progress.note(f"note: the closing measurement found {_against(target, outcome)}: measuring once more")
            outcome = workshop.closing(chosen.proposal, tuple(rounds))
        if outcome.figure <= outcome.limit:
            return outcome
        progress.note(f"note: the closing measurement found {_against(target, outcome)}: aiming lower")
        aim *= max(_LARGEST_STEP, outcome.limit / outcome.figure) * (1.0 - _STRICTER)
    raise InfeasibleError(
        f"{target}: the closing measurement missed the limit for {_CONFIRMATIONS} plans ({_against(target, outcome)}): "
        "this machine is too noisy or busy now"
    )


def _against(target: Target, outcome: Outcome) -> str:
    return f"{show(target, outcome.figure)} > {show(target, outcome.limit)}"


def _trials(workshop: Workshop, aim: float, limit: float, base: float, rounds: list[Round]) -> Trial[PrunePlan]:
    """The best trial that met `aim`; every trial is added to `rounds`."""
    try:
        trials = correction.correct(
            aim,
            scale=base / workshop.cost.predict(workshop.job.shape),
            propose=workshop.propose,
            attempt=_attempt(workshop, aim / limit, rounds),
            rounds=workshop.job.request.rounds,
        )
    except InfeasibleError:
        raise workshop.infeasible(limit) from None
    chosen = correction.best(trials)
    if chosen is None:
        raise workshop.infeasible(limit)
    return chosen


def _attempt(
    workshop: Workshop, share: float, rounds: list[Round]
) -> Callable[[Proposal[PrunePlan], float, float], Trial[PrunePlan]]:
    """Builds and measures a proposal beside the dense model, against `share` of the limit in force."""
    done: list[Trial[PrunePlan]] = []

    def run(proposal: Proposal[PrunePlan], budget: float, expected: float) -> Trial[PrunePlan]:
        known = workshop.state.known.trials.get(proposal.key)
        if known is None:
            known = _measured_trial(workshop, proposal, len(rounds) + 1)
            workshop.state.learn(trial=(proposal.key, known))
        trial = Trial(proposal, budget, expected, known.measured, known.limit * share, known.perplexity)
        done.append(trial)
        leading = correction.best(tuple(done))
        workshop.keep_only(leading.proposal.key if leading else None)
        rounds.append(Round(workshop.precision, budget, expected, trial.measured, trial.perplexity, trial.met))
        workshop.job.progress.note(_line(workshop, trial, len(rounds)))
        return trial

    return run


def _measured_trial(workshop: Workshop, proposal: Proposal[PrunePlan], number: int) -> KnownTrial:
    variant = workshop.built(proposal).variants[workshop.precision]
    base, candidate = measured(
        workshop.job,
        [workshop.baseline, variant],
        title=f"round {number}: measuring against dense {workshop.precision}",
        rounds=ROUNDS,
        sample_memory=workshop.target.metric == "memory",
    )
    return KnownTrial(figure(workshop.job, candidate), workshop.limit(base), variant.perplexity)


def _line(workshop: Workshop, trial: Trial[PrunePlan], number: int) -> str:
    target = workshop.target
    return (
        f"round {number}: predicted {show(target, trial.expected)}, measured {show(target, trial.measured)}, "
        f"limit {show(target, trial.limit)}, perplexity {trial.perplexity:.2f}: {'met' if trial.met else 'missed'}"
    )
