"""The report's figures of what was predicted and what was measured."""

from __future__ import annotations

from typing import Any

from prune_export.delivery.axes import axis_words, draw_limit, figure_of, has_limit, time_unit, unit_of
from prune_export.delivery.drawing import Picture, canvas, colour, legend_below
from prune_export.delivery.summary import timed_metric
from prune_export.manifest import Candidate, Manifest, Measurement
from prune_export.units import format_duration

_DASHES = {"fp32": "-", "int8": "--", "int4": ":"}
_BAND = 0.05  # shaded around the line of equal prediction and measurement
METRICS = {"tpot": "time per output token", "ttft": "time to first token", "total": "end to end"}


def predictions(manifest: Manifest) -> Picture | None:
    """What the table predicted of every round against what was measured; None without rounds."""
    pairs = predicted_pairs(manifest)
    if not pairs:
        return None
    unit, factor = unit_of(manifest, max(max(pair[1:]) for pair in pairs))
    values = [value * factor for pair in pairs for value in pair[1:]]
    room = 0.35 * (max(values) - min(values)) + 0.04 * max(values)
    low, high = min(values) - room, max(values) + room
    with canvas(4.0) as (figure, (axes,)):
        ends = (low, high)
        axes.fill_between(
            ends,
            [end * (1 - _BAND) for end in ends],
            [end * (1 + _BAND) for end in ends],
            color=colour("predicted"),
            alpha=0.12,
            linewidth=0,
        )
        axes.plot(ends, ends, color=colour("predicted"), linewidth=1)
        for name, predicted, measured in pairs:
            x, y = predicted * factor, measured * factor
            axes.scatter(x, y, s=42, color=colour("pruned"), zorder=3)
            _label(axes, f"{name}: {measured / predicted - 1:+.1%}", (x, y), above=measured > predicted)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel(f"predicted by the latency table [{unit}]" if unit != "MiB" else f"predicted [{unit}]")
        axes.set_ylabel(f"measured {axis_words(manifest)} [{unit}]")
    errors = "; ".join(f"{name} {measured / predicted - 1:+.1%}" for name, predicted, measured in pairs)
    text = f"Predicted against measured, with the line of equality and a band of {_BAND:.0%}. Errors: {errors}."
    return Picture("predictions", "Predicted against measured", text, figure)


def predicted_pairs(manifest: Manifest) -> list[tuple[str, float, float]]:
    """(name, predicted, measured) of every round, and of a delivery that was predicted first and measured later."""
    pairs = [(f"round {number}", turn.predicted, turn.measured) for number, turn in enumerate(manifest.rounds, 1)]
    for item in manifest.candidates if manifest.target.metric != "memory" else ():  # predictions are of latencies
        found = figure_of(manifest, item)
        if item.predicted_s is not None and item.measurement is not None and found is not None:
            pairs.append((f"{item.name} {item.precision}", item.predicted_s, found))
    return pairs


def distribution_metrics(manifest: Manifest) -> tuple[str, ...]:
    """The latencies that have a picture: per token and to the first one, and the target's own."""
    own = timed_metric(manifest.target)
    return tuple(dict.fromkeys((own, "tpot", "ttft")))


def distribution(manifest: Manifest, metric: str) -> Picture | None:
    """Empirical distribution of every measured latency, dense against delivered; None if nothing was measured."""
    shown = [
        (item, item.measurement)
        for item in manifest.candidates
        if item.measurement is not None and (item.delivered or item.name == "dense")
    ]
    if not shown:
        return None
    own, statistic = metric == manifest.target.metric, manifest.target.statistic
    unit, factor = time_unit(max(found.percentile(metric, "p50") for _, found in shown))
    with canvas(3.4) as (figure, (axes,)):
        ends = [_draw_steps(axes, item, found, metric, factor) for item, found in shown]
        left, right = min(low for low, _ in ends), max(high for _, high in ends)
        width = max(right - left, 0.01 * right)  # a device without noise has one time alone
        axes.set_xlim(left - 0.06 * width, right + 0.1 * width)  # the last percent may reach far out
        axes.set_ylim(0, 1.03)
        axes.axhline(float(statistic[1:]) / 100, color=colour("ink"), linewidth=0.8, linestyle=":")
        axes.annotate(
            statistic,
            (1.0, float(statistic[1:]) / 100),
            xycoords=("axes fraction", "data"),
            xytext=(2, -3),
            textcoords="offset points",
        )
        if own and has_limit(manifest):
            draw_limit(axes, manifest.limit * factor, shown=axes.get_xlim(), height=0.12)
        axes.set_xlabel(f"{metric}, {METRICS[metric]} [{unit}]")
        axes.set_ylabel("share of samples")
        legend_below(figure, axes.get_legend_handles_labels()[0])
    words = "; ".join(
        f"{item.name} {item.precision} p50 {format_duration(found.percentile(metric, 'p50'))}, "
        f"p90 {format_duration(found.percentile(metric, 'p90'))} of {len(found.samples(metric))} samples"
        for item, found in shown
    )
    return Picture(f"distribution-{metric}", f"Distribution of {metric}", f"{METRICS[metric]}: {words}.", figure)


def _draw_steps(axes: Any, item: Candidate, found: Measurement, metric: str, factor: float) -> tuple[float, float]:
    """Draws one distribution and returns where it begins, and its p99."""
    ordered = sorted(found.samples(metric))
    shares = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
    axes.step(
        [value * factor for value in (ordered[0], *ordered)],
        [0.0, *shares],
        where="post",
        color=colour(item.name),
        linestyle="-" if item.delivered else _DASHES.get(item.precision, "-."),
        linewidth=1.8 if item.delivered else 1.2,
        label=f"{item.name} {item.precision}{' (delivered)' if item.delivered else ''}",
    )
    return ordered[0] * factor, found.percentile(metric, "p99") * factor


def _label(axes: Any, text: str, at: tuple[float, float], *, above: bool) -> None:
    """Beside a point, away from the line of equality."""
    axes.annotate(
        text,
        at,
        xytext=(-4, 5) if above else (4, -5),
        ha="right" if above else "left",
        va="bottom" if above else "top",
        textcoords="offset points",
    )
