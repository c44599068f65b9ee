"""The latency table that a plan is searched with: the profile's, else measured here where the host is the device, else
estimated.
"""

from __future__ import annotations

import shutil

from prune_export.benchmark.roofline import roofline_table, table_key
from prune_export.benchmark.stacks import ExportedStack, Ruler, time_stacks
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.stacks import Design, build_stack, designs, refuse_mixers, table_depth
from prune_export.delivery.summary import timed_metric
from prune_export.errors import BadInputError
from prune_export.profiles.latency import LatencyTable
from prune_export.target import Target


def trust(job: Job, metric: str, precision: str) -> str:
    """How far latencies that were not measured can be trusted, in a sentence; empty where nothing predicts them."""
    if job.shape.mixer is not None:
        return ""
    try:
        table = job.profile.latency_table or roofline_table(job.profile, job.shape, job.workload, (precision,))
        return table.trust(metric, precision=precision)
    except BadInputError:
        return ""


def tail(job: Job, target: Target, precision: str) -> float:
    """What predicted medians of a target's latency are multiplied by to be of its statistic; 0 where that is not known.

    Known are the percentiles in a table of the profile, if it has them for every precision at hand. Where the host is
    the device, figures are measured, and costs only compare plans: they stay medians.
    """
    table = job.profile.latency_table
    if job.measured or target.statistic == "p50":
        return 1.0
    if table is None:
        return 0.0
    metric = timed_metric(target)
    known = {
        item: table.tail(metric, target.statistic, precision=item) for item in (*job.request.precisions, precision)
    }
    return known[precision] if all(known.values()) else 0.0


def medians(job: Job) -> tuple[str, ...]:
    """Latencies that are predicted as medians though another statistic is asked for: nothing tells how they spread."""
    if job.measured or job.shape.mixer is not None:
        return ()
    targets, precision = (job.request.target, *job.request.further), job.request.precisions[0]
    return tuple(dict.fromkeys(timed_metric(item) for item in targets if not tail(job, item, precision)))


def latency_table(job: Job, dense: Variant) -> LatencyTable:
    """Block costs in the precision of `dense`, beside which the stacks are timed.

    Args:
        job: the delivery at work.
        dense: the dense model in the precision that is pruned for.

    Raises:
        BadInputError: a state-space model, or a profile without a peak for this precision.
    """
    refuse_mixers(job.shape, "a latency target")
    key, known = table_key(job.shape, job.workload), job.profile.latency_table
    if known is not None:
        if not job.measured or dense.precision in known.precisions((timed_metric(job.request.target),)):
            return known
        job.progress.note(
            f"note: the latency table of {job.profile.name} has nothing for {dense.precision}: one is measured here now"
        )
    if not job.measured:
        return roofline_table(job.profile, job.shape, job.workload, (dense.precision,))
    shallow = job.shape.with_layers(job.shape.layers[: table_depth(job.shape, dense.precision, job.threads)])
    wanted = list(designs(shallow, max(1, job.profile.width_multiple), whole_beside=shallow != job.shape))
    if shallow != job.shape:
        wanted.insert(0, Design("base", shallow.layers))
    folder = job.work / "stacks"
    with job.progress.phase(f"latency table: building {len(wanted)} stacks"):
        stacks = []
        for done, design in enumerate(wanted):
            stacks.append(
                build_stack(
                    job.shape,
                    design,
                    folder / str(done),
                    precision=dense.precision,
                    format=job.request.format,
                    group_size=job.profile.int4_group,
                    seed=job.request.seed,
                )
            )
            job.progress.update(done + 1, len(wanted), design.name)
    with job.progress.phase("latency table: measuring"), job.memory.paused():
        ruler = Ruler(job.profile, job.workload, dense.precision, threads=job.threads, progress=job.progress)
        times = time_stacks(ExportedStack(job.shape.layers, dense.directory), stacks, ruler, total=len(stacks))
    shutil.rmtree(folder)
    return LatencyTable(key, "measured", times.costs(dense.precision))
