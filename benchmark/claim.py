"""On the device itself: a delivery's prediction measured, and its manifest with what was found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from prune_export.benchmark.artifact import context_length
from prune_export.benchmark.devices import device_fingerprint
from prune_export.benchmark.runtimes import find_model
from prune_export.benchmark.threads import checked_threads
from prune_export.benchmark.worker import Through
from prune_export.errors import BadInputError
from prune_export.manifest import MANIFEST, FurtherTarget, Manifest, Measurement
from prune_export.profiles import DeviceMatch, DeviceProfile, mismatch
from prune_export.profiles.load import HOST
from prune_export.records import from_json
from prune_export.target import Target, Workload
from prune_export.units import format_bytes, format_duration


@dataclass(frozen=True)
class Asked:
    """What a measurement was asked for beside the claim; what is left empty the claim decides.

    Attributes:
        workload: what to run.
        precision: of the weights.
        threads: of the runtime.
        through: the runtime itself, or its GenAI pipeline.
        compare: another artifact.
    """

    workload: Workload | None = None
    precision: str = ""
    threads: int = 0
    through: Through = "session"
    compare: Path | None = None


def claimed(directory: Path, profile: DeviceProfile, asked: Asked) -> tuple[Manifest, DeviceProfile]:
    """The manifest of an artifact whose claim can be measured here, and the profile to measure it with.

    Args:
        directory: the artifact.
        profile: as asked for; "host" stands for what the claim was planned for.
        asked: must not differ from what the claim is about.

    Raises:
        BadInputError: no manifest, an edited one, a target that needs more than the artifact (a speed-up, or removed
            parameters), another device than the claim's, or a request for something else than what it is about.
    """
    manifest, path = Manifest.load_unedited(directory), directory / MANIFEST
    for target in (manifest.target, *(item.target for item in manifest.further)):
        if target.speedup is not None or target.metric == "parameters":
            raise BadInputError(
                f"{path}: {target} cannot be measured by the artifact alone: leave out --manifest, and "
                "give the dense one with --compare"
            )
    planned = _planned(manifest, profile, path)
    if reason := mismatch(planned, device_fingerprint(planned)):
        raise BadInputError(f"{path}: the claim is of another device: {reason}; run it there, or leave out --manifest")
    _refuse_differences(directory, manifest, planned, asked)
    return manifest, planned


def _planned(manifest: Manifest, profile: DeviceProfile, path: Path) -> DeviceProfile:
    """The profile that the claim is of."""
    device = manifest.device
    if device is None and (profile.name != manifest.profile or profile.name == HOST):
        raise BadInputError(
            f"{path} is of an earlier version, which did not record the hosts of profile {manifest.profile}: "
            "give its file with --device, or deliver again"
        )
    if profile.name not in (HOST, manifest.profile):
        raise BadInputError(f"--device {profile.name}: the claim is of profile {manifest.profile}: leave out --device")
    if device is None:
        return profile
    match = from_json(DeviceMatch, device.match, where=f"{path}: device: match")
    return replace(
        profile,
        name=manifest.profile,
        match=match,
        runtime=device.runtime,
        device=device.device,
        threads=device.threads,
    )


def _refuse_differences(directory: Path, manifest: Manifest, planned: DeviceProfile, asked: Asked) -> None:
    found = find_model(directory)
    workload = manifest.workload
    if asked.through != "session":
        raise BadInputError("--through genai: a claim is of the runtime itself: leave it out, or leave out --manifest")
    if asked.precision and asked.precision != manifest.precision:
        raise BadInputError(f"--precision {asked.precision}: the claim is of {manifest.precision}: leave it out")
    if asked.threads and asked.threads != (threads := checked_threads(planned.threads)):
        raise BadInputError(f"--threads {asked.threads}: the claim is of {threads}: leave it out")
    if manifest.device is not None and found.runtime.name != planned.runtime:
        raise BadInputError(f"{found.path} runs with {found.runtime.name}, the claim is of {planned.runtime}")
    if workload is None:
        return
    if asked.workload is not None and str(asked.workload) != str(workload):
        raise BadInputError(f"--workload {asked.workload}: the claim is of {workload}: leave it out")
    for item in (directory, *([] if asked.compare is None else [asked.compare])):
        context = context_length(find_model(item).path)
        if context is not None and workload.prompt_tokens + workload.new_tokens > context:
            raise BadInputError(f"{item} has a context of {context}, the claim is of {workload}: leave it out")


def with_measurement(manifest: Manifest, measurement: Measurement) -> Manifest:
    """The manifest with the claim "measured", whether it holds or not.

    Args:
        manifest: of a delivery that was predicted.
        measurement: of its artifact, on what the claim is about (`claimed`).
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
        workload=manifest.workload or measurement.workload,
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
