"""What the axes of the report's figures count, and the limit on them."""

from __future__ import annotations

from typing import Any

from prune_export.delivery.drawing import colour
from prune_export.delivery.summary import predicted_statistic, speed, timed_metric
from prune_export.manifest import Candidate, Manifest


def figure_of(manifest: Manifest, item: Candidate) -> float | None:
    """A candidate's figure in the unit of the plot: seconds, or bytes for a memory target; None if unknown.

    Of a measured speed-up the delivered model and the dense one that it is compared with have their paired figures, as
    the claim does.
    """
    target = manifest.target
    if target.metric == "memory":
        if item.measurement is not None and item.measurement.peak_rss_bytes:
            return float(item.measurement.peak_rss_bytes)
        return manifest.figure if item.delivered else None
    if manifest.speedups and target.speedup is not None and item.precision == manifest.precision:
        return manifest.figure if item.delivered else manifest.limit * target.speedup
    return speed(item, timed_metric(target), target.statistic)


def draw_limit(axes: Any, at: float, *, shown: tuple[float, float], height: float = 0.99) -> None:
    """A line at the limit, named at a share of the panel's height.

    A limit outside of what is shown is only mentioned: reaching it would squeeze everything else into a corner.
    """
    low, high = shown
    style = {"color": colour("limit"), "va": "top", "textcoords": "offset points"}
    if low <= at <= high:
        axes.axvline(at, color=colour("limit"), linestyle="--", linewidth=1)
        axes.annotate("limit", (at, height), xycoords=("data", "axes fraction"), xytext=(3, 0), **style)
        return
    words, share, side = (
        ("limit: far to the right", 1.0, "right") if at > high else ("limit: far to the left", 0.0, "left")
    )
    axes.annotate(words, (share, height), xycoords="axes fraction", xytext=(0, 0), ha=side, **style)


def has_limit(manifest: Manifest) -> bool:
    """Whether the target limits what the axis counts: a share of parameters does not."""
    return manifest.target.metric != "parameters"


def axis_words(manifest: Manifest) -> str:
    """What `figure_of` counts."""
    if manifest.target.metric == "memory":
        return "peak memory"
    statistic = (
        manifest.target.statistic if manifest.claim == "measured" else predicted_statistic(manifest, manifest.target)
    )
    return f"{timed_metric(manifest.target)} {statistic}"


def unit_of(manifest: Manifest, largest: float) -> tuple[str, float]:
    """Unit of the axis, and the factor that turns seconds or bytes into it."""
    if manifest.target.metric == "memory":
        return "MiB", 1 / 2**20
    return time_unit(largest)


def time_unit(largest: float) -> tuple[str, float]:
    """Unit and the factor that turns seconds into it."""
    return ("s", 1.0) if largest >= 1.0 else ("ms", 1e3)
