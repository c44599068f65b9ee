"""Packs what a machine without torch needs to measure itself: exported stacks of a model's blocks, and their list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prune_export.benchmark.kit import KIT_FILE, KIT_VERSION, Kit, KitPart, KitStack
from prune_export.benchmark.properties import WEIGHT_BYTES
from prune_export.benchmark.runtimes import TORCH
from prune_export.benchmark.stacks import Ruler
from prune_export.delivery.profiling import built
from prune_export.delivery.stacks import Design, designs, held_out_designs, refuse_mixers
from prune_export.errors import BadInputError
from prune_export.files import check_space, staged
from prune_export.hashes import file_records, write_sealed
from prune_export.profiles import DeviceProfile
from prune_export.progress import Progress
from prune_export.records import to_json
from prune_export.shape import ModelShape
from prune_export.target import Workload

# Layers of a stack: the slope between stacks is a block's cost at any depth where the caches are far smaller.  How
# large they are on the machine that measures is not known here: it warns.
DEPTH = 4
HELD_OUT = 3


def pack_kit(
    shape: ModelShape,
    profile: DeviceProfile,
    output: Path,
    *,
    precisions: Sequence[str],
    workload: Workload,
    depth: int = DEPTH,
    held_out: int = HELD_OUT,
    seed: int = 42,
    force: bool = False,
    progress: Progress | None = None,
) -> Kit:
    """Writes a kit.

    Args:
        shape: of the dense model; only dimensions matter.
        profile: names the runtime that the files are for, and the widths that the device likes.
        output: destination directory.
        precisions: weight precisions.
        workload: what will be timed.
        depth: layers of a stack, at least 2.
        held_out: models of the whole depth that the table is checked on, beside the dense one.
        seed: of random weights and held-out models.
        force: replace an existing output.
        progress: where progress goes.

    Raises:
        BadInputError: fewer than two layers, a family, precision or runtime that cannot be built, a runtime that needs
            torch, or too little disk.
    """
    report = progress or Progress(quiet=True)
    refuse_mixers(shape, "a latency table")
    if profile.runtime == TORCH:
        raise BadInputError(
            "runtime torch: a kit is for a machine without torch, choose --runtime openvino or onnxruntime; where "
            "torch is installed, measure there with prune-export profile measure --model DIR"
        )
    if depth < 2:
        raise BadInputError(f"--depth {depth}: a stack needs at least 2 layers, so that half of its blocks can go")
    fitted = workload.fitted(shape.context)
    multiple = max(1, profile.width_multiple)
    shallow = shape.with_layers(shape.layers[:depth])
    wanted = [Design("base", shallow.layers), *designs(shallow, multiple, finer=True, whole_beside=shallow != shape)]
    whole = [] if shallow == shape else [Design("dense", shape.layers)]
    others = tuple(held_out_designs(shape, multiple, count=held_out, seed=seed))
    _check_space(shape, [*wanted, *whole, *others], precisions, output)
    parts = []
    with staged(output, force=force) as stage:
        for precision in precisions:
            with report.phase(f"building {len(wanted) + len(whole) + held_out} models in {precision}"):
                ruler = Ruler(profile, fitted, precision)
                base, *stacks = _packed(shape, wanted, stage, ruler, seed, report)
                dense = _packed(shape, whole, stage, ruler, seed, report)
                checks = _packed(shape, others, stage, ruler, seed, report)
            parts.append(KitPart(precision, base, tuple(stacks), tuple(checks), dense[0] if dense else None))
        files = file_records(stage, besides=KIT_FILE)
        kit = Kit(KIT_VERSION, profile.runtime, shape, fitted, tuple(parts), files)
        write_sealed(stage / KIT_FILE, to_json(kit))
    return kit


def _check_space(shape: ModelShape, wanted: Sequence[Design], precisions: Sequence[str], output: Path) -> None:
    """One of them lies there in fp32 while it is built."""
    parameters = sum(shape.with_layers(design.layers).parameters() for design in wanted)
    needed = parameters * sum(WEIGHT_BYTES.get(precision, 4.0) for precision in precisions) + 4 * shape.parameters()
    check_space(output, int(needed) + (64 << 20))


def _packed(
    shape: ModelShape, wanted: Sequence[Design], stage: Path, ruler: Ruler, seed: int, report: Progress
) -> list[KitStack]:
    folder = stage / ruler.precision
    found = []
    for design, stack in zip(wanted, built(shape, wanted, folder, ruler, seed=seed), strict=True):
        found.append(KitStack(design.name, str(stack.directory.relative_to(stage)), stack.layers))
        report.update(len(found), len(wanted), design.name)
    return found
