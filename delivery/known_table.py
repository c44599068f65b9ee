"""What a profile's latency table is held against before any work: model, workload, runtime, threads, precisions."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from prune_export.benchmark.roofline import table_key
from prune_export.benchmark.runtimes import RUNTIMES
from prune_export.delivery.exporters import EXPORTERS
from prune_export.delivery.request import Request
from prune_export.delivery.summary import timed_metric
from prune_export.errors import BadInputError
from prune_export.profiles.device import DeviceProfile
from prune_export.profiles.latency import LatencyTable, TableRecord
from prune_export.progress import Progress
from prune_export.shape import ModelShape
from prune_export.target import LATENCIES, Workload

_FORMATS = {row.name: row.format for row in RUNTIMES}
_MEASURE = "prune-export profile measure"


def planned_format(request: Request, profile: DeviceProfile) -> str:
    """The format of a plan's trial exports: that of the profile's table, for a plan may be replayed in any."""
    record = profile.latency_table.record if profile.latency_table is not None else None
    found = _FORMATS.get(record.runtime, "") if record is not None else ""
    return found if found in EXPORTERS else request.format


def with_precisions(
    request: Request,
    profile: DeviceProfile,
    shape: ModelShape,
    workload: Workload,
    threads: int,
    *,
    measured: bool,
    planning: bool,
    progress: Progress,
) -> tuple[Request, DeviceProfile]:
    """The request with the precisions that it stands for, and the profile, whose table holds for it or is left out.

    Where the host is the device, what the table lacks is measured there; elsewhere it is refused.

    Args:
        request: checked as far as it can be without a table.
        profile: of the device.
        shape: of the dense model.
        workload: fitted to its context.
        threads: of the runtime.
        measured: the host is the device.
        planning: nothing is delivered: elsewhere the plan may be for any runtime, a checkpoint's too.
        progress: for notes.

    Raises:
        BadInputError: a table of another model, workload or runtime; on another device also of another number of
            threads, or without a precision that was asked for.
    """
    chosen = replace(request, precisions=request.precisions or request.default_precisions)
    table = profile.latency_table
    if table is None:
        return chosen, profile
    table.check(table_key(shape, workload))
    metrics = _read_off_a_table(request, shape, measured=measured)
    if not metrics:
        return chosen, profile
    if table.record is not None:
        if measured or not planning:
            _check_runtime(table.record, profile, request.format)
        if measured and table.record.threads != threads:
            progress.note(
                f"note: the latency table of {profile.name} was measured with {table.record.threads} threads, here are "
                f"{threads}: it is not used"
            )
            return chosen, replace(profile, latency_table=None)
        table.check_threads(threads)
        if note := _other_version(table.record, profile):
            progress.note(note)
    if measured:
        return chosen, profile
    return replace(chosen, precisions=_precisions(request, table, profile, metrics, progress)), profile


def _read_off_a_table(request: Request, shape: ModelShape, *, measured: bool) -> set[str]:
    """The latencies that are planned by, or elsewhere predicted: none of what is counted or measured alone."""
    if shape.mixer is not None:
        return set()
    targets = (request.target, *request.further)
    return {timed_metric(item) for item in targets if not measured or item.metric in LATENCIES}


def _check_runtime(record: TableRecord, profile: DeviceProfile, format: str) -> None:
    wanted = next(name for name, known in _FORMATS.items() if known == format)
    # On a GPU it is the checkpoint in the artifact that is measured.
    if record.runtime in (wanted, "torch" if profile.device == "cuda" else wanted):
        return
    other = _FORMATS.get(record.runtime)
    remedy = f"deliver --format {other}, or " if other in EXPORTERS else ""
    raise BadInputError(
        f"the latency table of {profile.name} was measured through {record.runtime}, what is delivered runs through "
        f"{wanted}: {remedy}measure one with `{_MEASURE} --runtime {wanted}`"
    )


def _other_version(record: TableRecord, profile: DeviceProfile) -> str:
    """A note where the runtime is not of the table's version; empty if it is, or where either is unknown."""
    then = record.versions.get(record.runtime)
    try:
        now = version(record.runtime)
    except PackageNotFoundError:
        return ""
    if then is None or then == now:
        return ""
    return (
        f"note: the latency table of {profile.name} was measured with {record.runtime} {then}, here is {now}: it may "
        "be further off than it says"
    )


def _precisions(
    request: Request, table: LatencyTable, profile: DeviceProfile, metrics: Set[str], progress: Progress
) -> tuple[str, ...]:
    """Those that were asked for, else the default ones that the table has, else what it has."""
    has = table.precisions(metrics)
    named = " and ".join(sorted(metrics))
    if not has:
        raise BadInputError(
            f"the latency table of {profile.name} has no costs for {named}: measure one with `{_MEASURE}`"
        )
    wanted = request.precisions or request.default_precisions
    lacking = [item for item in wanted if item not in has]
    if not lacking:
        return wanted
    remedy = f"`{_MEASURE} --precision {','.join(dict.fromkeys((*has, *lacking)))}`"
    if request.precisions:
        raise BadInputError(
            f"--precision {','.join(lacking)}: the latency table of {profile.name} has {', '.join(has)} for {named}: "
            f"leave it out, or measure it with {remedy}"
        )
    chosen = tuple(item for item in wanted if item in has) or has
    progress.note(
        f"note: the latency table of {profile.name} has {', '.join(has)} and not {', '.join(lacking)}: planned in "
        f"{', '.join(chosen)}; measure the rest with {remedy}"
    )
    return chosen
