"""Kits: exported stacks of blocks that a machine without torch measures itself with, and the profile that results."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from prune_export.benchmark.bandwidth import read_bandwidth, usable_cache_bytes
from prune_export.benchmark.devices import device_fingerprint
from prune_export.benchmark.held_out import held_out_errors
from prune_export.benchmark.integrity import check_listed
from prune_export.benchmark.properties import WEIGHT_BYTES
from prune_export.benchmark.roofline import table_key
from prune_export.benchmark.stacks import ExportedStack, Ruler, time_stacks
from prune_export.benchmark.threads import checked_threads
from prune_export.errors import BadInputError
from prune_export.hashes import FileRecord, check_seal
from prune_export.profiles import (
    DeviceMatch,
    DeviceProfile,
    HeldOutError,
    LatencyTable,
    PhaseCosts,
    TableKey,
    TableRecord,
    TimedStack,
)
from prune_export.profiles.host import detect_host, match_of, mismatch
from prune_export.progress import Progress
from prune_export.records import SPARSE, from_json
from prune_export.shape import LayerShape, ModelShape
from prune_export.target import Workload
from prune_export.units import format_bytes

KIT_FILE = "kit.json"
KIT_VERSION = 3
BUDGET_S = 540.0  # for the table of one precision, building included
ROUNDS = 3  # fresh processes a group of stacks
ALONE = 2  # fresh processes with the first stack by itself
MOST = 40  # timings of a stack in a process, for the table of one precision
_HELD_OUT_SHARE = 67  # of it goes to each model that the table is checked on, in each process


@dataclass(frozen=True)
class KitStack:
    """One exported model of a kit.

    Attributes:
        name: what it varies.
        directory: relative to the kit.
        layers: its blocks.
    """

    name: str
    directory: str
    layers: tuple[LayerShape, ...]


@dataclass(frozen=True)
class KitPart:
    """The stacks of one precision.

    Attributes:
        precision: of their weights.
        base: what the others are timed beside.
        stacks: what the table is fitted to.
        held_out: heterogeneous models that it is checked on.
        dense: the whole model, a further point of the fit and what the held-out models are timed beside; None where
            the base is one.
    """

    precision: str
    base: KitStack
    stacks: tuple[KitStack, ...]
    held_out: tuple[KitStack, ...]
    dense: KitStack | None = None


@dataclass(frozen=True)
class Kit:
    """What kit.json holds.

    Attributes:
        version: of the format.
        runtime: that the files are for.
        shape: of the dense model that the kit stands for.
        workload: what is timed.
        parts: one a precision.
        files: relative path to size and hash of everything else in the kit.
        content_digest: sha256 of this document as it was written.
    """

    version: int
    runtime: str
    shape: ModelShape
    workload: Workload
    parts: tuple[KitPart, ...]
    files: dict[str, FileRecord]
    content_digest: str = field(default="", compare=False, metadata=SPARSE)


@dataclass(frozen=True)
class PrecisionTable:
    """The table's part of one precision and how it was measured.

    Attributes:
        costs: of both phases.
        errors: on held-out models.
        threads: of the runtime.
        measurements: timed processes that it was fitted to.
        seconds: how long these took.
        versions: package to version.
        stacks: what was timed.
    """

    costs: tuple[PhaseCosts, ...]
    errors: tuple[HeldOutError, ...]
    threads: int
    measurements: int
    seconds: float
    versions: dict[str, str]
    stacks: tuple[TimedStack, ...]


def load_kit(directory: Path) -> Kit:
    """Reads kit.json.

    Raises:
        BadInputError: no kit, one of another version, or one that was edited.
    """
    path = directory / KIT_FILE
    try:
        data = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        raise BadInputError(
            f"{directory} is no kit: it has no readable {KIT_FILE}; make one with prune-export kit"
        ) from None
    found = data.get("version") if isinstance(data, dict) else None
    if found != KIT_VERSION:
        newer = isinstance(found, int) and found > KIT_VERSION
        remedy = "install the version that made it" if newer else "make the kit again"
        raise BadInputError(f"{path} is of version {found}, this prune-export reads {KIT_VERSION}: {remedy}")
    check_seal(path)
    return from_json(Kit, data, where=str(path))


def measure_kit(
    directory: Path,
    profile: DeviceProfile,
    *,
    name: str,
    threads: int = 0,
    budget_s: float = BUDGET_S,
    progress: Progress | None = None,
) -> DeviceProfile:
    """The profile of this machine with a latency table for the kit's model.

    Args:
        directory: the kit.
        profile: stands for this machine; its runtime is replaced by the kit's.
        name: of the new profile.
        threads: of the runtime; 0 takes the profile's.
        budget_s: for the table of one precision.
        progress: where progress goes.

    Raises:
        BadInputError: no kit, one of another version or with files missing or changed, or a profile of another
            machine.
    """
    report = progress or Progress(quiet=True)
    kit = load_kit(directory)
    with report.phase("checking the kit"):
        check_listed(directory, kit.files, document=KIT_FILE)
    profile = replace(profile, runtime=kit.runtime)
    refuse_elsewhere(profile)
    count = checked_threads(threads or profile.threads)
    shallow = any(len(part.base.layers) < len(kit.shape.layers) for part in kit.parts)
    cache = usable_cache_bytes(count) if shallow else 0
    for part in kit.parts:
        if warning := cache_warning(kit.shape, part, cache):
            report.note(warning)
    bandwidth = memory_bandwidth(profile, count, report)
    tables = []
    for part in kit.parts:
        dense = () if part.dense is None else (part.dense,)
        base, *stacks = (_exported(directory, item) for item in (part.base, *part.stacks, *dense))
        others = [_exported(directory, item) for item in part.held_out]
        ruler = Ruler(
            profile, kit.workload, part.precision, count, ROUNDS, budget_s=budget_s, alone=ALONE, progress=report
        )
        whole = partial(_exported, directory, part.dense) if part.dense is not None else None
        counts = len(stacks), len(others)
        tables.append(measured_precision(kit.shape, base, stacks, others, ruler, counts=counts, whole=whole))
    key = table_key(kit.shape, kit.workload)
    return profile_of(profile, key, tables, name=name, bandwidth=bandwidth, progress=report)


def refuse_elsewhere(profile: DeviceProfile) -> None:
    """Before anything is built or timed.

    Raises:
        BadInputError: the profile is not this machine's.
    """
    # Of an NVIDIA GPU every figure is measured, so any will do; peaks of others come from the profile.
    profile = replace(profile, match=DeviceMatch()) if profile.device == "cuda" else profile
    if reason := mismatch(profile, device_fingerprint(profile)):
        raise BadInputError(f"a profile is measured on the device itself, and {reason}: run it there")


def memory_bandwidth(profile: DeviceProfile, threads: int, progress: Progress) -> float:
    """Of a CPU's memory in bytes a second; 0 for another device. Before the table: what fails late throws it away."""
    if profile.device != "CPU":
        return 0.0
    with progress.phase("memory bandwidth"):
        return read_bandwidth(threads)


def cache_warning(shape: ModelShape, part: KitPart, cache: int) -> str:
    """What to know of a kit on a machine whose last cache holds stacks, but not the same blocks at the model's depth.

    A stack that stays in cache is faster than a share of the model can be.

    Args:
        shape: of the dense model.
        part: the stacks of a precision.
        cache: size in bytes, 0 if unknown.

    Returns:
        A line with the depth that avoids it; empty where there is nothing to say.
    """
    depth, layers = len(part.base.layers), len(shape.layers)
    each = WEIGHT_BYTES[part.precision]
    rest = shape.with_layers(()).parameters()
    blocks = [each * (shape.with_layers(item.layers).parameters() - rest) for item in (part.base, *part.stacks)]
    fitting = [size for size in blocks if size <= cache < size * layers / depth]
    if not fitting:
        return ""
    enough = math.floor(depth * cache / min(fitting)) + 1
    enough = min(layers, enough + enough % 2)  # of an even number a half can go
    return (
        f"warning: the blocks of {len(fitting)} of {len(blocks)} {part.precision} stacks of {depth} layers fit this "
        f"processor's last cache of {format_bytes(cache)}, those of a model of {layers} layers do not: pruned models "
        f"may be slower than predicted; pack the kit again with --depth {enough}"
    )


def _exported(directory: Path, item: KitStack) -> ExportedStack:
    return ExportedStack(item.layers, directory / item.directory)


def measured_precision(
    shape: ModelShape,
    base: ExportedStack,
    stacks: Iterable[ExportedStack],
    others: Iterable[ExportedStack],
    ruler: Ruler,
    *,
    counts: tuple[int, int],
    whole: Callable[[], ExportedStack] | None = None,
    built_in_s: float = 0.0,
) -> PrecisionTable:
    """Times the stacks of one precision, fits the table's part, and checks it on other models.

    Args:
        shape: of the dense model.
        base: what all others are timed beside.
        stacks: what the table is fitted to.
        others: what it is checked on; none for no check.
        ruler: how they are timed.
        counts: how many stacks and others there are.
        whole: makes the model that the others are timed beside; the base unless given.
        built_in_s: seconds that the base took, a part of the budget.

    Raises:
        BadInputError: as `time_stacks`.
    """
    report = ruler.progress or Progress(quiet=True)
    began = time.monotonic() - built_in_s
    with report.phase(f"latency table, {ruler.precision}"):
        left = max(1.0, ruler.budget_s - built_in_s) if ruler.budget_s else 0.0
        times = time_stacks(base, stacks, replace(ruler, most=MOST, budget_s=left), total=counts[0])
    spent = time.monotonic() - began
    costs = times.costs(ruler.precision)
    errors: tuple[HeldOutError, ...] = ()
    if counts[1]:
        with report.phase(f"held-out models, {ruler.precision}"):
            beside = base if whole is None else whole()
            unhurried = replace(ruler, budget_s=0.0, seconds=ruler.budget_s / _HELD_OUT_SHARE)
            errors = held_out_errors(costs, beside, others, shape, unhurried, total=counts[1])
    return PrecisionTable(
        costs, errors, ruler.threads, times.measurements, spent, times.versions, times.timed(ruler.precision)
    )


def profile_of(
    profile: DeviceProfile,
    key: TableKey,
    tables: Sequence[PrecisionTable],
    *,
    name: str,
    bandwidth: float,
    progress: Progress,
) -> DeviceProfile:
    """A profile with what was measured in the place of what was assumed.

    Args:
        profile: what it starts from.
        key: dimensions and workload of the table.
        tables: one a precision.
        name: of the new profile.
        bandwidth: as `memory_bandwidth` found it.
        progress: where progress goes: the figures of an NVIDIA GPU are measured here.
    """
    threads = tables[0].threads
    record = TableRecord(
        host=device_fingerprint(profile),
        versions={package: version for table in tables for package, version in table.versions.items()},
        date=datetime.now(UTC).date().isoformat(),
        runtime=profile.runtime,
        threads=threads,
        measurements=sum(table.measurements for table in tables),
        seconds=round(sum(table.seconds for table in tables), 1),
        held_out=tuple(error for table in tables for error in table.errors),
        stacks=tuple(stack for table in tables for stack in table.stacks),
    )
    costs = tuple(costs for table in tables for costs in table.costs)
    measured = f"measured {record.date} with {threads} threads"
    with progress.phase("figures of the device"):
        precisions = tuple(table.costs[0].precision for table in tables)
        found = _with_figures(profile, threads, precisions, measured, bandwidth)
    return replace(
        found,
        name=name,
        description=f"{found.description}, {measured}",
        threads=threads,
        # The figures are of the threads at hand: nothing to scale.
        core_bandwidth_bytes_per_s=0,
        cores=0,
        latency_table=LatencyTable(key, "measured", costs, record),
        sources={**found.sources, "latency_table": measured},
    )


def _with_figures(
    profile: DeviceProfile, threads: int, precisions: tuple[str, ...], measured: str, bandwidth: float
) -> DeviceProfile:
    """The profile of this very device, a CPU with its bandwidth as measured, an NVIDIA GPU with everything else too."""
    if profile.device != "cuda":
        peaks = profile.limited_to(threads).peak_flops
        profile = replace(
            profile, precisions=precisions, peak_flops={item: peaks.get(item, peaks["fp32"]) for item in precisions}
        )
        if profile.device != "CPU":
            return replace(profile, match=DeviceMatch(processors=(device_fingerprint(profile)["device"],)))
        host = detect_host()
        return replace(
            profile,
            match=match_of(host),
            memory_bytes=host.memory_bytes or profile.memory_bytes,
            bandwidth_bytes_per_s=bandwidth,
            sources={
                **profile.sources,
                "bandwidth_bytes_per_s": measured,
                **({"memory_bytes": "detected"} if host.memory_bytes else {}),
            },
        )
    from prune_export.benchmark.torch_cuda_session import DeviceCuda

    cuda = DeviceCuda()
    return replace(
        profile,
        description=cuda.name,
        match=DeviceMatch(processors=(cuda.name,)),
        precisions=precisions,
        memory_bytes=cuda.memory_bytes(),
        bandwidth_bytes_per_s=cuda.bandwidth(),
        peak_flops={item: cuda.flops(item) for item in precisions},
        sources={**profile.sources, **dict.fromkeys(("memory_bytes", "bandwidth_bytes_per_s", "peak_flops"), measured)},
    )


def error_table(table: LatencyTable) -> str:
    """What a table's record says of its error, in Markdown."""
    head = (
        "precision | predicted | models | mean | p95 | worst | in seconds | bytes alone | roofline | its ratio | noise"
    )
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    names = {"prefill": "TTFT", "decode": "TPOT"}
    for item in table.record.held_out if table.record else ():
        estimates = (item.bytes_mean, item.roofline_mean, item.roofline_ratio_mean)
        shares = (item.mean, item.p95, item.worst, item.seconds_mean, *estimates, item.noise)
        cells = " | ".join(f"{share:.1%}" for share in shares)
        lines.append(f"| {item.precision} | {names[item.phase]} | {item.models} | {cells} |")
    return "\n".join(lines)
