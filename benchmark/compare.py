"""Compares measurements that were taken in turns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prune_export.manifest import Measurement, percentile

DRIFT_LIMIT = 0.03


@dataclass(frozen=True)
class PairedRatio:
    """How much longer (above 1) or shorter one artifact takes than another.

    Every other round is loaded the other way round (`measure_together`), and what is loaded first can be slower in all
    of its round, by 1.5% on two virtual cores (docs/devices.md): the two kinds of rounds count alike.

    Attributes:
        per_round: ratio of each round, the two having run in turns or one after the other.
    """

    per_round: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over all pairs of rounds loaded the one and the other way of the geometric mean of the two ratios.

        The estimate of a shift between two samples by Hodges and Lehmann (1963, Ann. Math. Statist. 34:598), on
        logarithms: the order cancels in each pair, a burst in one of six rounds or more moves little, and of normal
        ratios it needs 1.0 to 1.1 times the rounds that a mean needs (a median 1.5 times, if the order plays no part).
        """
        return percentile(self._crossed(), 50)

    @property
    def low(self) -> float:
        """Smallest ratio of a round."""
        return min(self.per_round)

    @property
    def high(self) -> float:
        """Largest ratio of a round."""
        return max(self.per_round)

    @property
    def standard_error(self) -> float:
        """Of `ratio`, relative to it; infinite for fewer than three rounds.

        Half the distance of the two pairs of rounds that Lehmann's interval of one standard deviation (Nonparametrics
        1975, 2.5: the rank-sum statistic's) lies between.  A burst in one of eight rounds or more doesn't count; in
        fewer it does, and then further rounds are wanted.
        """
        count = len(self.per_round)
        if count < 3:
            return math.inf
        crossed = self._crossed()
        share = math.sqrt((count + 1) / (12 * len(crossed)))
        low, high = np.quantile(crossed, (max(0.5 - share, 0.0), min(0.5 + share, 1.0)), method="hazen")
        return float((high - low) / 2 / self.ratio)

    def _crossed(self) -> tuple[float, ...]:
        one, other = self.per_round[::2], self.per_round[1::2]
        return tuple(math.sqrt(a * b) for a in one for b in other) or one

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


def drift_warning(baseline: Measurement, metric: str, statistic: str = "p50", *, compared: bool = True) -> str:
    """One line if the baseline moved by more than 3%, else empty.

    Args:
        baseline: what is watched.
        metric, statistic: its figure.
        compared: something was measured beside it, so there is a paired ratio.
    """
    moved = drift(baseline, metric, statistic)
    if moved <= DRIFT_LIMIT:
        return ""
    whose, remedy = (
        ("the baseline's own", "trust the paired ratio alone")
        if compared
        else ("the model's", "measure again, or beside another one with --compare")
    )
    return (
        f"{whose} {metric} {statistic} moved by {moved:.1%} over {len(baseline.load_s)} rounds "
        f"(limit {DRIFT_LIMIT:.0%}): the machine is busy or throttling, {remedy}"
    )
