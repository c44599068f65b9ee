"""Compares measurements that were taken in turns."""

from __future__ import annotations

from dataclasses import dataclass

from prune_export.manifest import Measurement, percentile

DRIFT_LIMIT = 0.03


@dataclass(frozen=True)
class PairedRatio:
    """How much longer (above 1) or shorter one artifact takes than another.

    Attributes:
        per_round: ratio of each round, the two having run one after the other.
    """

    per_round: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over the rounds."""
        return percentile(self.per_round, 50)

    @property
    def low(self) -> float:
        """Smallest ratio of a round."""
        return min(self.per_round)

    @property
    def high(self) -> float:
        """Largest ratio of a round."""
        return max(self.per_round)

    @property
    def middle_spread(self) -> float:
        """Distance of the upper from the lower quartile, relative to the lower: bursts in single rounds don't count."""
        return percentile(self.per_round, 75) / percentile(self.per_round, 25) - 1.0

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f} over {len(self.per_round)} rounds)"


def per_round(measurement: Measurement, metric: str, statistic: str) -> tuple[float, ...]:
    """A percentile of each round (process) in seconds; a round is one of `len(load_s)` equal parts of the samples."""
    samples = measurement.samples(metric)
    rounds = len(measurement.load_s)
    size = len(samples) // rounds
    if size * rounds != len(samples):
        raise ValueError(f"{len(samples)} samples do not divide into {rounds} rounds")
    parts = (samples[index * size : (index + 1) * size] for index in range(rounds))
    return tuple(percentile(part, float(statistic[1:])) for part in parts)


def paired_ratio(first: Measurement, second: Measurement, metric: str, statistic: str) -> PairedRatio:
    """Round by round, `first` divided by `second`; the two come from one `measure_together`.

    Raises:
        ValueError: they have different numbers of rounds.
    """
    pairs = zip(per_round(first, metric, statistic), per_round(second, metric, statistic), strict=True)
    return PairedRatio(tuple(above / below for above, below in pairs))


def drift(baseline: Measurement, metric: str, statistic: str = "p50") -> float:
    """How far the machine moved: the widest relative distance of a round of the baseline from its first round."""
    values = per_round(baseline, metric, statistic)
    return max(abs(value / values[0] - 1.0) for value in values)


def drift_warning(baseline: Measurement, metric: str, statistic: str = "p50") -> str:
    """One line if the baseline moved by more than 3%, else empty."""
    moved = drift(baseline, metric, statistic)
    if moved <= DRIFT_LIMIT:
        return ""
    return (
        f"the baseline's own {metric} {statistic} moved by {moved:.1%} over {len(baseline.load_s)} rounds "
        f"(limit {DRIFT_LIMIT:.0%}): the machine is busy or throttling, trust the paired ratio alone"
    )
