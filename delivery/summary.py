"""What a delivery says on the screen: the comparison, the claim, the samples, how to run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prune_export.benchmark.compare import paired_ratio
from prune_export.evaluate import provenance
from prune_export.manifest import REPORT_FILE, Candidate, FurtherTarget, Manifest
from prune_export.target import LATENCIES, Target
from prune_export.units import format_bytes, format_duration

LOUD_LOSS = 0.5  # a rise of perplexity above this share is shouted about


@dataclass(frozen=True)
class Delivery:
    """A delivered artifact.

    Attributes:
        directory: where it lies.
        manifest: what it is.
        usage: lines of Python that run it.
        server: command that serves it, or nothing.
        notes: what the user should know, a line each.
    """

    directory: Path
    manifest: Manifest
    usage: tuple[str, ...]
    server: str
    notes: tuple[str, ...]


def render(delivery: Delivery, *, quiet: bool) -> str:
    """The closing text of the main command."""
    manifest = delivery.manifest
    lines = [table(manifest), "", claim(manifest), *sparsity_lines(manifest), *delivery.notes]
    if quiet:
        return "\n".join([*lines, str(delivery.directory)])
    if manifest.samples:
        lines += ["", f"prompt     {_clip(manifest.samples['prompt'])}"]
        lines += [
            f"dense      {_clip(manifest.samples['dense'])}",
            f"delivered  {_clip(manifest.samples['delivered'])}",
        ]
    lines += ["", f"calibrated on {provenance(manifest.calibration)}, scored on {provenance(manifest.evaluation)}"]
    lines += ["", f"artifact  {delivery.directory}", f"report    {delivery.directory / REPORT_FILE}"]
    lines += ["", "run it:", *(f"  {line}" for line in delivery.usage)]
    return "\n".join([*lines, *(["or serve it:", f"  {delivery.server}"] if delivery.server else [])])


def table(manifest: Manifest) -> str:
    """The candidates side by side: latency, memory, parameters, perplexity."""
    metric = timed_metric(manifest.target)
    header = (
        "",
        "",
        *(f"{metric} {name}" for name in shown(manifest.target)),
        "memory",
        "parameters",
        "perplexity",
        "",
    )
    rows = [header, *(_row(candidate, manifest) for candidate in manifest.candidates)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(_line(row, widths) for row in rows)


def claim(manifest: Manifest) -> str:
    """ "met: measured tpot p90 0.71 ms <= 0.75 ms", or the same as predicted; for a speed-up the factor too."""
    if manifest.target.metric == "parameters":
        word, sign = ("met", ">=") if manifest.figure >= manifest.limit else ("not met", "<")
        return f"{word}: {manifest.figure:.1%} of the parameters removed {sign} {manifest.limit:.1%}"
    main = FurtherTarget(manifest.target, manifest.limit, manifest.figure)
    text = _sentence(manifest, main)
    if manifest.speedups:
        text += _paired(manifest, _what(main.target), met=main.met)
    others = (_sentence(manifest, item) for item in manifest.further)
    return "\n".join([text, *others]) + _against_dense(manifest)


def _sentence(manifest: Manifest, item: FurtherTarget) -> str:
    """What is claimed of one target, whatever became of the others."""
    show = format_bytes if item.target.metric == "memory" else format_duration
    if manifest.claim == "predicted":
        what = f"{item.target.metric} {predicted_statistic(manifest, item.target)} {show(item.figure)}"
        return f"predicted, not measured: {what} {'would meet' if item.met else 'would miss'} {show(item.limit)}"
    what = f"{_what(item.target)} {show(item.figure)}"
    text = f"{'met' if item.met else 'not met'}: measured {what} {'<=' if item.met else '>'} {show(item.limit)}"
    return text + _faster_then(manifest, item)


def _faster_then(manifest: Manifest, item: FurtherTarget) -> str:
    """That a limit in seconds was held against the speed of the whole run, where the closing measurement's was higher.

    `delivery/pace.py` says why.
    """
    own = next((candidate.measurement for candidate in manifest.candidates if candidate.delivered), None)
    if own is None or item.target.speedup is not None or item.target.metric not in LATENCIES:
        return ""
    found = own.percentile(item.target.metric, item.target.statistic)
    if not item.met or format_duration(found) == format_duration(item.figure) or found > item.figure:
        return ""
    share = item.figure / found - 1
    return f" at the whole run's speed ({format_duration(found)} in the last measurement, {share:.1%} faster)"


def predicted_statistic(manifest: Manifest, target: Target) -> str:
    """What predictions of a target's latency are of: "p90", or "median" where nothing tells how it spreads."""
    return "median" if timed_metric(target) in manifest.medians else target.statistic


def _what(target: Target) -> str:
    return target.metric if target.metric == "memory" else f"{target.metric} {target.statistic}"


def sparsity_lines(manifest: Manifest) -> list[str]:
    """What was counted of the zeros that were asked for; nothing where none were."""
    record = manifest.sparsity
    if record is None:
        return []
    holds = "the pattern holds in every projection" if record.pattern_holds else "the pattern DOES NOT HOLD"
    return [
        f"sparsity {record.pattern} by {record.method}: {record.share:.2%} of the stored weights of "
        f"{len(record.layers)} layers are zero, {holds}"
    ]


def _paired(manifest: Manifest, what: str, *, met: bool) -> str:
    """What a measured speed-up's figure and limit are, and what the rounds said."""
    factor, speedups = manifest.target.speedup, manifest.speedups
    assert factor is not None
    dense = manifest.limit * factor
    reached = dense / manifest.figure
    relation = ">=" if met else "<"
    return (
        f"\n{reached:.{_places(reached, factor)}f}x {relation} {factor:g}x by {len(speedups)} paired "
        f"rounds ({min(speedups):.2f}x to {max(speedups):.2f}x): {what} {format_duration(manifest.figure)} against "
        f"{format_duration(dense)} of dense {manifest.precision} beside it"
    )


def _places(value: float, limit: float) -> int:
    """Decimals that show on which side of the limit a value lies."""
    return next((places for places in (2, 3, 4) if round(value, places) != round(limit, places)), 5)


def timed_metric(target: Target) -> str:
    """The latency that tables and plots show for a target: its own, or tpot for memory and ratio targets."""
    return target.metric if target.metric in LATENCIES else "tpot"


def speed(candidate: Candidate, metric: str, statistic: str) -> float | None:
    """A candidate's latency in seconds, measured or else predicted; None if neither is known."""
    if candidate.measurement is not None:
        return candidate.measurement.percentile(metric, statistic)
    return candidate.predicted_s


def _against_dense(manifest: Manifest) -> str:
    metric, statistic = timed_metric(manifest.target), manifest.target.statistic
    delivered = next(candidate for candidate in manifest.candidates if candidate.delivered)
    if delivered.name == "dense":
        return ""
    factors = {
        item.precision: factor
        for item in manifest.candidates
        if item.name == "dense" and (factor := _factor(item, delivered, metric, statistic)) is not None
    }
    if delivered.precision not in factors:
        return ""
    fastest = min(factors, key=lambda precision: factors[precision])
    text = f"\n{factors[delivered.precision]:.2f}x the speed of dense {delivered.precision}"
    if fastest != delivered.precision:
        text += f", {factors[fastest]:.2f}x that of the fastest dense precision, {fastest}"
        if factors[fastest] < 1:
            text += f": dense {fastest} is faster, consider --precision {fastest}"
    else:
        text += ", which is the fastest dense precision"
    return text


def _factor(dense: Candidate, delivered: Candidate, metric: str, statistic: str) -> float | None:
    """How many times faster the delivered one is: by the rounds that ran in turns, else by prediction."""
    one, other = dense.measurement, delivered.measurement
    if one is not None and other is not None and len(one.load_s) == len(other.load_s):
        return paired_ratio(one, other, metric, statistic).ratio
    own, theirs = speed(delivered, metric, statistic), speed(dense, metric, statistic)
    return theirs / own if own and theirs else None


def shown(target: Target) -> tuple[str, str]:
    """The statistics that tables of candidates have: the median, and the target's own one or p90."""
    return "p50", "p99" if target.statistic == "p99" else "p90"


def times(candidate: Candidate, manifest: Manifest, names: Sequence[str]) -> list[str]:
    """A candidate's latency in some statistics; a prediction, with ~, stands under the one that it is of."""
    metric = timed_metric(manifest.target)
    if candidate.measurement is not None:
        return [format_duration(candidate.measurement.percentile(metric, name)) for name in names]
    if candidate.predicted_s is None:
        return ["-"] * len(names)
    known = predicted_statistic(manifest, manifest.target)
    found = f"~{format_duration(candidate.predicted_s)}"
    return [found if name == ("p50" if known == "median" else known) else "-" for name in names]


def _row(candidate: Candidate, manifest: Manifest) -> tuple[str, ...]:
    measurement = candidate.measurement
    memory = format_bytes(measurement.peak_rss_bytes) if measurement and measurement.peak_rss_bytes else "-"
    mark = "<- delivered" if candidate.delivered else ""
    return (
        candidate.name,
        candidate.precision,
        *times(candidate, manifest, shown(manifest.target)),
        memory,
        f"{candidate.parameters:,}",
        f"{candidate.perplexity:.2f}",
        mark,
    )


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    left = [row[column].ljust(widths[column]) for column in (0, 1)]
    right = [row[column].rjust(widths[column]) for column in range(2, len(row) - 1)]
    return "  ".join([*left, *right, row[-1]]).rstrip()


def _clip(text: str, limit: int = 110) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit - 3]}..."
