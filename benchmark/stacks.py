"""Times stacks of blocks and makes a latency table of them; works on exported files, so it needs no torch.

The first stack is timed beside every few others, round by round, and the others' times are taken relative to it: a
machine that is slower for a minute then changes both, and a machine that is slower for good changes nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median

from prune_export.benchmark.compare import paired_ratio
from prune_export.benchmark.measure import Subject, measure_together
from prune_export.benchmark.table_fit import Stack, fit_costs
from prune_export.manifest import Measurement
from prune_export.profiles import DeviceProfile, HeldOutError, PhaseCosts
from prune_export.profiles.latency import Phase
from prune_export.progress import Progress
from prune_export.shape import LayerShape, ModelShape
from prune_export.target import Workload

PHASES: tuple[Phase, ...] = ("prefill", "decode")
_METRIC = {"prefill": "ttft", "decode": "tpot"}
_AT_ONCE = 4  # stacks timed beside one run of the first: more of them and the machine has time to change


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
        rounds: fresh processes a stack.
        progress: is told the share done.
        discard: delete a stack's files, but for the base's, when it has been timed.
    """

    profile: DeviceProfile
    workload: Workload
    precision: str
    threads: int = 0
    rounds: int = 2
    progress: Progress | None = None
    discard: bool = False


@dataclass(frozen=True)
class StackTimes:
    """What a set of stacks took.

    Attributes:
        layers: of each stack, the first one being the base.
        seconds: phase to the median time of each stack, on the base's scale.
        measurements: timed processes.
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
        total: how many others there are, for the progress.

    Raises:
        BadInputError, PruneExportError: as `measure_together`.
    """
    of_base: list[Measurement] = []
    layers = [base.layers]
    ratios: dict[Phase, list[float]] = {phase: [] for phase in PHASES}
    waiting = iter(others)
    while group := list(islice(waiting, _AT_ONCE)):
        first, *rest = measure_together(
            [Subject(stack.directory, ruler.precision) for stack in (base, *group)],
            profile=ruler.profile,
            workload=ruler.workload,
            rounds=ruler.rounds,
            threads=ruler.threads,
            sample_memory=False,
        )
        of_base.append(first)
        layers += [stack.layers for stack in group]
        for phase in PHASES:
            ratios[phase] += [paired_ratio(found, first, _METRIC[phase], "p50").ratio for found in rest]
        if ruler.discard:
            for stack in group:
                shutil.rmtree(stack.directory)
        if ruler.progress is not None:
            ruler.progress.update(len(layers) - 1, total, f"{len(layers) - 1} of {total} timed")
    seconds: dict[Phase, tuple[float, ...]] = {}
    for phase in PHASES:
        scale = median(found.percentile(_METRIC[phase], "p50") for found in of_base)
        seconds[phase] = (scale, *(scale * ratio for ratio in ratios[phase]))
    return StackTimes(tuple(layers), seconds, ruler.rounds * (len(layers) - 1 + len(of_base)), of_base[0].versions)


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
    twice = time_stacks(base, [base], replace(ruler, discard=False, progress=None), total=1)
    times = time_stacks(base, others, ruler, total=total)
    return tuple(_held_out(found, times, twice.seconds[found.phase], shape) for found in costs)


def _held_out(costs: PhaseCosts, times: StackTimes, twice: tuple[float, ...], shape: ModelShape) -> HeldOutError:
    base, *measured = times.seconds[costs.phase]
    layers = times.layers[1:]
    # The table's own scale may be of another hour: what it says of the base is what was measured of it here.
    scale = base / costs.seconds(times.layers[0])
    errors = sorted(
        abs(scale * costs.seconds(stack) / seconds - 1.0) for stack, seconds in zip(layers, measured, strict=True)
    )
    dense = _bytes_read(shape, times.layers[0])
    by_bytes = [
        abs(base * _bytes_read(shape, stack) / dense / seconds - 1.0)
        for stack, seconds in zip(layers, measured, strict=True)
    ]
    return HeldOutError(
        phase=costs.phase,
        precision=costs.precision,
        models=len(errors),
        mean=sum(errors) / len(errors),
        p95=errors[min(len(errors) - 1, round(0.95 * (len(errors) - 1)))],
        worst=errors[-1],
        bytes_mean=sum(by_bytes) / len(by_bytes),
        noise=abs(twice[1] / twice[0] - 1.0),
    )


def _bytes_read(shape: ModelShape, layers: tuple[LayerShape, ...]) -> float:
    """Weights that one token reads, in parameters: blocks and LM head."""
    smaller = shape.with_layers(layers)
    untied = 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size
    return float(smaller.parameters() - untied)
