"""The latency table that a plan is searched with: measured here where the host is the device, else estimated.

Measured tables come from stacks: the model itself and a few variations of it with random weights, each changing the
blocks of one kind, exported by the same exporter and timed by the same harness as the delivered artifact.  At the
model's own depth the weights lie where the model's own would lie, in cache or in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from prune_export.benchmark.measure import Subject, measure_together
from prune_export.benchmark.roofline import roofline_table, table_key
from prune_export.benchmark.table_fit import Stack, fit_costs
from prune_export.delivery.request import Job, Variant
from prune_export.delivery.resources import free_memory
from prune_export.errors import BadInputError
from prune_export.export.files import MODEL_XML
from prune_export.export.openvino_ir import export_graph_only
from prune_export.export.openvino_options import OpenVinoOptions
from prune_export.export.weights import compress
from prune_export.manifest import Measurement
from prune_export.profiles.latency import LatencyTable, Phase
from prune_export.prune.synthetic import random_model
from prune_export.shape import LayerShape, ModelShape

_ROUNDS = 2
_WIDTH_SHARES = (0.5, 0.25)


@dataclass(frozen=True)
class _Design:
    """One stack: its layers and what it varies."""

    name: str
    layers: tuple[LayerShape, ...]


def latency_table(job: Job, dense: Variant) -> LatencyTable:
    """Block costs in the precision of `dense`, whose own measurement is one of the stacks.

    Args:
        job: the delivery at work.
        dense: the dense model in the precision that is pruned for.

    Raises:
        BadInputError: a state-space model, a profile with a table for another model, or without a peak for this
            precision.
    """
    if job.shape.mixer is not None:
        raise BadInputError(
            f"a latency target needs the costs of attentions and MLPs, a {job.shape.family} model has neither: use "
            "--target-ratio"
        )
    key = table_key(job.shape, job.workload)
    if job.profile.latency_table is not None:
        job.profile.latency_table.check(key)
        return job.profile.latency_table
    if not job.measured:
        return roofline_table(job.profile, job.shape, job.workload, (dense.precision,))
    designs = tuple(_designs(job.shape, max(1, job.profile.width_multiple)))
    with job.progress.phase(f"latency table: building {len(designs)} stacks"):
        folders = []
        for done, design in enumerate(designs):
            folders.append(_stack(job, design, dense.precision))
            job.progress.update(done + 1, len(designs), design.name)
    with job.progress.phase("latency table: measuring"), job.memory.paused():
        subjects = [Subject(path, dense.precision) for path in (dense.directory, *folders)]
        results = measure_together(
            subjects,
            profile=job.profile,
            workload=job.workload,
            rounds=_ROUNDS,
            threads=job.threads,
            sample_memory=False,
            progress=job.progress,
        )
    shutil.rmtree(job.work / "stacks")
    layers = (job.shape.layers, *(design.layers for design in designs))
    phases: tuple[Phase, ...] = ("prefill", "decode")
    costs = tuple(
        fit_costs(
            [Stack(stack, _seconds(result, phase)) for stack, result in zip(layers, results, strict=True)],
            phase=phase,
            precision=dense.precision,
        )
        for phase in phases
    )
    return LatencyTable(key, "measured", costs)


def _seconds(measurement: Measurement, phase: Phase) -> float:
    return measurement.percentile("ttft" if phase == "prefill" else "tpot", "p50")


def _designs(shape: ModelShape, multiple: int) -> Iterator[_Design]:
    """Stacks whose differences give every cost: half of the blocks gone, then smaller blocks of each kind."""
    dense = shape.layers
    every_other = [index % 2 == 1 for index in range(len(dense))]
    yield _Design("half of the attentions", tuple(
        LayerShape(0, 0, layer.mlp_width) if gone else layer for layer, gone in zip(dense, every_other, strict=True)
    ))  # fmt: skip
    yield _Design("half of the MLPs", tuple(
        LayerShape(layer.query_heads, layer.kv_heads, 0) if gone else layer
        for layer, gone in zip(dense, every_other, strict=True)
    ))  # fmt: skip
    width = max(layer.mlp_width for layer in dense)
    for share in _WIDTH_SHARES:
        narrow = max(multiple, round(width * share / multiple) * multiple)
        if 0 < narrow < width:
            yield _Design(f"MLPs of {narrow}", tuple(_narrowed(layer, narrow) for layer in dense))
    heads = max(layer.kv_heads for layer in dense)
    for fewer in sorted({1, (heads + 1) // 2} - {heads}):
        yield _Design(f"{fewer} KV heads", tuple(_with_heads(layer, fewer) for layer in dense))


def _narrowed(layer: LayerShape, width: int) -> LayerShape:
    return replace(layer, mlp_width=min(width, layer.mlp_width))


def _with_heads(layer: LayerShape, heads: int) -> LayerShape:
    if layer.kv_heads <= heads:
        return layer
    return replace(layer, query_heads=heads * (layer.query_heads // layer.kv_heads), kv_heads=heads)


def _stack(job: Job, design: _Design, precision: str) -> Path:
    base = job.work / "stacks" / design.name.replace(" ", "-")
    plain, folder = base / "fp32", base / precision
    plain.mkdir(parents=True)
    model = random_model(job.shape.with_layers(design.layers), seed=job.request.seed)
    export_graph_only(model, plain / MODEL_XML)
    del model
    free_memory()
    if precision != "fp32":
        compress(plain, folder, precision=precision, options=OpenVinoOptions(group_size=job.profile.int4_group))
        shutil.rmtree(plain)
    return folder
