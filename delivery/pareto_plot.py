"""The Pareto plot: what each model costs against what it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prune_export.delivery.axes import axis_words, draw_limit, figure_of, has_limit, unit_of
from prune_export.delivery.drawing import Picture, canvas, colour, legend_below
from prune_export.manifest import Candidate, Manifest, Round
from prune_export.units import format_bytes, format_duration

_MARKERS = {"fp32": "o", "int8": "s", "int4": "^"}
_STRETCH = 1.6  # how far beyond the figures the limit may lie to be drawn
_LOG_FROM = 4.0  # largest over smallest perplexity from which the axis is logarithmic


@dataclass(frozen=True)
class _Point:
    x: float
    y: float


def pareto(manifest: Manifest) -> Picture | None:
    """Latency (or memory, where that is the target) against perplexity: candidates, rounds and the predicted front.

    A speed-up is judged round by round against the dense model beside it, so the rounds of its loop are drawn at their
    share of their own limit, and the delivered model and its dense one where the paired rounds have them.
    """
    placed = [(item, figure_of(manifest, item)) for item in manifest.candidates]
    known = [(item, value) for item, value in placed if value is not None]
    if not known:
        return None
    unit, factor = unit_of(manifest, max(value for _, value in known))
    rounds = [_round_points(manifest, turn) for turn in manifest.rounds]
    front = predicted_front(manifest)
    with canvas(4.3) as (figure, (axes,)):
        _draw_front(axes, front, factor)
        _draw_rounds(axes, rounds, factor)
        for item, value in known:
            _draw_candidate(axes, item, _Point(value * factor, item.perplexity))
        if has_limit(manifest):
            values = [value * factor for _, value in known]
            draw_limit(axes, manifest.limit * factor, shown=(min(values) / _STRETCH, max(values) * _STRETCH))
        axes.margins(x=0.12, y=0.14)
        _scales(axes, [item.perplexity for item, _ in known] + [turn.perplexity for turn in manifest.rounds])
        axes.set_xlabel(f"{axis_words(manifest)} [{unit}]")
        axes.set_ylabel("held-out perplexity")
        legend_below(figure, _pareto_legend(manifest, known, bool(front)))
    return Picture("pareto", "Pareto plot", _pareto_text(manifest, known), figure)


def predicted_front(manifest: Manifest) -> list[tuple[float, float]]:
    """(figure, perplexity) that the search predicts for other budgets, in terms of what was measured of dense.

    The table's costs are scaled so that the dense model has its own figure, and the rise of the calibration
    perplexity is put on its held-out one.
    """
    pruned_for = manifest.rounds[-1].precision if manifest.rounds else manifest.precision
    dense = next((item for item in manifest.candidates if (item.name, item.precision) == ("dense", pruned_for)), None)
    base = figure_of(manifest, dense) if dense is not None else None
    if len(manifest.front) < 2 or dense is None or base is None:
        return []
    scale = base / manifest.front[0].cost
    return [(point.cost * scale, point.rise * dense.perplexity) for point in manifest.front]


def _round_points(manifest: Manifest, turn: Round) -> tuple[_Point, _Point]:
    """Predicted and measured, at their share of the round's own limit."""
    share = manifest.limit / turn.limit if turn.limit else 1.0
    return _Point(turn.predicted * share, turn.perplexity), _Point(turn.measured * share, turn.perplexity)


def _draw_rounds(axes: Any, rounds: Sequence[tuple[_Point, _Point]], factor: float) -> None:
    for number, (guess, found) in enumerate(rounds, 1):
        ends = [guess.x * factor, found.x * factor]
        axes.plot(ends, [guess.y, found.y], color=colour("predicted"), linewidth=0.9, zorder=2)
        axes.scatter(
            ends[0], guess.y, s=34, marker="D", facecolor=colour("paper"), edgecolor=colour("predicted"), zorder=2.5
        )
        axes.scatter(ends[1], found.y, s=34, marker="D", color=colour("predicted"), zorder=2.6)
        axes.annotate(
            str(number),
            (ends[1], found.y),
            xytext=(0, -9),
            ha="center",
            va="top",
            textcoords="offset points",
            color=colour("predicted"),
        )


def _draw_front(axes: Any, front: Sequence[tuple[float, float]], factor: float) -> None:
    if front:
        axes.plot(
            [value * factor for value, _ in front],
            [perplexity for _, perplexity in front],
            color=colour("predicted"),
            linewidth=1,
            linestyle="--",
            marker=".",
            markersize=4,
            alpha=0.8,
            zorder=1.5,
        )


def _draw_candidate(axes: Any, item: Candidate, point: _Point) -> None:
    marker = _MARKERS.get(item.precision, "P")
    if item.delivered:
        axes.scatter(
            point.x, point.y, s=190, marker="o", facecolor="none", edgecolor=colour(item.name), linewidth=1.4, zorder=3
        )
    axes.scatter(point.x, point.y, s=48, marker=marker, color=colour(item.name), zorder=3)


def _scales(axes: Any, perplexities: Sequence[float]) -> None:
    if max(perplexities) / min(perplexities) > _LOG_FROM:
        from matplotlib.ticker import LogLocator, StrMethodFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter("")


def _pareto_legend(manifest: Manifest, known: Sequence[tuple[Candidate, float]], front: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    def mark(label: str, kind: str, name: str, **more: Any) -> Line2D:
        return Line2D([], [], linestyle="none", marker=kind, color=colour(name), label=label, **more)

    entries = [
        mark(f"{item.name} {item.precision}", _MARKERS.get(item.precision, "P"), item.name, markersize=6.5)
        for item, _ in known
    ]
    delivered = next((item for item, _ in known if item.delivered), None)
    if delivered is not None:
        entries.append(mark("delivered", "o", delivered.name, markersize=11, markerfacecolor="none"))
    if manifest.rounds:
        entries.append(mark("round, predicted", "D", "predicted", markersize=5.5, markerfacecolor=colour("paper")))
        entries.append(mark("round, measured", "D", "predicted", markersize=5.5))
    if front:
        entries.append(Line2D([], [], color=colour("predicted"), linestyle="--", marker=".", label="other budgets"))
    return entries


def _pareto_text(manifest: Manifest, known: Sequence[tuple[Candidate, float]]) -> str:
    show = format_bytes if manifest.target.metric == "memory" else format_duration
    words = "; ".join(
        f"{item.name} {item.precision}{' (delivered)' if item.delivered else ''} at {show(value)} and perplexity "
        f"{item.perplexity:.2f}"
        for item, value in known
    )
    turns = "".join(
        f" Round {number}: predicted {show(turn.predicted)}, measured {show(turn.measured)}, perplexity "
        f"{turn.perplexity:.2f}."
        for number, turn in enumerate(manifest.rounds, 1)
    )
    return f"{axis_words(manifest)} against held-out perplexity: {words}.{turns}"
