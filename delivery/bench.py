"""Measures variants together, so that a drifting machine hits all of them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prune_export.benchmark.compare import drift_warning
from prune_export.benchmark.measure import Rounds, Subject, measure_together, standing_together
from prune_export.benchmark.timing import samples_for
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.resources import free_memory
from prune_export.delivery.summary import timed_metric
from prune_export.delivery.verdict import Verdict, figure_of, rounds_error
from prune_export.delivery.verdict import judged as judgement
from prune_export.manifest import Measurement
from prune_export.target import LATENCIES, Target, Workload

ROUNDS = 4  # as many loaded the one way as the other
# While the standard error of what a compared pair's rounds say is larger, others follow: the correction aims 1.5% below
# the limit, and as far below the closing measurement must find it again.
LARGEST_ERROR = 0.01
MOST_ROUNDS = 10
_SMALL_BYTES = 256 << 20  # weights of artifacts that may stand in memory together whatever the model is


def measured(
    job: Job,
    variants: Sequence[Variant],
    *,
    title: str,
    rounds: int = ROUNDS,
    sample_memory: bool = False,
    judged: bool = False,
) -> list[Variant]:
    """The same variants with timings from interleaved fresh processes; unchanged where the host is not the device.

    Args:
        job: the delivery at work.
        variants: the first is the baseline whose drift is watched.
        title: of the progress phase.
        rounds: processes a variant.
        sample_memory: a further, untimed process samples the peak memory of each variant where it is not known yet.
        judged: the second will be judged against the first: more rounds where theirs disagree.
    """
    if not job.measured:
        return list(variants)
    # As much as the dense model in fp32 holds: a run's own limit is thrice that, and its parent holds one.
    together = max(4 * job.shape.parameters(), _SMALL_BYTES)
    free_memory()  # what is left of exports and searches would stand beside the measured processes
    with job.progress.phase(title), job.memory.paused():
        results = measure_together(
            [Subject(item.directory, item.precision, sample_memory=not _known_peak(item)) for item in variants],
            profile=job.profile,
            workload=job.workload,
            rounds=Rounds(
                rounds,
                settled=(lambda found: _error(job, found) <= LARGEST_ERROR) if judged else None,
                most=MOST_ROUNDS if judged else rounds,
                samples=max(samples_wanted(each, job.workload) for each in (job.request.target, *job.request.further)),
            ),
            threads=job.threads,
            sample_memory=sample_memory,
            together_bytes=together,
            progress=job.progress,
        )
    if judged and (error := _error(job, results)) > LARGEST_ERROR:
        job.progress.note(
            f"note: after {len(results[0].load_s)} rounds the standard error of what they are judged by is {error:.1%} "
            f"(limit {LARGEST_ERROR:.0%}): the machine is busy"
        )
    results = [_with_peak(result, variant) for result, variant in zip(results, variants, strict=True)]
    groups = standing_together([item.directory for item in variants], together, device=job.profile.device)
    job.memory.add(max(sum(results[index].peak_rss_bytes for index in group) for group in groups))
    # One that stands alone is the dense model, which is measured again beside every plan.
    if len(results) > 1 and (warning := drift_warning(results[0], timed_metric(job.request.target))):
        job.progress.note(f"note: {warning}")
    return [replace(variant, measurement=result) for variant, result in zip(variants, results, strict=True)]


def samples_wanted(target: Target, workload: Workload) -> int:
    """How many samples of later tokens a process should leave for a target; few for one that is not of latency."""
    if target.metric not in LATENCIES:
        return samples_for("tpot", "p50", workload)
    return samples_for(target.metric, target.statistic, workload)


def figure(job: Job, variant: Variant) -> float:
    """What a variant's measurement says of the target's metric over all samples: seconds, or bytes for memory."""
    assert variant.measurement is not None, f"{variant.name} {variant.precision} was not measured"
    return figure_of(job.request.target, variant.measurement)


def verdict(job: Job, baseline: Variant, variant: Variant) -> Verdict:
    """Whether a variant meets the target; both come from one call of `measured`."""
    assert baseline.measurement is not None
    assert variant.measurement is not None
    return judgement(job.request.target, baseline=baseline.measurement, variant=variant.measurement)


def standard_error(job: Job, baseline: Variant, variant: Variant) -> float:
    """Of what a compared pair is judged by, relative to it; both come from one call of `measured`."""
    assert baseline.measurement is not None
    assert variant.measurement is not None
    return _error(job, (baseline.measurement, variant.measurement))


def _error(job: Job, found: Sequence[Measurement]) -> float:
    return rounds_error(job.request.target, baseline=found[0], variant=found[1])


def _known_peak(variant: Variant) -> int:
    return variant.measurement.peak_rss_bytes if variant.measurement is not None else 0


def _with_peak(result: Measurement, variant: Variant) -> Measurement:
    """The memory sampled earlier, where it was not sampled again."""
    earlier = variant.measurement
    if result.peak_rss_bytes or earlier is None:
        return result
    return replace(result, peak_rss_bytes=earlier.peak_rss_bytes, rss_rise_bytes=earlier.rss_rise_bytes)
