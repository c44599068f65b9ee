"""The report's figures, as SVG text."""

from __future__ import annotations

import io
from typing import Any

from prune_export.delivery.summary import speed, timed_metric
from prune_export.manifest import Manifest
from prune_export.plan import PrunePlan

_COLOURS = {"dense": "#5b6770", "pruned": "#12715b", "sparse": "#8a5a00"}
_MARKERS = {"fp32": "o", "int8": "s", "int4": "^"}
_LIMIT = "#b3261e"
# Precisions of one model have nearly the same perplexity: their labels go above, below and to the side.
_LABEL_OFFSETS = {"fp32": (-4, 11), "int8": (-4, -19), "int4": (11, -4)}


def pareto(manifest: Manifest) -> str:
    """Every candidate's latency against its perplexity, with the limit where the target is a latency."""
    metric, statistic = timed_metric(manifest.target), manifest.target.statistic
    figure, axes = _axes(7.0, 3.6)
    for candidate in manifest.candidates:
        seconds = speed(candidate, metric, statistic)
        if seconds is None:
            continue
        colour = _COLOURS.get(candidate.name, "#555")
        label = f"{candidate.name} {candidate.precision}"
        axes.scatter(
            seconds * 1e3,
            candidate.perplexity,
            s=110 if candidate.delivered else 55,
            color=colour,
            marker=_MARKERS.get(candidate.precision, "D"),
            zorder=3,
        )
        axes.annotate(
            f"{label}{' (delivered)' if candidate.delivered else ''}",
            (seconds * 1e3, candidate.perplexity),
            xytext=_LABEL_OFFSETS.get(candidate.precision, (8, 4)),
            textcoords="offset points",
            fontsize=9,
        )
    if manifest.target.metric == metric:
        axes.axvline(manifest.limit * 1e3, color=_LIMIT, linestyle="--", linewidth=1)
        axes.annotate(
            "limit",
            (manifest.limit * 1e3, 0.02),
            xycoords=("data", "axes fraction"),
            color=_LIMIT,
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=9,
        )
    axes.margins(x=0.25, y=0.2)
    axes.set_xlabel(f"{metric} {statistic} [ms]")
    axes.set_ylabel("held-out perplexity")
    return _svg(figure)


def layers(plan: PrunePlan) -> str:
    """What is left of each layer: share of KV heads and of MLP channels."""
    figure, axes = _axes(7.0, 2.8)
    positions = range(len(plan.keep))
    heads = [
        _share(len(kept.kv_groups), layer.kv_heads) for kept, layer in zip(plan.keep, plan.dense.layers, strict=True)
    ]
    widths = [
        _share(len(kept.mlp_channels), layer.mlp_width)
        for kept, layer in zip(plan.keep, plan.dense.layers, strict=True)
    ]
    for values, shift, colour, label in ((heads, -0.2, "#3f6fb5", "attention"), (widths, 0.2, "#12715b", "MLP")):
        spots = [position + shift for position in positions]
        axes.bar(spots, [1.0] * len(spots), width=0.36, color=colour, alpha=0.15)
        axes.bar(spots, values, width=0.36, color=colour, label=label)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("layer")
    axes.set_ylabel("share kept")
    step = max(1, len(plan.keep) // 16)
    axes.set_xticks(list(positions)[::step])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=2, frameon=False, fontsize=9)
    return _svg(figure)


def distributions(manifest: Manifest) -> str:
    """Empirical distribution of the measured latencies, dense against delivered."""
    metric = timed_metric(manifest.target)
    figure, axes = _axes(7.0, 3.0)
    delivered = next(candidate for candidate in manifest.candidates if candidate.delivered)
    longest = 0.0
    for candidate in manifest.candidates:
        if candidate.measurement is None or candidate.precision != delivered.precision:
            continue
        ordered = sorted(candidate.measurement.samples(metric))
        shares = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
        colour = _COLOURS.get(candidate.name, "#555")
        label = f"{candidate.name} {candidate.precision}"
        axes.step([value * 1e3 for value in ordered], shares, where="post", color=colour, label=label)
        longest = max(longest, candidate.measurement.percentile(metric, "p99"))
    axes.set_xlim(right=longest * 1.15e3)  # the last percent may reach far out
    axes.axhline(float(manifest.target.statistic[1:]) / 100, color="#999", linewidth=0.8, linestyle=":")
    axes.set_xlabel(f"{metric} [ms]")
    axes.set_ylabel("share of samples")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return _svg(figure)


def _share(kept: int, size: int) -> float:
    return kept / size if size else 0.0


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # the object interface: no global state, no display

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#e3e7ea", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "prune-export"}):  # the same figure gives the same bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
