"""Several plans from one search, with what is predicted of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prune_export.benchmark.roofline import roofline_table
from prune_export.delivery.cost import footprint
from prune_export.delivery.request import Job
from prune_export.delivery.search import Searcher
from prune_export.errors import BadInputError, InfeasibleError
from prune_export.plan import PrunePlan
from prune_export.profiles.latency import LatencyTable
from prune_export.prune.search_result import FrontPoint, SearchInfeasibleError
from prune_export.shape import LayerShape
from prune_export.target import Statistic
from prune_export.units import format_bytes, format_duration


@dataclass(frozen=True)
class Planned:
    """A plan and its predictions.

    Attributes:
        asked: removed share of the parameters that was asked for.
        plan: what the search found.
        perplexity: calibration perplexity.
        dense_perplexity: the same before.
        divergence: predicted KL from the dense model's output in nats a token, where the search predicts it.
        latency_s: predicted for the device, or None where its profile says too little.
        dense_latency_s: the same before.
        memory_bytes: weights and full KV cache in the first precision.
        dense_memory_bytes: the same before.
        latency_by: where the latencies come from and how far they can be trusted; empty without any.
        front: what was traded for what, where the search looks at several costs at once.
        statistic: of the latencies; "p50" where nothing tells the one that was asked for.
    """

    asked: float
    plan: PrunePlan
    perplexity: float
    dense_perplexity: float
    divergence: float | None
    latency_s: float | None
    dense_latency_s: float | None
    memory_bytes: float
    dense_memory_bytes: float
    latency_by: str
    front: tuple[FrontPoint, ...] = ()
    statistic: Statistic = "p50"


def plan_ratios(
    job: Job, searcher: Searcher, ratios: Sequence[float], *, metric: str, as_far_as_possible: bool
) -> tuple[Planned, ...]:
    """A plan for each ratio, each what the search finds for it alone.

    Args:
        job: the delivery at work.
        searcher: whose cost counts parameters.
        ratios: removed shares of the parameters.
        metric: the latency to predict: "tpot", "ttft" or "total".
        as_far_as_possible: end before the first ratio out of reach, if there is one before it, instead of raising.

    Raises:
        InfeasibleError: a ratio is out of reach; the message says the highest that is not.
    """
    dense = float(job.shape.parameters())
    table = _table(job)
    statistic, tail = _percentile(job, table, metric)
    made: list[Planned] = []
    for ratio in ratios:
        try:
            result = searcher.result(dense * (1.0 - ratio))
        except SearchInfeasibleError as error:
            highest = 1.0 - error.lowest_cost / dense
            reason = (
                f"{100 * ratio:g}% of the parameters cannot go: at most {highest:.1%} can by this search; ask for less"
            )
            if not (as_far_as_possible and made):
                raise InfeasibleError(reason) from None
            job.progress.note(f"note: {reason}")
            break
        plan = searcher.made(result)
        sizes = [footprint(shape, job.workload, job.request.precisions[0]) for shape in (plan.target, job.shape)]
        latencies = [_seconds(job, table, shape.layers, metric, tail) for shape in (plan.target, job.shape)]
        made.append(
            Planned(
                asked=ratio,
                plan=plan,
                perplexity=result.perplexity,
                dense_perplexity=result.dense_perplexity,
                divergence=result.divergence,
                latency_s=latencies[0],
                dense_latency_s=latencies[1],
                memory_bytes=sizes[0],
                dense_memory_bytes=sizes[1],
                latency_by="" if table is None else table.trust(metric, precision=job.request.precisions[0]),
                front=result.front,
                statistic=statistic,
            )
        )
    return tuple(made)


def render(planned: Sequence[Planned], names: Sequence[str], *, metric: str) -> str:
    """The plans as a table: removed share, predicted latency and memory, divergence and perplexity, file.

    A plan that another one beats in latency, memory and perplexity at once is marked.
    """
    first = planned[0]
    divergence = first.divergence is not None
    latency = f"~{metric} {first.statistic}"
    header = ["removed", "parameters", "memory", latency, "speed", *(["KL"] if divergence else []), "perplexity"]
    dense_scores = [*(["0"] if divergence else []), f"{first.dense_perplexity:.4g}"]
    dense_memory = format_bytes(first.dense_memory_bytes)
    rows = [
        [*header, "", "plan"],
        [
            *("0.0%", f"{first.plan.dense.parameters():,}", dense_memory, _duration(first.dense_latency_s), ""),
            *(*dense_scores, "", ""),
        ],
    ]
    for item, name in zip(planned, names, strict=True):
        speed = ""
        if item.latency_s is not None and item.dense_latency_s is not None:
            speed = f"{item.dense_latency_s / item.latency_s:.2f}x"
        scores = [*([] if item.divergence is None else [f"{item.divergence:.4g}"]), f"{item.perplexity:.4g}"]
        size = (f"{item.plan.target.parameters():,}", format_bytes(item.memory_bytes))
        mark = "dominated" if any(_beats(other, item) for other in planned) else ""
        rows.append([f"{item.plan.ratio:.1%}", *size, _duration(item.latency_s), speed, *scores, mark, name])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header) + 2)]
    lines = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]
    how = f"latency {first.latency_by}" if first.latency_by else "no latency predicted"
    scored = "KL and perplexity" if divergence else "perplexity"
    memory = "memory is weights and KV cache (a limit of it is of the whole process)"
    return "\n".join([*lines, f"{how}; {memory}; {scored} on the calibration text"])


def _beats(one: Planned, other: Planned) -> bool:
    """Whether one plan is at least as good in everything, and better in something."""
    ours, theirs = ((item.latency_s or 0.0, item.memory_bytes, item.perplexity) for item in (one, other))
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


def _table(job: Job) -> LatencyTable | None:
    """The device's table, or a roofline estimate; None for a state-space model or where a profile says too little."""
    precision = job.request.precisions[0]
    if job.shape.mixer is not None:
        job.progress.note(
            f"note: no latency is predicted: nothing tells what a mixer of a {job.shape.family} model costs"
        )
        return None
    try:
        if job.profile.latency_table is None:
            return roofline_table(job.profile, job.shape, job.workload, (precision,))
        job.profile.latency_table.check_threads(job.threads)
        job.profile.latency_table.phase("decode", precision)
        return job.profile.latency_table
    except BadInputError as error:
        job.progress.note(f"note: no latency is predicted: {error}")
        return None


def _percentile(job: Job, table: LatencyTable | None, metric: str) -> tuple[Statistic, float]:
    """The statistic that can be told of the one that was asked for, and its multiple of the median."""
    asked = job.request.target.statistic
    if table is None or asked == "p50":
        return "p50", 1.0
    if tail := table.tail(metric, asked, precision=job.request.precisions[0]):
        return asked, tail
    job.progress.note(f"note: {metric} is told by its median: nothing tells {asked} on this device")
    return "p50", 1.0


def _seconds(
    job: Job, table: LatencyTable | None, layers: tuple[LayerShape, ...], metric: str, tail: float
) -> float | None:
    return None if table is None else tail * table.predict(layers, metric, precision=job.request.precisions[0])


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)
