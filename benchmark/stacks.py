"""Times stacks of blocks and makes a latency table of them; works on exported files, so it needs no torch.

The first stack is timed beside every few others, turn by turn in one process, and the others' times are taken relative
to it: a machine that is slower for a second then changes both, and one that is slower for good changes nothing.  Their
memory is in huge pages where the system has them (`huge_pages`), so none is faster for the pages it got.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean, median

from prune_export.benchmark.panel_worker import PanelRequest, tails_of
from prune_export.benchmark.process import panel_request, run_panel
from prune_export.benchmark.table_fit import Stack, fit_costs
from prune_export.profiles import DeviceProfile, PhaseCosts
from prune_export.profiles.latency import Phase, TimedStack
from prune_export.progress import Progress
from prune_export.shape import LayerShape
from prune_export.target import Workload

PHASES: tuple[Phase, ...] = ("prefill", "decode")
Tails = dict[Phase, dict[str, float]]  # phase to "p90" and "p99" as multiples of the median
AT_ONCE = 4  # stacks beside the first in one process
_ALONE_S = 5.0  # for a process with the first stack by itself, loading included; two turns at least


@dataclass(frozen=True)
class ExportedStack:
    """A model of some layers in one precision, exported.

    Attributes:
        layers: its blocks.
        directory: holds the IR or ONNX file.
    """

    layers: tuple[LayerShape, ...]
    directory: Path


@dataclass(frozen=True)
class Ruler:
    """How stacks are timed.

    Attributes:
        profile: names runtime and device.
        workload: what is timed.
        precision: of the weights.
        threads: of the runtime.
        rounds: fresh processes a group of stacks, fewer where `most` would be exceeded.
        most: timings of a stack in a process, in all; 0 for any number.
        seconds: for each stack and process, loading included.
        budget_s: for everything, building included, in the place of `seconds`; 0 for none.
        alone: fresh processes that time the first stack by itself and without huge pages, as an artifact is: what its
            seconds are taken from, and with them all others'; 0 to take them from the groups.
        progress: is told the share done.
        discard: delete a stack's files, but for the base's, when it has been timed.
    """

    profile: DeviceProfile
    workload: Workload
    precision: str
    threads: int = 0
    rounds: int = 2
    most: int = 0
    seconds: float = 3.0
    budget_s: float = 0.0
    alone: int = 0
    progress: Progress | None = None
    discard: bool = False


@dataclass(frozen=True)
class StackTimes:
    """What a set of stacks took.

    Attributes:
        layers: of each stack, the first one being the base.
        seconds: phase to the time of each stack, on the base's scale.
        measurements: how often a stack was timed, in turns, in a process.
        versions: package to version, as the processes reported.
        tails: phase to p90 and p99 of the largest stack as multiples of its median; empty where none were reported.
    """

    layers: tuple[tuple[LayerShape, ...], ...]
    seconds: dict[Phase, tuple[float, ...]]
    measurements: int
    versions: dict[str, str]
    tails: Tails = field(default_factory=dict)

    def stacks(self, phase: Phase) -> list[Stack]:
        """The equations of a phase."""
        return [Stack(layers, seconds) for layers, seconds in zip(self.layers, self.seconds[phase], strict=True)]

    def timed(self, precision: str) -> tuple[TimedStack, ...]:
        """Every stack with what it took, for a record."""
        return tuple(
            TimedStack(
                precision,
                tuple(layer.kv_heads for layer in layers),
                tuple(layer.mlp_width for layer in layers),
                prefill_s=self.seconds["prefill"][index],
                decode_s=self.seconds["decode"][index],
            )
            for index, layers in enumerate(self.layers)
        )

    def costs(self, precision: str) -> tuple[PhaseCosts, ...]:
        """Both phases fitted.

        Raises:
            BadInputError: as `fit_costs`.
        """
        found = []
        for phase in PHASES:
            costs = fit_costs(self.stacks(phase), phase=phase, precision=precision)
            tails = self.tails.get(phase, {})
            found.append(replace(costs, p90=round(tails.get("p90", 0.0), 4), p99=round(tails.get("p99", 0.0), 4)))
        return tuple(found)


def time_stacks(base: ExportedStack, others: Iterable[ExportedStack], ruler: Ruler, *, total: int) -> StackTimes:
    """Times every stack, the base again beside each few of the others.

    Args:
        base: what the others are timed beside.
        others: taken a few at a time, so an iterator may build them when they are wanted.
        ruler: how.
        total: how many others there are, for the progress and the budget.

    Raises:
        BadInputError: a profile that cannot be measured here, or as a session's `load`.
        PruneExportError: the worker died.
    """
    clock, waiting = _Clock(ruler, total), iter(others)
    layers, measurements = [base.layers], ruler.alone
    versions: dict[str, str] = {}
    of_base = _alone(base, ruler)
    ratios: dict[Phase, list[float]] = {phase: [] for phase in PHASES}
    tails: list[tuple[tuple[LayerShape, ...], Tails]] = []
    while group := clock.built(waiting):
        rounds = clock.rounds(len(group), measurements)
        told = partial(_tell, ruler, len(layers) - 1, len(group) / rounds, total)
        turns, found_tails, versions = _turns((base, *group), ruler, rounds, clock.seconds(len(group), rounds), told)
        tails += zip((stack.layers for stack in (base, *group)), found_tails, strict=True)
        layers += [stack.layers for stack in group]
        measurements += rounds * (1 + len(group))
        for phase in PHASES:
            first, *rest = turns[phase]
            if not ruler.alone:
                of_base[phase] += first
            ratios[phase] += [midmean([a / b for a, b in zip(found, first, strict=True)]) for found in rest]
        if ruler.discard:
            for stack in group:
                shutil.rmtree(stack.directory)
    seconds: dict[Phase, tuple[float, ...]] = {}
    for phase in PHASES:
        scale = midmean(of_base[phase])
        seconds[phase] = (scale, *(scale * ratio for ratio in ratios[phase]))
    return StackTimes(tuple(layers), seconds, measurements, versions, _of_largest(tails))


def _alone(base: ExportedStack, ruler: Ruler) -> dict[Phase, list[float]]:
    """Phase to the turns of a stack by itself, in seconds; none for no such processes."""
    found: dict[Phase, list[float]] = {phase: [] for phase in PHASES}
    for _ in range(ruler.alone):
        reply = run_panel(_request([base], ruler, _ALONE_S, huge_pages=False))
        found["prefill"] += reply.ttft_s[0]
        found["decode"] += reply.tpot_s[0]
    return found


def _request(stacks: Sequence[ExportedStack], ruler: Ruler, seconds: float, *, huge_pages: bool) -> PanelRequest:
    return panel_request(
        (stack.directory for stack in stacks),
        profile=ruler.profile,
        workload=ruler.workload,
        precision=ruler.precision,
        threads=ruler.threads,
        seconds=seconds,
        huge_pages=huge_pages,
    )


def _of_largest(known: Sequence[tuple[tuple[LayerShape, ...], Tails]]) -> Tails:
    """The tails of the stack nearest to the dense model, the median of the groups that it was timed in."""
    if not known or not all(tails for _, tails in known):
        return {}
    largest = max((layers for layers, _ in known), key=lambda stack: sum(one.kv_heads + one.mlp_width for one in stack))
    found = [tails for layers, tails in known if layers == largest]
    return {
        phase: {name: median(tails[phase][name] for tails in found) for name in found[0][phase]} for phase in PHASES
    }


def _tell(ruler: Ruler, before: int, each: float, total: int, processes: int) -> None:
    """Reports stacks timed, those of a group by its processes done, `each` of which counts for so many."""
    if ruler.progress is not None:
        done = before + each * processes
        ruler.progress.update(done, total, f"{int(done)} of {total} timed")


def midmean(values: Sequence[float]) -> float:
    """Tukey's interquartile mean: bursts of other work don't count, and the middle half is averaged."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return fmean(ordered[cut : len(ordered) - cut])


class _Clock:
    """Shares the time of a ruler among groups of stacks.

    Args:
        ruler: with a budget or a time for each stack.
        total: stacks in all.
    """

    def __init__(self, ruler: Ruler, total: int) -> None:
        self._ruler = ruler
        self._left = total
        self._built = 0
        self._building_s = 0.0
        self._begun = time.monotonic()

    def built(self, waiting: Iterator[ExportedStack]) -> list[ExportedStack]:
        """The next few stacks; asking for them may build them."""
        asked = time.monotonic()
        group = list(islice(waiting, AT_ONCE))
        self._building_s += time.monotonic() - asked
        self._built += len(group)
        self._left = max(0, self._left - len(group))
        return group

    def rounds(self, stacks: int, timings: int) -> int:
        """Processes for a group of so many stacks beside the base, after so many timings."""
        if not self._ruler.most:
            return self._ruler.rounds
        wanted = 1 + stacks + self._left + math.ceil(self._left / AT_ONCE)
        return max(1, min(self._ruler.rounds, (self._ruler.most - timings) // wanted))

    def seconds(self, stacks: int, rounds: int) -> float:
        """For each of `rounds` processes with so many stacks beside the base."""
        if not self._ruler.budget_s:
            return self._ruler.seconds * (1 + stacks)
        to_build = self._left * self._building_s / self._built
        spare = self._ruler.budget_s - (time.monotonic() - self._begun) - to_build
        return spare / rounds / (1 + math.ceil(self._left / AT_ONCE))


def _turns(
    stacks: Sequence[ExportedStack], ruler: Ruler, rounds: int, seconds: float, timed: Callable[[int], None]
) -> tuple[dict[Phase, list[list[float]]], list[Tails], dict[str, str]]:
    """Phase to the turns of each stack, in seconds, from one process a round; their tails; the versions of what ran.

    What is loaded first in a process was found slower where memory comes in small pages, so each stack gets several
    places.
    """
    turns: dict[Phase, list[list[float]]] = {phase: [[] for _ in stacks] for phase in PHASES}
    of_tokens: list[list[dict[str, float]]] = [[] for _ in stacks]
    versions: dict[str, str] = {}
    for number in range(rounds):
        shift = round(number * len(stacks) / rounds)
        order = [(place + shift) % len(stacks) for place in range(len(stacks))]
        reply = run_panel(_request([stacks[index] for index in order], ruler, seconds, huge_pages=True))
        timed(number + 1)
        for phase, samples in zip(PHASES, (reply.ttft_s, reply.tpot_s), strict=True):
            for index, new in zip(order, samples, strict=True):
                turns[phase][index] += new
        for index, tails in zip(order, reply.token_tails, strict=False):  # none from a device that tells none
            of_tokens[index].append(tails)
        versions = reply.versions
    return turns, [_tails(*pair) for pair in zip(turns["prefill"], of_tokens, strict=True)], versions


def _tails(first_tokens: Sequence[float], of_tokens: Sequence[dict[str, float]]) -> Tails:
    """Of one stack, over its processes: of all first tokens, and the mean of the processes' later ones."""
    if not of_tokens:
        return {}
    later = {name: fmean(found[name] for found in of_tokens) for name in of_tokens[0]}
    return {"prefill": tails_of(first_tokens), "decode": later}
