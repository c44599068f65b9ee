"""Several targets at once: the one that the dense model is farthest from drives the search, all of them must hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prune_export.benchmark.properties import WEIGHT_BYTES
from prune_export.delivery.cost import Cost
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.verdict import Verdict, judged
from prune_export.manifest import FurtherTarget
from prune_export.shape import LayerShape
from prune_export.target import Target


def driven(job: Job, dense: Mapping[str, Variant]) -> Job:
    """The job with the target first that needs the most pruning, in the precision that needs the least.

    Args:
        job: the delivery at work.
        dense: the dense model by precision, measured where the host is the device.
    """
    if not job.request.further:
        return job
    targets = (job.request.target, *job.request.further)
    least = min((_excesses(job, targets, variant) for variant in dense.values()), key=max)
    driver = targets[least.index(max(least))]
    rest = tuple(target for target in targets if target is not driver)
    return replace(job, request=replace(job.request, target=driver, further=rest))


def most_excess(job: Job, variant: Variant) -> float:
    """Share of the dense model's blocks that has to go for the target that needs the most of it."""
    return max(_excesses(job, (job.request.target, *job.request.further), variant))


def _excesses(job: Job, targets: Sequence[Target], dense: Variant) -> list[float]:
    verdicts = [verdict_on(job, target, dense) for target in targets]
    return [
        (verdict.figure - verdict.limit) / removable(job, target, verdict.figure, dense.precision)
        for target, verdict in zip(targets, verdicts, strict=True)
    ]


def removable(job: Job, target: Target, figure: float, precision: str) -> float:
    """About how much of the dense model's figure its blocks are: bytes by count, latency in proportion to the weights.

    Args:
        job: the delivery at work.
        target: of memory or latency.
        figure: of the dense model.
        precision: of the weights.
    """
    shape = job.shape
    none = shape.with_layers(tuple(LayerShape(0, 0, 0) for _ in shape.layers)).parameters()
    blocks = shape.parameters() - none
    if target.metric == "memory":
        return blocks * WEIGHT_BYTES[precision]
    return figure * blocks / (blocks + shape.vocab_size * shape.hidden_size)


def verdict_on(job: Job, target: Target, variant: Variant, baseline: Variant | None = None) -> Verdict:
    """What a variant's measurement, or for a device elsewhere the prediction, says of any target.

    Args:
        job: the delivery at work.
        target: not of parameters.
        variant: what is judged.
        baseline: the dense model in the same precision, measured in turns with the variant; the variant itself, for
            which a speed-up is 1, unless given.
    """
    base = baseline or variant
    if variant.measurement is not None and base.measurement is not None:
        return judged(target, baseline=base.measurement, variant=variant.measurement)
    own = replace(job, request=replace(job.request, target=target))
    cost = Cost(own, variant, None)
    limit = cost.predict(job.shape) / target.speedup if target.speedup is not None else target.limit or 0.0
    return Verdict(cost.predict(variant.shape), limit)


def further(job: Job, base: Variant, variant: Variant) -> tuple[FurtherTarget, ...]:
    """The verdicts on all targets but the one that drives."""
    found = ((target, verdict_on(job, target, variant, base)) for target in job.request.further)
    return tuple(FurtherTarget(target, verdict.limit, verdict.figure) for target, verdict in found)


def missed(found: Sequence[FurtherTarget]) -> bool:
    """Whether any of them does not hold."""
    return any(not item.met for item in found)


def first_missed(job: Job, found: Sequence[FurtherTarget], *, figure: float, limit: float) -> FurtherTarget:
    """What to name where something is missed: the driving target, or if that one holds the first other that does not.

    Args:
        job: the delivery at work.
        found: verdicts on the other targets.
        figure, limit: of the driving target.
    """
    own = FurtherTarget(job.request.target, limit, figure)
    return own if not own.met else next((item for item in found if not item.met), own)


def as_far_off(job: Job, found: Sequence[FurtherTarget], base: Variant, *, figure: float, limit: float) -> float:
    """The driving target's figure; if another is missed, what it would be if it missed by as much of the blocks.

    The correction then asks for a plan that is smaller by about what the other target needs.

    Args:
        job: the delivery at work.
        found: verdicts on the other targets.
        base: the dense model, measured beside the variant.
        figure, limit: of the driving target.
    """
    worst = max(
        (
            (item.figure - item.limit)
            / removable(job, item.target, verdict_on(job, item.target, base).figure, base.precision)
            for item in found
            if not item.met
        ),
        default=0.0,
    )
    target = job.request.target
    own = removable(job, target, verdict_on(job, target, base).figure, base.precision)
    return max(figure, limit + worst * own) if worst else figure
