"""Decides what is delivered: a dense precision that meets the target, or a pruned model that the loop corrected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from prune_export.delivery import correction
from prune_export.delivery.bench import ROUNDS, figure, measured
from prune_export.delivery.correction import Proposal, Trial
from prune_export.delivery.cost import Cost
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.search import Searcher
from prune_export.delivery.variants import Build, build, compressed
from prune_export.errors import InfeasibleError
from prune_export.manifest import Measurement, ParityRecord, Round
from prune_export.plan import PrunePlan
from prune_export.target import Target
from prune_export.units import format_bytes, format_duration

# A plan confirmed too slow by the closing measurement is replaced by one that aims lower by its miss and this much.
_STRICTER = 0.01
_CONFIRMATIONS = 3


@dataclass(frozen=True)
class Outcome:
    """What will be delivered and why.

    Attributes:
        variants: the comparison, delivered one included.
        delivered: the one handed over.
        plan: None for a dense delivery.
        parity: of the delivered one.
        limit: in the metric's unit.
        figure: of the delivered one.
        rounds: what the loop tried.
        predictions: metric by the latency table, for each variant by (name, precision).
        finish: to be called once the artifact is out: nothing is left to resume.
    """

    variants: tuple[Variant, ...]
    delivered: Variant
    plan: PrunePlan | None
    parity: ParityRecord
    limit: float
    figure: float
    rounds: tuple[Round, ...]
    predictions: dict[tuple[str, str], float]
    finish: Callable[[], None] | None = None


def decide(job: Job, dense: Build) -> Outcome:
    """Dense in the best precision that meets the target, else pruned.

    Args:
        job: the delivery at work.
        dense: the dense model in every allowed precision, measured where the host is the device.

    Raises:
        InfeasibleError: nothing reaches the target.
    """
    target = job.request.target
    if target.speedup is None and target.metric != "parameters" and job.request.plan is None:
        chosen = _dense_outcome(job, dense)
        if chosen is not None:
            return chosen
    precision = _fastest(job, dense)
    pruning = Pruning(job, dense, precision)
    return replace(pruning.run(), finish=pruning.finished)


def _dense_outcome(job: Job, dense: Build) -> Outcome | None:
    limit = job.request.target.limit
    assert limit is not None
    figures = {precision: _dense_figure(job, variant) for precision, variant in dense.variants.items()}
    for precision, variant in dense.variants.items():
        if figures[precision] <= limit:
            predictions = {("dense", key): value for key, value in figures.items()} if not job.measured else {}
            variants = tuple(dense.variants.values())
            return Outcome(variants, variant, None, dense.parity[precision], limit, figures[precision], (), predictions)
    return None


def _dense_figure(job: Job, variant: Variant) -> float:
    if variant.measurement is not None:
        return figure(job, variant.measurement)
    return Cost(job, variant).predict(variant.shape)


def _fastest(job: Job, dense: Build) -> str:
    """The dense precision with the best figure of the target's metric: what needs the least pruning."""
    speeds = {precision: _dense_figure(job, variant) for precision, variant in dense.variants.items()}
    return min(speeds, key=lambda precision: speeds[precision])


class Pruning:
    """One pruned delivery: its search, its trials, its confirmation."""

    def __init__(self, job: Job, dense: Build, precision: str) -> None:
        self._job = job
        self._dense = dense
        self._precision = precision
        self._baseline = dense.variants[precision]
        self._cost = Cost(job, self._baseline)
        self._builds: dict[str, Build] = {}
        self._rounds: list[Round] = []
        self._searcher = Searcher(job, self._cost.predict, self._cost.unit)

    def run(self) -> Outcome:
        """Searches, builds, measures and corrects until a plan meets the target, and confirms it.

        Raises:
            InfeasibleError: nothing reaches the target.
        """
        target = self._job.request.target
        if self._job.request.plan is not None or target.metric == "parameters" or not self._job.measured:
            return self._single()
        base = figure(self._job, _required(self._baseline))
        limit = base / target.speedup if target.speedup is not None else target.limit
        assert limit is not None
        aim = limit
        for _ in range(_CONFIRMATIONS):
            chosen = self._loop(aim, limit, base)
            outcome = self._confirmed(chosen, limit)
            if outcome.figure <= outcome.limit:
                return outcome
            found, allowed = _show(target, outcome.figure), _show(target, outcome.limit)
            self._job.progress.note(f"note: the closing measurement found {found} > {allowed}: aiming lower")
            aim *= outcome.limit / outcome.figure * (1.0 - _STRICTER)
        raise InfeasibleError(
            f"{target}: the closing measurement missed the limit {_CONFIRMATIONS} times "
            f"({found} > {allowed}): this machine is too noisy or busy now"
        )

    def first_plan(self) -> PrunePlan:
        """The plan that the loop would try first: within the limit by table and by the dense model's measurement.

        Raises:
            InfeasibleError: nothing reaches the target.
        """
        dense_cost = self._cost.predict(self._job.shape)
        limit = self._single_limit(dense_cost)
        if self._job.measured and self._job.request.target.limit is not None and self._cost.metric != "parameters":
            limit *= dense_cost / figure(self._job, _required(self._baseline))
        return self._single_plan(limit, dense_cost)[0]

    def _loop(self, aim: float, limit: float, base: float) -> Trial[PrunePlan]:
        scale = base / self._cost.predict(self._job.shape)
        try:
            trials = correction.correct(
                aim,
                scale=scale,
                propose=self._propose,
                attempt=self._attempt(aim / limit),
                rounds=self._job.request.rounds,
            )
        except InfeasibleError:
            raise self._infeasible(limit) from None
        chosen = correction.best(trials)
        if chosen is None:
            raise self._infeasible(limit)
        return chosen

    def _propose(self, budget: float) -> Proposal[PrunePlan]:
        plan, predicted = self._searcher.plan(budget)
        return Proposal(plan, plan_key(plan), predicted)

    def _attempt(self, share: float) -> Callable[[Proposal[PrunePlan], float, float], Trial[PrunePlan]]:
        """A trial against `share` of the limit in force."""

        def run(proposal: Proposal[PrunePlan], budget: float, expected: float) -> Trial[PrunePlan]:
            variant = self._built(proposal).variants[self._precision]
            title = f"round {len(self._rounds) + 1}: measuring against dense {self._precision}"
            memory = self._job.request.target.metric == "memory"
            base, candidate = measured(
                self._job, [self._baseline, variant], title=title, rounds=ROUNDS, sample_memory=memory
            )
            limit = self._limit(base) * share
            reached = figure(self._job, _required(candidate))
            trial = Trial(proposal, budget, expected, reached, limit, variant.perplexity)
            self._record(trial)
            return trial

        return run

    def _limit(self, base: Variant) -> float:
        target = self._job.request.target
        if target.speedup is not None:
            return figure(self._job, _required(base)) / target.speedup
        assert target.limit is not None
        return target.limit

    def _built(self, proposal: Proposal[PrunePlan]) -> Build:
        if proposal.key not in self._builds:
            name = f"pruned-{len(self._builds) + 1}"
            removed = f"{proposal.plan.ratio:.1%} of the parameters removed"
            self._job.progress.note(f"plan {len(self._builds) + 1}: {removed}")
            self._builds[proposal.key] = build(
                self._job, name, lambda: self._searcher.pruned(proposal.plan), (self._precision,)
            )
        return self._builds[proposal.key]

    def _record(self, trial: Trial[PrunePlan]) -> None:
        self._rounds.append(
            Round(
                precision=self._precision,
                budget=trial.budget,
                predicted=trial.expected,
                measured=trial.measured,
                perplexity=trial.perplexity,
                met=trial.met,
            )
        )
        target = self._job.request.target
        self._job.progress.note(
            f"round {len(self._rounds)}: predicted {_show(target, trial.expected)}, measured "
            f"{_show(target, trial.measured)}, limit {_show(target, trial.limit)}, perplexity {trial.perplexity:.2f}: "
            f"{'met' if trial.met else 'missed'}"
        )

    def _confirmed(self, chosen: Trial[PrunePlan], limit: float) -> Outcome:
        """Every precision of dense and pruned, measured side by side; the delivered one's figure comes from here."""
        self._searcher.release()
        pruned = self._all_precisions(self._builds[chosen.proposal.key])
        delivered = pruned.variants[self._precision]
        others = [item for variants in (self._dense.variants, pruned.variants) for item in variants.values()]
        ordered = [self._baseline, *(item for item in others if item not in (self._baseline, delivered)), delivered]
        results = measured(self._job, ordered, title="closing measurement, all side by side", sample_memory=True)
        found = {(result.name, result.precision): result for result in results}
        variants = tuple(found[item.name, item.precision] for item in others)
        final = found[delivered.name, delivered.precision]
        return Outcome(
            variants=variants,
            delivered=final,
            plan=chosen.proposal.plan,
            parity=pruned.parity[self._precision],
            limit=self._limit(found["dense", self._precision]),
            figure=figure(self._job, _required(final)),
            rounds=tuple(self._rounds),
            predictions={},
        )

    def _all_precisions(self, made: Build) -> Build:
        rest = tuple(precision for precision in self._dense.variants if precision not in made.variants)
        for precision in rest:
            made = compressed(self._job, made, precision)
        order = {precision: replace(made.variants[precision], name="pruned") for precision in self._dense.variants}
        return replace(made, variants=order)

    def _single(self) -> Outcome:
        """A replayed plan, a ratio target, or a prediction for another device: one plan, no correction."""
        target = self._job.request.target
        dense_cost = self._cost.predict(self._job.shape)
        limit = self._single_limit(dense_cost)
        plan, predicted = self._searcher.replayed() if self._job.request.plan else self._single_plan(limit, dense_cost)
        made = self._built(Proposal(plan, plan_key(plan), predicted))
        trial = Trial(Proposal(plan, plan_key(plan), predicted), limit, predicted, predicted, limit, 0.0)
        outcome = self._confirmed(trial, limit) if self._job.measured else self._predicted(made, plan, limit, predicted)
        if target.metric == "parameters":
            return replace(outcome, limit=target.limit or 0.0, figure=plan.ratio)
        if outcome.figure > outcome.limit:
            raise InfeasibleError(
                f"the plan gives {_show(target, outcome.figure)}, the limit is {_show(target, outcome.limit)}: "
                "remove more, or run without --plan"
            )
        return outcome

    def _single_limit(self, dense_cost: float) -> float:
        target = self._job.request.target
        if target.metric == "parameters":
            return dense_cost * (1.0 - (target.limit or 0.0))
        return dense_cost / target.speedup if target.speedup is not None else target.limit or 0.0

    def _single_plan(self, limit: float, dense_cost: float) -> tuple[PrunePlan, float]:
        try:
            return self._searcher.plan(limit)
        except InfeasibleError:
            raise self._infeasible(limit) from None

    def _predicted(self, made: Build, plan: PrunePlan, limit: float, predicted: float) -> Outcome:
        self._searcher.release()
        pruned = self._all_precisions(made)
        variants = (*self._dense.variants.values(), *pruned.variants.values())
        predictions = {
            (variant.name, variant.precision): Cost(self._job, replace(variant, name="dense")).predict(variant.shape)
            for variant in variants
        }
        delivered = pruned.variants[self._precision]
        parity = pruned.parity[self._precision]
        return Outcome(variants, delivered, plan, parity, limit, predicted, (), predictions)

    def _infeasible(self, limit: float) -> InfeasibleError:
        """The error that says how far the model can go, measured where possible, and what quality that costs."""
        target = self._job.request.target
        plan, predicted = self._searcher.smallest()
        if target.metric == "parameters":
            return InfeasibleError(
                f"{target}: at most {plan.ratio:.1%} of the parameters can go by this search; ask for less"
            )
        variant = self._built(Proposal(plan, plan_key(plan), predicted)).variants[self._precision]
        reachable, how = predicted, "predicted"
        if self._job.measured:
            memory = target.metric == "memory"
            (result,) = measured(self._job, [variant], title="measuring the smallest model", sample_memory=memory)
            reachable, how = figure(self._job, _required(result)), "measured"
        return InfeasibleError(
            f"{target}: {_show(target, limit)} cannot be reached; the smallest model takes "
            f"{_show(target, reachable)} ({how}, {self._precision}) at perplexity {variant.perplexity:.1f}, "
            f"dense {self._baseline.perplexity:.1f}: ask for less, or allow another --precision"
        )

    def finished(self) -> None:
        """The artifact is out: the search's journal has served."""
        self._searcher.finished()


def plan_key(plan: PrunePlan) -> str:
    """Identifies what a plan keeps, whatever its history."""
    return replace(plan, history=()).digest()


def _required(variant: Variant) -> Measurement:
    assert variant.measurement is not None, f"{variant.name} {variant.precision} was not measured"
    return variant.measurement


def _show(target: Target, value: float) -> str:
    return format_bytes(value) if target.metric == "memory" else format_duration(value)
