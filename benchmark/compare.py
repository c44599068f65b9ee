"""Compares measurements that were taken in turns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

from prune_export.manifest import Measurement, percentile

DRIFT_LIMIT = 0.03


@dataclass(frozen=True)
class PairedRatio:
    """How much longer (above 1) or shorter one artifact takes than another.

    Attributes:
        per_round: ratio of each round, the two having run in turns or one after the other.
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

    @property
    def standard_error(self) -> float:
        """Of `ratio`, relative to it; infinite for one round.

        sqrt(pi / 2n) standard deviations (large-sample variance of a median), those estimated from the quartiles, so
        that a burst in one round doesn't count.  Interpolated quartiles of few values are closer than the 1.35 standard
        deviations of many: normal scores (Blom 1958) say how close.
        """
        count = len(self.per_round)
        if count < 2:
            return math.inf
        scores = tuple(NormalDist().inv_cdf((rank - 0.375) / (count + 0.25)) for rank in range(1, count + 1))
        apart = percentile(scores, 75) - percentile(scores, 25)
        return self.middle_spread / apart * math.sqrt(math.pi / (2 * count))

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f} over {len(self.per_round)} rounds)"


def per_round(measurement: Measurement, metric: str, statistic: str) -> tuple[float, ...]:
    """A percentile of each round (process) in seconds; a round is one of `len(load_s)` equal parts of the samples."""
    return tuple(turn for (turn,) in per_turn(measurement, metric, statistic, turns=1))


def per_turn(
    measurement: Measurement, metric: str, statistic: str, *, turns: int | None = None
) -> list[tuple[float, ...]]:
    """A percentile of each turn of each round in seconds; `turns` is the measurement's own unless told."""
    samples = measurement.samples(metric)
    rounds = len(measurement.load_s)
    repeats = len(measurement.ttft_s) // rounds
    size = len(samples) // rounds
    if size * rounds != len(samples) or size % repeats:
        raise ValueError(f"{len(samples)} samples do not divide into {rounds} rounds of {repeats} repeats")
    count = turns or measurement.turns
    bounds = [size // repeats * (repeats * turn // count) for turn in range(count + 1)]
    return [
        tuple(percentile(samples[begin + low : begin + high], float(statistic[1:])) for low, high in pairwise(bounds))
        for begin in range(0, len(samples), size)
    ]


def paired_figures(
    first: Measurement, second: Measurement, metric: str, statistic: str
) -> tuple[tuple[float, float], ...]:
    """Of each round, the figures (first, second) in seconds of the turn whose ratio is the median one.

    In a turn the two ran in step, so a burst or a change of speed is in both figures or decides nothing.  Of an
    even number of turns it is the one with the smaller first / second of the two in the middle.  Where one has further
    rounds (`measure_together`), those are left out.
    """
    turns = first.turns if first.turns == second.turns else 1
    ours, theirs = (per_turn(item, metric, statistic, turns=turns) for item in (first, second))
    rounds = list(zip(ours, theirs, strict=False))
    return tuple(
        sorted(zip(*pair, strict=True), key=lambda figures: figures[0] / figures[1])[(turns - 1) // 2]
        for pair in rounds
    )


def paired_ratio(first: Measurement, second: Measurement, metric: str, statistic: str) -> PairedRatio:
    """Round by round, `first` divided by `second` (`paired_figures`); the two come from one `measure_together`."""
    return PairedRatio(tuple(ours / theirs for ours, theirs in paired_figures(first, second, metric, statistic)))


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
