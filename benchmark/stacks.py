"""Times stacks of blocks and makes a latency table of them; works on exported files, so it needs no torch.

The first stack is timed beside every few others, turn by turn in one process, and the others' times are taken relative
to it: a machine that is slower for a second then changes both, and one that is slower for good changes nothing.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean

from prune_export.benchmark.panel_worker import PanelRequest
from prune_export.benchmark.process import run_panel
from prune_export.benchmark.roofline import roofline_table
from prune_export.benchmark.table_fit import Stack, fit_costs
from prune_export.benchmark.threads import checked_threads
from prune_export.errors import BadInputError
from prune_export.profiles import DeviceProfile, HeldOutError, PhaseCosts
from prune_export.profiles.latency import Phase
from prune_export.progress import Progress
from prune_export.shape import LayerShape, ModelShape
from prune_export.target import Workload

PHASES: tuple[Phase, ...] = ("prefill", "decode")
_AT_ONCE = 4  # stacks beside the first in one process
_NOISE_SAMPLES = 4  # copies of the base beside itself


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
        rounds: fresh processes a group of stacks.
        seconds: for each stack and process, loading included.
        budget_s: for everything, building included, in the place of `seconds`; 0 for none.
        progress: is told the share done.
        discard: delete a stack's files, but for the base's, when it has been timed.
    """

    profile: DeviceProfile
    workload: Workload
    precision: str
    threads: int = 0
    rounds: int = 2
    seconds: float = 6.0
    budget_s: float = 0.0
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
    """

    layers: tuple[tuple[LayerShape, ...], ...]
    seconds: dict[Phase, tuple[float, ...]]
    measurements: int
    versions: dict[str, str]

    def stacks(self, phase: Phase) -> list[Stack]:
        """The equations of a phase."""
        return [Stack(layers, seconds) for layers, seconds in zip(self.layers, self.seconds[phase], strict=True)]

    def costs(self, precision: str) -> tuple[PhaseCosts, ...]:
        """Both phases fitted.

        Raises:
            BadInputError: as `fit_costs`.
        """
        return tuple(fit_costs(self.stacks(phase), phase=phase, precision=precision) for phase in PHASES)


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
    begun = time.monotonic()
    of_base: dict[Phase, list[float]] = {phase: [] for phase in PHASES}
    layers = [base.layers]
    ratios: dict[Phase, list[float]] = {phase: [] for phase in PHASES}
    waiting, measurements, versions, building_s = iter(others), 0, {}, 0.0
    while True:
        asked = time.monotonic()
        group = list(islice(waiting, _AT_ONCE))
        building_s += time.monotonic() - asked
        if not group:
            break
        layers += [stack.layers for stack in group]
        seconds = ruler.seconds * (1 + len(group))
        if ruler.budget_s:
            left = max(0, total - len(layers) + 1)  # to build, each as long as those before
            spare = ruler.budget_s - (time.monotonic() - begun) - left * building_s / (len(layers) - 1)
            seconds = spare / ruler.rounds / (1 + math.ceil(left / _AT_ONCE))
        together = (base, *group)
        turns: dict[Phase, list[list[float]]] = {phase: [[] for _ in together] for phase in PHASES}
        for number in range(ruler.rounds):
            # What is loaded first in a process was found a few percent slower: each stack gets several places.
            shift = round(number * len(together) / ruler.rounds)
            order = [(place + shift) % len(together) for place in range(len(together))]
            reply = run_panel(_request([together[index] for index in order], ruler, seconds))
            for phase, samples in zip(PHASES, (reply.ttft_s, reply.tpot_s), strict=True):
                for index, new in zip(order, samples, strict=True):
                    turns[phase][index] += new
            measurements += len(together)
            versions = reply.versions
        for phase in PHASES:
            first, *rest = turns[phase]
            of_base[phase] += first
            ratios[phase] += [midmean([a / b for a, b in zip(found, first, strict=True)]) for found in rest]
        if ruler.discard:
            for stack in group:
                shutil.rmtree(stack.directory)
        if ruler.progress is not None:
            ruler.progress.update(len(layers) - 1, total, f"{len(layers) - 1} of {total} timed")
    seconds_of: dict[Phase, tuple[float, ...]] = {}
    for phase in PHASES:
        scale = midmean(of_base[phase])
        seconds_of[phase] = (scale, *(scale * ratio for ratio in ratios[phase]))
    return StackTimes(tuple(layers), seconds_of, measurements, versions)


def midmean(values: Sequence[float]) -> float:
    """Tukey's interquartile mean: bursts of other work don't count, and the middle half is averaged."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return fmean(ordered[cut : len(ordered) - cut])


def held_out_errors(
    costs: Sequence[PhaseCosts],
    base: ExportedStack,
    others: Iterable[ExportedStack],
    shape: ModelShape,
    ruler: Ruler,
    *,
    total: int,
) -> tuple[HeldOutError, ...]:
    """Errors of a table on whole models that it was not fitted to, and the noise of the base against itself.

    Args:
        costs: of both phases.
        base: what the others are timed beside.
        others: models to predict; as for `time_stacks`.
        shape: the dense model, for the baseline that counts bytes.
        ruler: how they are timed.
        total: how many others there are.
    """
    times = time_stacks(base, others, ruler, total=total)
    again = time_stacks(base, [base] * _NOISE_SAMPLES, replace(ruler, discard=False, progress=None), total=1)
    estimates = _roofline(ruler, shape)
    return tuple(
        _held_out(found, times, again.seconds[found.phase], shape, estimates.get(found.phase)) for found in costs
    )


def _roofline(ruler: Ruler, shape: ModelShape) -> dict[Phase, PhaseCosts]:
    """What the profile's figures alone give; nothing where they don't cover the precision."""
    try:
        costs = roofline_table(ruler.profile, shape, ruler.workload, (ruler.precision,)).costs
    except BadInputError:
        return {}
    return {found.phase: found for found in costs}


def _request(stacks: Sequence[ExportedStack], ruler: Ruler, seconds: float) -> PanelRequest:
    return PanelRequest(
        directories=tuple(str(stack.directory) for stack in stacks),
        precision=ruler.precision,
        threads=checked_threads(ruler.threads or ruler.profile.threads),
        device=ruler.profile.device,
        workload=ruler.workload,
        seconds=seconds,
    )


def _held_out(
    costs: PhaseCosts, times: StackTimes, again: tuple[float, ...], shape: ModelShape, estimate: PhaseCosts | None
) -> HeldOutError:
    base, *measured = times.seconds[costs.phase]
    layers = times.layers[1:]
    # The table's own scale may be of another hour: what it says of the base is what was measured of it here.
    scale = base / costs.seconds(times.layers[0])
    signed = [scale * costs.seconds(stack) / seconds - 1.0 for stack, seconds in zip(layers, measured, strict=True)]
    errors = sorted(map(abs, signed))
    dense = _bytes_read(shape, times.layers[0])
    by_bytes = [base * _bytes_read(shape, stack) / dense for stack in layers]
    guesses = [] if estimate is None else [estimate.seconds(stack) for stack in times.layers]
    return HeldOutError(
        phase=costs.phase,
        precision=costs.precision,
        models=len(errors),
        mean=fmean(errors),
        p95=errors[min(len(errors) - 1, round(0.95 * (len(errors) - 1)))],
        worst=errors[-1],
        bytes_mean=_mean_error(by_bytes, measured),
        noise=fmean(abs(seconds / again[0] - 1.0) for seconds in again[1:]),
        errors=tuple(round(error, 4) for error in signed),
        roofline_mean=_mean_error(guesses[1:], measured),
        roofline_ratio_mean=_mean_error([base * guess / guesses[0] for guess in guesses[1:]], measured),
    )


def _mean_error(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean relative error; 0 where nothing was predicted."""
    return fmean([abs(a / b - 1.0) for a, b in zip(predicted, measured, strict=True)]) if predicted else 0.0


def _bytes_read(shape: ModelShape, layers: tuple[LayerShape, ...]) -> float:
    """Weights that one token reads, in parameters: blocks and LM head."""
    smaller = shape.with_layers(layers)
    untied = 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size
    return float(smaller.parameters() - untied)
