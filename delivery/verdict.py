"""Whether a measured variant meets the target.

An absolute limit is compared with the variant's own percentile over all of its samples (in the loop at the run's speed:
`delivery/pace.py`).  A speed-up is a ratio, and the
machine drifts and has bursts: variant and baseline are compared turn by turn, a fraction of a second each; the median
turn speaks for its round (a pair of processes), and `PairedRatio` says what the rounds say together.
"""

from __future__ import annotations

from dataclasses import dataclass

from prune_export.benchmark.compare import PairedRatio, paired_figures, paired_ratio, per_round
from prune_export.manifest import Measurement, percentile
from prune_export.target import Target


@dataclass(frozen=True)
class Verdict:
    """A figure and the limit that it is compared with, in the target metric's unit.

    Attributes:
        figure: of the variant: over all samples, or for a speed-up the median of its rounds' deciding turns.
        limit: the target's, or for a speed-up what the baseline takes beside such a figure, by the ratio of all rounds,
            divided by the factor.
        speedups: for a speed-up: baseline / variant of each round.
    """

    figure: float
    limit: float
    speedups: tuple[float, ...] = ()

    @property
    def share(self) -> float:
        """The figure as a share of the limit."""
        return self.figure / self.limit

    @property
    def met(self) -> bool:
        """Within the limit."""
        return self.figure <= self.limit


def judged(target: Target, *, baseline: Measurement, variant: Measurement) -> Verdict:
    """The verdict on a variant that was measured in turns with the baseline.

    Args:
        target: of latency or memory.
        baseline: the dense model in the same precision.
        variant: what is judged.
    """
    if target.speedup is None:
        assert target.limit is not None
        return Verdict(figure_of(target, variant), target.limit)
    pairs = paired_figures(baseline, variant, target.metric, target.statistic)
    found = PairedRatio(tuple(base / figure for base, figure in pairs))
    figure = percentile(tuple(figure for _, figure in pairs), 50)
    return Verdict(figure, figure * found.ratio / target.speedup, found.per_round)


def rounds_error(target: Target, *, baseline: Measurement, variant: Measurement) -> float:
    """Standard error of what `judged` decides by, relative to it; of figures over all samples that of their rounds.

    Zero for memory, which is sampled once.
    """
    if target.metric == "memory":
        return 0.0
    metric = target.metric if target.metric != "parameters" else "tpot"
    if target.speedup is not None:
        return paired_ratio(baseline, variant, metric, target.statistic).standard_error
    return PairedRatio(per_round(variant, metric, target.statistic)).standard_error


def figure_of(target: Target, measurement: Measurement) -> float:
    """What a measurement says of the target's metric over all samples: seconds, or bytes for a memory target."""
    if target.metric == "memory":
        return float(measurement.peak_rss_bytes)
    metric = target.metric if target.metric != "parameters" else "tpot"
    return measurement.percentile(metric, target.statistic)
