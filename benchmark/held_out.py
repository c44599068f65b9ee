"""Errors of a latency table on whole models that it was not fitted to, beside those of simpler estimates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from prune_export.benchmark.roofline import roofline_table
from prune_export.benchmark.stacks import ExportedStack, Ruler, StackTimes, time_stacks
from prune_export.errors import BadInputError
from prune_export.profiles import HeldOutError, PhaseCosts
from prune_export.profiles.latency import Phase
from prune_export.shape import LayerShape, ModelShape

_NOISE_SAMPLES = 4  # copies of the base beside itself


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
    again = time_stacks(base, [base] * _NOISE_SAMPLES, replace(ruler, discard=False, progress=None, alone=0), total=1)
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


def _held_out(
    costs: PhaseCosts, times: StackTimes, again: tuple[float, ...], shape: ModelShape, estimate: PhaseCosts | None
) -> HeldOutError:
    base, *measured = times.seconds[costs.phase]
    layers = times.layers[1:]
    predicted = [costs.seconds(stack) for stack in layers]
    # The table's own scale may be of another hour: what it says of the base is what was measured of it here.
    scale = base / costs.seconds(times.layers[0])
    signed = [scale * guess / seconds - 1.0 for guess, seconds in zip(predicted, measured, strict=True)]
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
        seconds_mean=_mean_error(predicted, measured),
    )


def _mean_error(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean relative error; 0 where nothing was predicted."""
    return fmean([abs(a / b - 1.0) for a, b in zip(predicted, measured, strict=True)]) if predicted else 0.0


def _bytes_read(shape: ModelShape, layers: tuple[LayerShape, ...]) -> float:
    """Weights that one token reads, in parameters: blocks and LM head."""
    smaller = shape.with_layers(layers)
    untied = 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size
    return float(smaller.parameters() - untied)
