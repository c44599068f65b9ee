"""How much faster one of two models is, to a fraction of a percent: turn by turn in one process, order swapped.

Their memory is in huge pages where the system has them (`huge_pages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prune_export.benchmark.process import panel_request, run_panel
from prune_export.benchmark.stacks import midmean
from prune_export.profiles import DeviceProfile
from prune_export.target import Workload

_RESAMPLES = 2000
_SEED = 20261129


@dataclass(frozen=True)
class TurnRatio:
    """Time per output token of a model, and of another one divided by it.

    Attributes:
        seconds: (of the first, of the second), interquartile means of the turns' medians.
        per_turn: second / first of each turn, the two having run one right after the other.
        processes: that the turns come from.
    """

    seconds: tuple[float, float]
    per_turn: tuple[float, ...]
    processes: int

    @property
    def ratio(self) -> float:
        """Interquartile mean over the turns."""
        return midmean(self.per_turn)

    @property
    def interval(self) -> tuple[float, float]:
        """95% of what the ratio is for turns drawn from these with replacement (bootstrap percentiles, Efron 1979)."""
        return bootstrap(self.per_turn)

    def __str__(self) -> str:
        low, high = self.interval
        count = f"{len(self.per_turn)} turns in {self.processes} processes"
        return f"{self.ratio:.3f} (95%: {low:.3f} to {high:.3f}, {count})"


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """2.5% and 97.5% of the interquartile means of resampled values."""
    random = np.random.default_rng(_SEED)
    drawn = random.choice(np.asarray(values), (_RESAMPLES, len(values)))
    low, high = np.percentile([midmean(row) for row in drawn.tolist()], (2.5, 97.5))
    return float(low), float(high)


def compare_turns(
    first: Path,
    second: Path,
    *,
    profile: DeviceProfile,
    workload: Workload,
    precision: str,
    threads: int = 0,
    seconds: float = 60.0,
    processes: int = 2,
) -> TurnRatio:
    """Times two models turn by turn; every other process loads and runs them in the other order.

    Args:
        first: a model of any runtime.
        second: another one of the same vocabulary.
        profile: names the device.
        workload: of each turn.
        precision: of both.
        threads: of the runtime; 0 takes the profile's.
        seconds: for each process, loading included.
        processes: fresh ones.

    Raises:
        BadInputError, PruneExportError: as a session's `load`.
    """
    of_first: list[float] = []
    of_second: list[float] = []
    for number in range(processes):
        order = (first, second) if number % 2 == 0 else (second, first)
        request = panel_request(
            order, profile=profile, workload=workload, precision=precision, threads=threads, seconds=seconds
        )
        reply = run_panel(request)
        turns = reply.tpot_s if number % 2 == 0 else reply.tpot_s[::-1]
        of_first += turns[0]
        of_second += turns[1]
    ratios = tuple(b / a for a, b in zip(of_first, of_second, strict=True))
    return TurnRatio((midmean(of_first), midmean(of_second)), ratios, processes)
