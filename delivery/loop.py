"""Decides what is delivered: a dense precision that meets the target, or a pruned model that the loop corrected."""

from __future__ import annotations

from dataclasses import replace

from prune_export.delivery import correction
from prune_export.delivery.bench import ROUNDS, figure, measured, standard_error, verdict
from prune_export.delivery.correction import CONFIRMATIONS, Dense, Proposal, Trial, correct_and_confirm
from prune_export.delivery.cost import Cost
from prune_export.delivery.pace import at_pace, further_at_pace, steady
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.several import as_far_off, first_missed, further, missed, most_excess
from prune_export.delivery.single import single
from prune_export.delivery.state import KnownTrial
from prune_export.delivery.variants import Build
from prune_export.delivery.workshop import Outcome, Workshop, show
from prune_export.errors import InfeasibleError
from prune_export.manifest import Round
from prune_export.plan import PrunePlan
from prune_export.target import Target


def decide(job: Job, dense: Build) -> Outcome:
    """Dense in the best precision that meets the target, else pruned; with the sparsity asked for in either.

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
            return chosen if job.request.sparsity is None else _sparse_outcome(job, dense, chosen)
    workshop = Workshop(job, dense, fastest(job, dense))
    alone = job.plan is not None or target.metric == "parameters" or not job.measured
    outcome = single(workshop) if alone else _closed_loop(workshop)
    return replace(outcome, front=workshop.front, finish=workshop.state.forget)


def fastest(job: Job, dense: Build) -> str:
    """The dense precision with the best figure of the target's metric: what needs the least pruning."""
    if not job.request.further:
        speeds = {precision: _dense_figure(job, variant) for precision, variant in dense.variants.items()}
    else:
        speeds = {precision: most_excess(job, variant) for precision, variant in dense.variants.items()}
    return min(speeds, key=lambda precision: speeds[precision])


def _dense_outcome(job: Job, dense: Build) -> Outcome | None:
    limit = job.request.target.limit
    assert limit is not None
    figures = {precision: _dense_figure(job, variant) for precision, variant in dense.variants.items()}
    for precision, variant in dense.variants.items():
        others = further(job, variant, variant)
        if figures[precision] <= limit and not missed(others):
            predictions = {("dense", key): value for key, value in figures.items()} if not job.measured else None
            variants, parity = tuple(dense.variants.values()), dense.parity[precision]
            return Outcome(
                variants,
                variant,
                None,
                parity,
                limit,
                figures[precision],
                further=others,
                predictions=predictions,
            )
    return None


def _sparse_outcome(job: Job, dense: Build, chosen: Outcome) -> Outcome:
    """The dense precision that would be delivered, with the zeros asked for.

    Raises:
        InfeasibleError: with them it misses the target, twice.
    """
    precision = chosen.delivered.precision
    workshop = Workshop(job, dense, precision)
    made = workshop.sparse()
    found, base, sparse = chosen.figure, chosen.delivered, made.variants[precision]
    others = chosen.further
    for again in ("", " once more") if job.measured else ():  # a prediction counts structures, not zeros
        base, sparse = measured(
            job,
            [base, sparse],
            title=f"sparse: measuring against dense{again}",
            sample_memory=True,
            judged=True,
        )
        found, others = figure(job, sparse), further(job, base, sparse)
        if found <= chosen.limit and not missed(others):
            break
    if found > chosen.limit or missed(others):
        worst = first_missed(job, others, figure=found, limit=chosen.limit)
        raise InfeasibleError(
            f"{worst.target}: dense {precision} meets it, with sparsity {job.request.sparsity} it takes "
            f"{show(worst.target, worst.figure)}, the limit is {show(worst.target, worst.limit)}: ask for more, so "
            "that it is pruned, or leave out --sparsity"
        )
    predictions = chosen.predictions
    return replace(
        chosen,
        variants=(*(base if item.precision == precision else item for item in chosen.variants), sparse),
        delivered=sparse,
        parity=made.parity[precision],
        figure=found,
        further=others,
        predictions=predictions and predictions | {("sparse", precision): found},
        finish=workshop.state.forget,
    )


def _dense_figure(job: Job, variant: Variant) -> float:
    return figure(job, variant) if variant.measurement is not None else Cost(job, variant, None).predict(variant.shape)


def _closed_loop(workshop: Workshop) -> Outcome:
    """Searches, builds, measures and corrects until a plan meets the target, and confirms it.

    Raises:
        InfeasibleError: nothing reaches the target.
    """
    state, target = workshop.state, workshop.target
    if state.known.base is None:
        state.learn(base=figure(workshop.job, workshop.baseline))
    base = state.known.base
    assert base is not None
    limit = base / target.speedup if target.speedup is not None else target.limit
    assert limit is not None
    turns = _Turns(workshop)
    try:
        found = correct_and_confirm(
            limit,
            dense=Dense(workshop.cost.predict(workshop.job.shape), base),
            propose=workshop.propose,
            attempt=turns.attempt,
            confirm=turns.confirm,
            rounds=workshop.job.request.rounds,
        )
    except InfeasibleError:
        raise workshop.infeasible(limit) from None
    if found.closing is None:
        raise workshop.infeasible(limit)
    if not found.confirmed:
        raise InfeasibleError(
            f"{target}: the closing measurement missed the limit for {CONFIRMATIONS} plans "
            f"({_against(target, found.closing)}): this machine is too noisy or busy now"
        )
    return found.closing


class _Turns:
    """Builds and measures what the correction proposes, and keeps the rounds for the manifest.

    What a trial finds of a limit in seconds is stated at the run's speed (`Pace`): corrections would follow the
    machine's drift.

    Args:
        workshop: where plans become artifacts.
    """

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._rounds: list[Round] = []
        self._standing: dict[str, Trial[PrunePlan]] = {}  # trials that met and were not refuted since
        self._missed: set[str] = set()

    def attempt(self, proposal: Proposal[PrunePlan], budget: float, expected: float) -> Trial[PrunePlan]:
        """Measures a proposal beside the dense model."""
        workshop = self._workshop
        known = workshop.state.known.trials.get(proposal.key)
        if known is None:
            known = _measured_trial(workshop, proposal, len(self._rounds) + 1)
            workshop.state.learn(trial=(proposal.key, known))
        figures = (known.measured, known.limit, known.base, known.perplexity, known.error)
        trial = Trial(proposal, budget, expected, *figures)
        if trial.met:
            self._standing[proposal.key] = trial
        self._keep_leading()
        self._rounds.append(_round(workshop.precision, trial))
        workshop.job.progress.note(_line(workshop, trial, len(self._rounds)))
        return trial

    def confirm(self, trial: Trial[PrunePlan]) -> Outcome:
        """The closing measurement; after a second miss the plan no longer counts as met."""
        workshop, key = self._workshop, trial.proposal.key
        outcome = workshop.closing(trial.proposal, tuple(self._rounds))
        base = next(item for item in outcome.variants if (item.name, item.precision) == ("dense", workshop.precision))
        reached = as_far_off(workshop.job, outcome.further, base, figure=outcome.figure, limit=outcome.limit)
        outcome = replace(outcome, figure=reached)
        if outcome.figure > outcome.limit:
            again = key not in self._missed
            what = "measuring once more" if again else "going on from there"
            workshop.job.progress.note(
                f"note: the closing measurement found {_against(workshop.target, outcome)}: {what}"
            )
            if not again:
                self._standing.pop(key, None)
            self._missed.add(key)
        return outcome

    def _keep_leading(self) -> None:
        leading = correction.best(tuple(self._standing.values()))
        self._workshop.keep_only(leading.proposal.key if leading else None)


def _round(precision: str, trial: Trial[PrunePlan]) -> Round:
    return Round(
        precision, trial.budget, trial.expected, trial.measured, trial.perplexity, trial.met, limit=trial.limit
    )


def _against(target: Target, outcome: Outcome) -> str:
    over = outcome.figure / outcome.limit - 1  # both may read the same to three digits
    return f"{show(target, outcome.figure)} > {show(target, outcome.limit)} by {over:.2%}"


def _measured_trial(workshop: Workshop, proposal: Proposal[PrunePlan], number: int) -> KnownTrial:
    variant = workshop.built(proposal).variants[workshop.precision]
    metrics = {target.metric for target in (workshop.target, *workshop.job.request.further)}
    base, candidate = measured(
        workshop.job,
        [workshop.baseline, variant],
        title=f"round {number}: measuring against dense {workshop.precision}",
        rounds=1 if metrics == {"memory"} else ROUNDS,  # memory is sampled once, in a process of its own
        sample_memory="memory" in metrics,
        judged=True,
    )
    assert base.measurement is not None
    beside = workshop.pace.add(base.measurement)
    now = workshop.pace.now
    found = at_pace(workshop.target, verdict(workshop.job, base, candidate), now)
    dense = steady(workshop.target, figure(workshop.job, base), now)
    if workshop.target.speedup is not None:
        dense = found.limit * workshop.target.speedup
    others = further_at_pace(further(workshop.job, base, candidate), now)
    for item in others:
        if not item.met:
            what, limit = show(item.target, item.figure), show(item.target, item.limit)
            workshop.job.progress.note(
                f"note: round {number} misses another target: {item.target.metric} {what} > {limit}"
            )
    reached = as_far_off(workshop.job, others, base, figure=found.figure, limit=found.limit)
    error = standard_error(workshop.job, base, candidate)
    return KnownTrial(reached, found.limit, dense, variant.perplexity, beside, error)


def _line(workshop: Workshop, trial: Trial[PrunePlan], number: int) -> str:
    target = workshop.target
    return (
        f"round {number}: predicted {show(target, trial.expected)}, measured {show(target, trial.measured)}, "
        f"limit {show(target, trial.limit)}, perplexity {trial.perplexity:.2f}: {'met' if trial.met else 'missed'}"
    )
