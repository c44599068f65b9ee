"""Deliveries of one plan without correction: a replayed plan, a ratio target, a prediction for another device."""

from __future__ import annotations

from dataclasses import replace

from prune_export.delivery.bench import figure
from prune_export.delivery.correction import Proposal
from prune_export.delivery.cost import Cost
from prune_export.delivery.several import further, missed
from prune_export.delivery.workshop import Outcome, Workshop, proposal_of, show
from prune_export.errors import InfeasibleError
from prune_export.manifest import FurtherTarget
from prune_export.plan import PrunePlan

_TIGHTER = 0.98


def single(workshop: Workshop) -> Outcome:
    """Builds one plan and says what it gives.

    Raises:
        InfeasibleError: no plan is small enough, or the replayed one misses the target.
    """
    job, target = workshop.job, workshop.target
    replayed = job.plan
    proposal = proposal_of(replayed, 0.0) if replayed is not None else first_proposal(workshop)
    if target.metric == "parameters" and proposal.plan.ratio < (target.limit or 0.0):
        raise InfeasibleError(
            f"the plan removes {proposal.plan.ratio:.1%} of the parameters, {target.limit:.1%} are asked for: "
            "remove more, or run without --plan"
        )
    outcome = workshop.closing(proposal, ()) if job.measured else _predicted(workshop, proposal)
    if target.metric == "parameters":
        return replace(outcome, limit=target.limit or 0.0, figure=proposal.plan.ratio, speedups=())
    for item in (item for item in outcome.further if not item.met):
        raise InfeasibleError(
            f"the plan gives {item.target.metric} {show(item.target, item.figure)}, the limit is "
            f"{show(item.target, item.limit)}: remove more, or ask for less"
        )
    if outcome.figure > outcome.limit:
        raise InfeasibleError(
            f"the plan gives {show(target, outcome.figure)}, the limit is {show(target, outcome.limit)}: "
            "remove more, or run without --plan"
        )
    return outcome


def first_proposal(workshop: Workshop) -> Proposal[PrunePlan]:
    """The plan that meets the target by the cost alone, scaled to the dense model's own measurement if there is one.

    Raises:
        InfeasibleError: nothing is small enough.
    """
    job, target = workshop.job, workshop.target
    dense_cost = workshop.cost.predict(job.shape)
    limit = target.limit or 0.0
    if target.metric == "parameters":
        budget = dense_cost * (1.0 - limit)
    else:
        known = workshop.baseline.measurement is not None
        dense = figure(job, workshop.baseline) if known else dense_cost
        limit = dense / target.speedup if target.speedup is not None else limit
        budget = limit * dense_cost / dense if known else limit
    try:
        proposal = workshop.propose(budget)
        # Other targets may want less than the budget of the one that drives; their costs fall with it.
        while not job.measured and missed(_further(workshop, proposal)):
            budget = min(budget, proposal.predicted) * _TIGHTER
            proposal = workshop.propose(budget)
    except InfeasibleError:
        raise workshop.infeasible(limit) from None
    return proposal


def _further(workshop: Workshop, proposal: Proposal[PrunePlan]) -> tuple[FurtherTarget, ...]:
    variant = replace(workshop.baseline, shape=proposal.plan.target)
    return further(workshop.job, workshop.baseline, variant)


def _predicted(workshop: Workshop, proposal: Proposal[PrunePlan]) -> Outcome:
    workshop.searcher.release()
    pruned = workshop.all_precisions(workshop.built(proposal))
    variants = (*workshop.dense.variants.values(), *pruned.variants.values())
    predictions = {
        (variant.name, variant.precision): Cost(workshop.job, variant, None).latency(variant.shape)
        for variant in variants
        if workshop.job.shape.mixer is None  # nothing tells what a mixer costs
    }
    dense_cost = workshop.cost.predict(workshop.job.shape)
    target = workshop.target
    return Outcome(
        variants=variants,
        delivered=pruned.variants[workshop.precision],
        plan=proposal.plan,
        parity=pruned.parity[workshop.precision],
        limit=dense_cost / target.speedup if target.speedup is not None else target.limit or 0.0,
        figure=workshop.cost.predict(proposal.plan.target),
        further=further(workshop.job, workshop.baseline, pruned.variants[workshop.precision]),
        predictions=predictions,
    )
