"""Measures variants together, so that a drifting machine hits all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prune_export.benchmark.compare import drift_warning
from prune_export.benchmark.measure import Subject, measure_together
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.summary import timed_metric

ROUNDS = 3


def measured(
    job: Job, variants: Sequence[Variant], *, title: str, rounds: int = ROUNDS, sample_memory: bool = False
) -> list[Variant]:
    """The same variants with timings from interleaved fresh processes; unchanged where the host is not the device.

    Args:
        job: the delivery at work.
        variants: the first is the baseline whose drift is watched.
        title: of the progress phase.
        rounds: processes a variant.
        sample_memory: a further, untimed process a variant samples the peak memory.
    """
    if not job.measured:
        return list(variants)
    with job.progress.phase(title), job.memory.paused():
        results = measure_together(
            [Subject(variant.directory, variant.precision) for variant in variants],
            profile=job.profile,
            workload=job.workload,
            rounds=rounds,
            threads=job.threads,
            sample_memory=sample_memory,
            progress=job.progress,
        )
    job.memory.add(max(result.peak_rss_bytes for result in results))
    if warning := drift_warning(results[0], timed_metric(job.request.target)):
        job.progress.note(f"note: {warning}")
    return [replace(variant, measurement=result) for variant, result in zip(variants, results, strict=True)]


def figure(job: Job, variant: Variant) -> float:
    """What a variant's measurement says of the target's metric: seconds, or bytes for a memory target."""
    target, measurement = job.request.target, variant.measurement
    assert measurement is not None, f"{variant.name} {variant.precision} was not measured"
    if target.metric == "memory":
        return float(measurement.peak_rss_bytes)
    return measurement.percentile(timed_metric(target), target.statistic)
