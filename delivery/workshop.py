"""Where plans become artifacts: proposes, builds, keeps what may be delivered, measures the closing comparison."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace

from prune_export.delivery.bench import figure, measured, verdict
from prune_export.delivery.correction import Proposal
from prune_export.delivery.cost import Cost
from prune_export.delivery.pace import Pace, at_pace, further_at_pace
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.search import Searcher
from prune_export.delivery.several import first_missed, further, missed
from prune_export.delivery.state import RunState
from prune_export.delivery.variants import Build, build, compressed
from prune_export.delivery.verdict import Verdict
from prune_export.errors import InfeasibleError
from prune_export.manifest import FurtherTarget, ParityRecord, PredictedPoint, Round
from prune_export.plan import PrunePlan
from prune_export.target import Target
from prune_export.units import format_bytes, format_duration

_LOOK_AROUND_S = 5.0  # for what the report shows of other budgets


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
        speedups: of a measured speed-up in each paired round.
        further: verdicts on the other targets.
        rounds: what the loop tried.
        front: what is predicted for other budgets.
        predictions: predicted latency of each variant by (name, precision), where nothing was measured.
        finish: to be called once the artifact is out: nothing is left to resume.
    """

    variants: tuple[Variant, ...]
    delivered: Variant
    plan: PrunePlan | None
    parity: ParityRecord
    limit: float
    figure: float
    speedups: tuple[float, ...] = ()
    further: tuple[FurtherTarget, ...] = ()
    rounds: tuple[Round, ...] = ()
    front: tuple[PredictedPoint, ...] = ()
    predictions: dict[tuple[str, str], float] | None = None
    finish: Callable[[], None] | None = None


class Workshop:
    """The pruned side of one delivery in one precision.

    Args:
        job: the delivery at work.
        dense: the dense model in every allowed precision.
        precision: what is pruned for: the dense precision with the best figure.
    """

    def __init__(self, job: Job, dense: Build, precision: str) -> None:
        self.job = job
        self.dense = dense
        self.precision = precision
        self.baseline = dense.variants[precision]
        self.state = RunState(_identity(job, precision), job.progress)
        self.cost = Cost(job, self.baseline, self.state)
        self.searcher = Searcher(job, self.cost.predict, self.cost.unit, self.state)
        self.pace = Pace(job.request.target, tuple(item.pace for item in self.state.known.trials.values()))
        if self.baseline.measurement is not None:
            self.pace.add(self.baseline.measurement)
        self._builds: dict[str, Build] = {}
        self._numbers: dict[str, int] = {}
        self._looked = False

    @property
    def target(self) -> Target:
        """What was asked for."""
        return self.job.request.target

    def propose(self, budget: float) -> Proposal[PrunePlan]:
        """The best plan within a budget of the cost.

        Raises:
            InfeasibleError: there is none.
        """
        plan, predicted = self.searcher.plan(budget)
        if not self._looked and self.target.metric != "parameters":
            self._looked = True
            self.searcher.look_around(budget, at_most_s=_LOOK_AROUND_S)
        return proposal_of(plan, predicted)

    @property
    def front(self) -> tuple[PredictedPoint, ...]:
        """What the search predicts for other budgets in the unit of the target's metric, where that is its cost."""
        return () if self.target.metric == "parameters" else self.searcher.predicted_front

    def built(self, proposal: Proposal[PrunePlan]) -> Build:
        """The plan's model, exported and compressed; kept until `keep_only` drops it."""
        if proposal.key not in self._builds:
            number = self._numbers.setdefault(proposal.key, len(self._numbers) + 1)
            self.searcher.release()
            self.job.progress.note(f"plan {number}: {proposal.plan.ratio:.1%} of the parameters removed")
            name = f"pruned-{number}"
            self._builds[proposal.key] = build(
                self.job, name, lambda: self.searcher.pruned(proposal.plan, name), (self.precision,)
            )
        return self._builds[proposal.key]

    def sparse(self) -> Build:
        """The dense model with the zeros asked for, in the workshop's precision."""
        return build(self.job, "sparse", lambda: self.searcher.sparse("sparse"), (self.precision,))

    def keep_only(self, key: str | None) -> None:
        """Deletes every build but one: a disk full of plans that missed serves nobody."""
        for other in [item for item in self._builds if item != key]:
            shutil.rmtree(self._builds.pop(other).plain.parent, ignore_errors=True)

    def all_precisions(self, made: Build) -> Build:
        """The same build in every allowed precision, under the name "pruned"."""
        for precision in self.dense.variants:
            if precision not in made.variants:
                made = compressed(self.job, made, precision)
        return replace(
            made,
            variants={key: replace(made.variants[key], name="pruned") for key in self.dense.variants},
        )

    def closing(self, proposal: Proposal[PrunePlan], rounds: tuple[Round, ...]) -> Outcome:
        """Every precision of dense and pruned measured side by side; what is delivered follows from this.

        For a limit in seconds or bytes the pruned precision of least perplexity that meets it is delivered, for a
        speed-up the precision that was pruned for.  A limit in seconds must be met as it is found and at the run's
        speed (`Pace`): the figure is the larger one.
        """
        self.searcher.release()
        pruned = self.all_precisions(self.built(proposal))
        main = pruned.variants[self.precision]
        shown = [*self.dense.variants.values(), *pruned.variants.values()]
        # The two that a speed-up compares run one right after the other.
        ordered = [self.baseline, main, *(item for item in shown if item not in (self.baseline, main))]
        title = "closing measurement, all side by side"
        results = measured(self.job, ordered, title=title, sample_memory=True, judged=True)
        found = {(result.name, result.precision): result for result in results}
        base, delivered = found["dense", self.precision], found["pruned", self.precision]
        assert base.measurement is not None
        self.pace.add(base.measurement)
        if self.target.speedup is None and self.target.metric != "parameters":
            pruned_ones = [item for item in results if item.name == "pruned"]
            meeting = [item for item in pruned_ones if self._meets(base, item)]
            delivered = min(meeting, key=lambda item: item.perplexity, default=delivered)
        found_of_it, others = self._verdicts(base, delivered)
        return Outcome(
            variants=tuple(found[item.name, item.precision] for item in shown),
            delivered=delivered,
            plan=proposal.plan,
            parity=pruned.parity[delivered.precision],
            limit=found_of_it.limit,
            figure=found_of_it.figure,
            speedups=found_of_it.speedups,
            further=others,
            rounds=rounds,
        )

    def _meets(self, base: Variant, variant: Variant) -> bool:
        found, others = self._verdicts(base, variant)
        return found.met and not missed(others)

    def _verdicts(self, base: Variant, variant: Variant) -> tuple[Verdict, tuple[FurtherTarget, ...]]:
        """On all targets, figures as they are or at the run's speed, whichever is larger."""
        slow = min(self.pace.now, 1.0)
        found = at_pace(self.target, verdict(self.job, base, variant), slow)
        return found, further_at_pace(further(self.job, base, variant), slow)

    def infeasible(self, limit: float) -> InfeasibleError:
        """The error that says how far the model can go, measured where possible, and what quality that costs.

        Args:
            limit: of the driving target; another one is named where that one is within reach and the other is not.
        """
        plan, predicted = self.searcher.smallest()
        if self.target.metric == "parameters":
            return InfeasibleError(
                f"{self.target}: at most {plan.ratio:.1%} of the parameters can go by this search; ask for less"
            )
        variant = self.built(proposal_of(plan, predicted)).variants[self.precision]
        reachable, how, here = predicted, "predicted", "by this search"
        if self.job.measured:
            memory = "memory" in {target.metric for target in (self.target, *self.job.request.further)}
            (variant,) = measured(self.job, [variant], title="measuring the smallest model", sample_memory=memory)
            reachable, how, here = figure(self.job, variant), "measured", "reliably on this machine"
        self.state.forget()
        others = further(self.job, self.baseline, variant)
        named = first_missed(self.job, others, figure=reachable, limit=limit)
        verdict = f"was not reached {here}" if named.met else "cannot be reached"
        return InfeasibleError(
            f"{named.target}: {show(named.target, named.limit)} {verdict}; the smallest model takes "
            f"{show(named.target, named.figure)} ({how}, {self.precision}) at perplexity {variant.perplexity:.1f}, "
            f"dense {self.baseline.perplexity:.1f}: ask for less, or allow another --precision"
        )


def proposal_of(plan: PrunePlan, predicted: float) -> Proposal[PrunePlan]:
    """A proposal, identified by what the plan keeps, whatever its history."""
    return Proposal(plan, replace(plan, history=()).digest(), predicted)


def show(target: Target, value: float) -> str:
    """A figure of the target's metric in words."""
    return format_bytes(value) if target.metric == "memory" else format_duration(value)


def _identity(job: Job, precision: str) -> list[object]:
    """Everything that a run's outcome depends on but the noise of its timings."""
    request = job.request
    return [
        *(job.source_digest, job.calibration.digest, request.search, request.target, job.workload, precision),
        *(job.profile, job.threads, request.seed, request.precisions, request.sparsity),
        *request.further,
        request.format,
    ]
