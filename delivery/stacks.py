"""The stacks of blocks that a latency table is made from: which ones, and their exported files.

Random weights, exported by the same exporter as a delivered artifact.  At the model's own depth the weights lie where
the model's own would lie, in cache or in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from prune_export.benchmark.bandwidth import usable_cache_bytes
from prune_export.benchmark.properties import WEIGHT_BYTES
from prune_export.benchmark.runtimes import RUNTIMES
from prune_export.benchmark.stacks import ExportedStack
from prune_export.benchmark.torch_session import DTYPES
from prune_export.delivery.exporters import EXPORTERS, exporter_of
from prune_export.delivery.resources import free_memory
from prune_export.errors import BadInputError
from prune_export.prune.checkpoint import save_checkpoint
from prune_export.prune.synthetic import random_model
from prune_export.shape import LayerShape, ModelShape

_WIDTH_SHARES = (0.5, 0.25)
_FINER_SHARES = (0.75, 0.5, 0.25, 0.125)
# Up to so many parameters a stack of the model's own depth is built and timed in seconds.
_SMALL = 250_000_000
# What a token reads of a shallower stack, LM head included, is at least so many times the last cache, as far as it is
# at hand (which counts arrays of which a tenth lies there): then blocks come from memory like the model's.
_CACHES = 3
_UNKNOWN_CACHE = 128 * 2**20
# Fewer blocks beside a large LM head leave more of the timings' noise in what a block costs: 1% of noise puts held-out
# models of a 1B off by 2.0% with 4 layers, by 1.3% to 1.4% with 6 or more (simulated with `designs`).
_LEAST_DEPTH = 8
# Layers from which on a stack of a quarter of them is timed: in a small model of fewer, what is fixed stays uncertain.
_DEEP = 8
_CHECKPOINT = "checkpoint"
# Of held-out models: each sub-block is gone with this probability, as in plans of middling targets.
_GONE = 0.15


@dataclass(frozen=True)
class Design:
    """One stack: its layers and what it varies."""

    name: str
    layers: tuple[LayerShape, ...]


def refuse_mixers(shape: ModelShape, what: str) -> None:
    """Refuses a state-space model: a table holds costs of attentions and MLPs.

    Raises:
        BadInputError: it is one.
    """
    if shape.mixer is not None:
        raise BadInputError(
            f"{what} needs the costs of attentions and MLPs, a {shape.family} model has neither: use --target-ratio"
        )


def table_depth(shape: ModelShape, precision: str, threads: int) -> int:
    """Layers of the stacks that a table is measured with: the model's own, or fewer where it is large.

    What a block costs does not depend on how many there are, as long as their weights do not stay in the cache.

    Args:
        shape: of the dense model.
        precision: of the weights.
        threads: of the runtime.
    """
    depth = len(shape.layers)
    if shape.parameters() <= _SMALL or len(set(shape.layers)) > 1:
        return depth
    layer = shape.layers[0]
    parameters = shape.attention_parameters(layer.kv_heads, layer.query_heads) + shape.mlp_parameters(layer.mlp_width)
    head = shape.vocab_size * shape.hidden_size
    wanted = _CACHES * (usable_cache_bytes(threads) or _UNKNOWN_CACHE) / WEIGHT_BYTES[precision]
    # The stack with most of the smallest MLPs has about half of the bytes in its blocks.
    needed = math.ceil((wanted - head) / (parameters / 2))
    return min(depth, max(_LEAST_DEPTH, needed + needed % 2))


def designs(shape: ModelShape, multiple: int, *, finer: bool = False, whole_beside: bool = False) -> Iterator[Design]:
    """Stacks whose differences to the dense model give every cost: blocks gone, then smaller blocks.

    Smaller MLPs are timed among others of other widths, as in plans: models of mixed widths were found slower than
    their blocks in models of one width, by 4% in prefill and 1.5% in decode (docs/devices.md).

    A deep model's fixed cost (LM head, embedding) comes from a stack of a quarter of its blocks.  From the others it is
    twice half of the attentions and half of the MLPs, less three times the dense model, which multiplies noise: timings
    1.5% off put it 4.7% of the dense model's time off, now 0.8% (simulated in tests/delivery/test_designs.py).

    Args:
        shape: of the dense model.
        multiple: of MLP widths that the device likes.
        finer: more widths and every KV-head count, for a table that is kept.
        whole_beside: these are stacks of few layers, and the model itself is timed as well, which tells what is fixed.
    """
    dense = shape.layers
    if len(dense) >= _DEEP and not whole_beside:
        kept = [layer if index % 4 == 0 else LayerShape(0, 0, 0) for index, layer in enumerate(dense)]
        yield Design("a quarter of the blocks", tuple(kept))
    every_other = [index % 2 == 1 for index in range(len(dense))]
    yield Design("half of the attentions", tuple(
        LayerShape(0, 0, layer.mlp_width) if gone else layer for layer, gone in zip(dense, every_other, strict=True)
    ))  # fmt: skip
    yield Design("half of the MLPs", tuple(
        LayerShape(layer.query_heads, layer.kv_heads, 0) if gone else layer
        for layer, gone in zip(dense, every_other, strict=True)
    ))  # fmt: skip
    width = max(layer.mlp_width for layer in dense)
    shares = _FINER_SHARES if finer else _WIDTH_SHARES
    narrow = {max(multiple, round(width * share / multiple) * multiple) for share in shares}
    sizes = sorted({width, *(size for size in narrow if size < width)}, reverse=True)
    for size in sizes[1:]:
        yield Design(f"three of five MLPs of {size}", _mixed(dense, size, [other for other in sizes if other != size]))
    heads = max(layer.kv_heads for layer in dense)
    few = {1, (heads + 1) // 4, (heads + 1) // 2, heads * 3 // 4} if finer else {1, (heads + 1) // 2}
    for fewer in sorted(few - {0, heads}):
        yield Design(f"{fewer} KV heads", tuple(_with_heads(layer, fewer) for layer in dense))


def held_out_designs(shape: ModelShape, multiple: int, *, count: int, seed: int) -> Iterator[Design]:
    """Heterogeneous models as plans make them: every layer with its own width and KV heads, some sub-blocks gone."""
    random = np.random.default_rng(seed)
    for number in range(count):
        layers = [_random_layer(layer, multiple, random) for layer in shape.layers]
        if not any(layer.kv_heads for layer in layers):
            layers[0] = replace(layers[0], query_heads=shape.layers[0].query_heads, kv_heads=shape.layers[0].kv_heads)
        yield Design(f"held-out model {number + 1}", tuple(layers))


def build_stack(
    shape: ModelShape, design: Design, directory: Path, *, precision: str, format: str, group_size: int, seed: int
) -> ExportedStack:
    """Writes one stack with random weights.

    Args:
        shape: of the dense model.
        design: which blocks.
        directory: where the exported files go; made.
        precision: of the weights.
        format: of the files, as in `EXPORTERS`, or "checkpoint".
        group_size: of int4 weights.
        seed: of the weights.

    Raises:
        BadInputError: a family, precision or format that cannot be built.
    """
    if format == _CHECKPOINT and precision not in DTYPES:
        raise BadInputError(f"precision {precision}: torch is timed in {', '.join(DTYPES)}")
    model = random_model(shape.with_layers(design.layers), seed=seed)
    if format == _CHECKPOINT:
        save_checkpoint(model, None, directory, dtype=getattr(torch, DTYPES[precision]))
    else:
        exporter_of(format).stack(model, directory, precision, group_size)
    del model
    free_memory()
    return ExportedStack(design.layers, directory)


def format_for(runtime: str) -> str:
    """The format that a profile's runtime runs.

    Raises:
        BadInputError: none that a stack can be built for.
    """
    known = {row.name: row.format for row in RUNTIMES if row.format in {*EXPORTERS, _CHECKPOINT}}
    if runtime not in known:
        raise BadInputError(f"no stacks for runtime {runtime}: use a profile of {' or '.join(known)}")
    return known[runtime]


def _random_layer(layer: LayerShape, multiple: int, random: np.random.Generator) -> LayerShape:
    heads = 0 if random.random() < _GONE else int(random.integers(1, layer.kv_heads + 1)) if layer.kv_heads else 0
    steps = layer.mlp_width // multiple
    width = int(random.integers(max(1, steps // 4), steps + 1)) * multiple if steps else layer.mlp_width
    group = layer.query_heads // layer.kv_heads if layer.kv_heads else 0
    return LayerShape(heads * group, heads, 0 if random.random() < _GONE else width)


def _mixed(dense: tuple[LayerShape, ...], size: int, others: list[int]) -> tuple[LayerShape, ...]:
    """Three of five MLPs of a size, between them one of each of the others in turn.

    So four of five are of another width than the one before: as in plans, where most MLPs are cut, each to its own.
    """
    between = cycle(others)
    widths = (next(between) if index % 5 in (1, 3) else size for index in range(len(dense)))
    return tuple(_narrowed(layer, width) for layer, width in zip(dense, widths, strict=True))


def _narrowed(layer: LayerShape, width: int) -> LayerShape:
    return replace(layer, mlp_width=min(width, layer.mlp_width))


def _with_heads(layer: LayerShape, heads: int) -> LayerShape:
    if layer.kv_heads <= heads:
        return layer
    return replace(layer, query_heads=heads * (layer.query_heads // layer.kv_heads), kv_heads=heads)
