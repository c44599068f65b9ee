"""Measured profiles: a latency table of one model's dimensions, its error on other models, and where both come from."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from prune_export.benchmark.kit import (
    ALONE,
    BUDGET_S,
    ROUNDS,
    PrecisionTable,
    measured_precision,
    memory_bandwidth,
    profile_of,
    refuse_elsewhere,
)
from prune_export.benchmark.properties import WEIGHT_BYTES
from prune_export.benchmark.roofline import table_key
from prune_export.benchmark.stacks import AT_ONCE, ExportedStack, Ruler
from prune_export.benchmark.threads import checked_threads
from prune_export.delivery.resources import check_memory
from prune_export.delivery.stacks import (
    Design,
    build_stack,
    designs,
    format_for,
    held_out_designs,
    refuse_mixers,
    table_depth,
)
from prune_export.files import check_space, scratch_folder
from prune_export.profiles import DeviceProfile
from prune_export.progress import Progress
from prune_export.shape import ModelShape
from prune_export.target import Workload

HELD_OUT = 20
_WORK_PREFIX = "prune-export-stacks-"
# Models that lie there and are loaded at once: the first stack, the whole model, and a group of others.
_TOGETHER = 2 + AT_ONCE


def measure_profile(
    shape: ModelShape,
    profile: DeviceProfile,
    *,
    name: str,
    precisions: Sequence[str],
    workload: Workload,
    threads: int = 0,
    held_out: int = HELD_OUT,
    budget_s: float = BUDGET_S,
    seed: int = 42,
    work: Path | None = None,
    progress: Progress | None = None,
) -> DeviceProfile:
    """The profile with a latency table for one model's dimensions, measured on this machine.

    Stacks are built a few at a time and deleted once they are timed, so the disk need not hold all of them.

    Args:
        shape: of the dense model; only dimensions matter, so its weights are not read.
        profile: names device and runtime; must stand for this machine.
        name: of the new profile.
        precisions: weight precisions, each a part of the table.
        workload: what is timed.
        threads: of the runtime; 0 takes the profile's.
        held_out: heterogeneous models that the table is checked on, each measured whole; 0 for none.
        budget_s: for the table of one precision, building included.
        seed: of random weights and held-out models.
        work: where stacks are built; a temporary directory unless given.
        progress: where progress goes.

    Raises:
        BadInputError: the profile is not this machine's, a family, precision or runtime that cannot be built, or too
            little disk or memory.
    """
    report = progress or Progress(quiet=True)
    refuse_mixers(shape, "a latency table")
    refuse_elsewhere(profile)
    count = checked_threads(threads or profile.threads)
    fitted = workload.fitted(shape.context)
    multiple = max(1, profile.width_multiple)
    others = tuple(held_out_designs(shape, multiple, count=held_out, seed=seed))
    bandwidth = memory_bandwidth(profile, count, report)
    tables: list[PrecisionTable] = []
    for precision in precisions:
        ruler = Ruler(
            profile,
            fitted,
            precision,
            count,
            ROUNDS,
            budget_s=budget_s,
            alone=ALONE,
            progress=report,
            discard=True,
        )
        with scratch_folder(work or Path(tempfile.gettempdir()), _WORK_PREFIX) as folder:
            check_resources(shape, precision, folder)
            shallow = shape.with_layers(shape.layers[: table_depth(shape, precision, count)])
            wanted = list(designs(shallow, multiple, finer=True, whole_beside=shallow != shape))
            dense = [] if shallow == shape else [Design("dense", shape.layers)]  # what the slopes are continued to
            begun = time.monotonic()
            (base,) = built(shape, [Design("base", shallow.layers)], folder, ruler, seed=seed)
            tables.append(
                measured_precision(
                    shape,
                    base,
                    built(shape, [*wanted, *dense], folder, ruler, seed=seed),
                    built(shape, others, folder, ruler, seed=seed),
                    ruler,
                    counts=(len(wanted) + len(dense), len(others)),
                    whole=partial(_first, shape, dense, folder, ruler, seed) if dense else None,
                    built_in_s=time.monotonic() - begun,
                )
            )
    return profile_of(profile, table_key(shape, fitted), tables, name=name, bandwidth=bandwidth, progress=report)


def check_resources(shape: ModelShape, precision: str, folder: Path) -> None:
    """Refuses to start without the disk and the memory that a table takes at most.

    Args:
        shape: of the dense model, the largest that is built.
        precision: of its weights.
        folder: where it is built, in fp32 first.

    Raises:
        BadInputError: too little of either.
    """
    stored = _TOGETHER * WEIGHT_BYTES.get(precision, 4.0)
    parameters = shape.parameters()
    check_space(folder, int((stored + 4) * parameters) + (256 << 20), remedy="name another place with TMPDIR")
    # Twice in fp32 while it is exported; later those that are timed together.
    check_memory(int(max(8.0, stored) * parameters), parameters)


def built(
    shape: ModelShape, wanted: Sequence[Design], folder: Path, ruler: Ruler, *, seed: int
) -> Iterator[ExportedStack]:
    """Stacks in a ruler's precision and for its runtime, each built when it is asked for."""
    for design in wanted:
        yield build_stack(
            shape,
            design,
            folder / design.name.replace(" ", "-"),
            precision=ruler.precision,
            format=format_for(ruler.profile.runtime),
            group_size=ruler.profile.int4_group,
            seed=seed,
        )


def _first(shape: ModelShape, wanted: Sequence[Design], folder: Path, ruler: Ruler, seed: int) -> ExportedStack:
    return next(built(shape, wanted, folder, ruler, seed=seed))
