"""How fast the machine is at the moment, by the dense model that is measured beside everything else.

A machine's speed drifts, by several percent within minutes where others share it.  A speed-up does not notice; a limit
in seconds is to hold at the speed of the whole run, not at that of the minute in which a plan was tried.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from prune_export.delivery.summary import timed_metric
from prune_export.delivery.verdict import Verdict
from prune_export.manifest import FurtherTarget, Measurement
from prune_export.target import LATENCIES, Target


class Pace:
    """The dense model's latency in each of a run's measurements.

    Args:
        target: the one that drives; of one that isn't a latency, the pace is that of the latency shown for it.
        earlier: figures in seconds of measurements before this one.
    """

    def __init__(self, target: Target, earlier: tuple[float, ...] = ()) -> None:
        self._metric, self._statistic = timed_metric(target), target.statistic
        self._figures = list(earlier)

    def add(self, dense: Measurement) -> float:
        """The dense model's figure in seconds in a further measurement, which counts from now on."""
        self._figures.append(dense.percentile(self._metric, self._statistic))
        return self._figures[-1]

    @property
    def now(self) -> float:
        """What the dense model took in the last measurement, as a share of the median over all of them."""
        return self._figures[-1] / median(self._figures)


def at_pace(target: Target, verdict: Verdict, now: float) -> Verdict:
    """A verdict with the figure that a limit in seconds is held against at the run's speed; any other as it is.

    Args:
        target: that was judged.
        verdict: by a measurement beside the dense model.
        now: `Pace.now` of that measurement.
    """
    return replace(verdict, figure=steady(target, verdict.figure, now))


def steady(target: Target, figure: float, now: float) -> float:
    """A figure at the run's speed; of a speed-up, which is a ratio, and of memory as it is."""
    return figure / now if target.speedup is None and target.metric in LATENCIES else figure


def further_at_pace(found: tuple[FurtherTarget, ...], now: float) -> tuple[FurtherTarget, ...]:
    """The same of the verdicts on other targets."""
    return tuple(replace(item, figure=steady(item.target, item.figure, now)) for item in found)
