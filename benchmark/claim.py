"""On the device itself: a delivery's prediction measured, and its manifest with what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prune_export.errors import BadInputError
from prune_export.hashes import check_seal
from prune_export.manifest import MANIFEST, FurtherTarget, Manifest, Measurement
from prune_export.profiles import DeviceProfile
from prune_export.target import Target
from prune_export.units import format_bytes, format_duration


def claimed(directory: Path) -> Manifest:
    """The manifest of an artifact whose claim can be measured by the artifact alone.

    Raises:
        BadInputError: no manifest, an edited one, or a target that needs more than the artifact: a speed-up, or
            removed parameters.
    """
    manifest = Manifest.load(directory)
    check_seal(directory / MANIFEST)
    for target in (manifest.target, *(item.target for item in manifest.further)):
        if target.speedup is not None or target.metric == "parameters":
            raise BadInputError(
                f"{directory / MANIFEST}: {target} cannot be measured by the artifact alone: leave out --manifest, and "
                "give the dense one with --compare"
            )
    return manifest


def with_measurement(manifest: Manifest, measurement: Measurement, profile: DeviceProfile) -> Manifest:
    """The manifest with the claim "measured", whether it holds or not.

    Args:
        manifest: of a delivery that was predicted.
        measurement: of its artifact.
        profile: that it was measured with.
    """
    figure = _figure(manifest.target, measurement)
    further = tuple(
        FurtherTarget(item.target, item.limit, _figure(item.target, measurement)) for item in manifest.further
    )
    candidates = tuple(
        replace(item, measurement=measurement) if item.delivered else item for item in manifest.candidates
    )
    return replace(
        manifest,
        claim="measured",
        figure=figure,
        met=figure <= manifest.limit and all(item.met for item in further),
        further=further,
        candidates=candidates,
        profile=profile.name,
    )


def sentences(manifest: Manifest) -> list[str]:
    """ "met: measured tpot p90 9.1 ms <= 10 ms", one for each target."""
    items = [FurtherTarget(manifest.target, manifest.limit, manifest.figure), *manifest.further]
    return [_sentence(item) for item in items]


def _sentence(item: FurtherTarget) -> str:
    memory = item.target.metric == "memory"
    show = format_bytes if memory else format_duration
    what = item.target.metric if memory else f"{item.target.metric} {item.target.statistic}"
    word, sign = ("met", "<=") if item.met else ("not met", ">")
    return f"{word}: measured {what} {show(item.figure)} {sign} {show(item.limit)}"


def _figure(target: Target, measurement: Measurement) -> float:
    if target.metric == "memory":
        return float(measurement.peak_rss_bytes)
    return measurement.percentile(target.metric, target.statistic)
