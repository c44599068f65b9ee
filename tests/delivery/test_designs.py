"""Which stacks a latency table is made from."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from prune_export.benchmark.table_fit import Stack, fit_costs
from prune_export.delivery.stacks import designs, held_out_designs
from prune_export.shape import LayerShape, ModelShape


@pytest.fixture
def shape() -> ModelShape:
    layer = LayerShape(9, 3, 1536)
    return ModelShape(
        family="llama",
        hidden_size=576,
        head_dim=64,
        vocab_size=49152,
        context=2048,
        tied_embeddings=True,
        layers=(layer,) * 30,
    )


def _seconds(layers: tuple[LayerShape, ...]) -> float:
    return (
        0.05
        + sum(0.004 + 0.002 * layer.kv_heads for layer in layers if layer.kv_heads)
        + sum(layer.mlp_width * 1e-5 for layer in layers)
    )


@pytest.mark.parametrize("finer", [False, True])
def test_what_is_fixed_is_not_charged_to_the_blocks(shape: ModelShape, finer: bool) -> None:
    stacks = [shape.layers, *(design.layers for design in designs(shape, 128, finer=finer))]
    random = np.random.default_rng(5)
    found: dict[str, list[float]] = {"all": [], "without a quarter": []}
    for _ in range(200):
        timed = [Stack(layers, _seconds(layers) * random.normal(1.0, 0.015)) for layers in stacks]
        for name, used in (("all", timed), ("without a quarter", [timed[0], *timed[2:]])):
            found[name].append(fit_costs(used, phase="decode", precision="int8").fixed_s)
    dense = _seconds(shape.layers)
    # Timings 1.5% off.  Found: 0.8% of the dense model's time, and 4.7% or more without the stack of few blocks (by the
    # propagation of errors 0.55 and 3.7 times the timings').
    spread = {name: float(np.sqrt(np.mean((np.array(values) - 0.05) ** 2))) / dense for name, values in found.items()}
    assert spread["all"] < 0.012
    assert spread["without a quarter"] > 2 * spread["all"]


@pytest.mark.parametrize("finer", [False, True])
def test_what_changes_of_width_cost_is_in_what_smaller_mlps_cost(shape: ModelShape, finer: bool) -> None:
    each = 0.04 * _seconds(shape.layers) / 30  # as in prefill on a Xeon: about 4% of a model like those below

    def slower(layers: tuple[LayerShape, ...]) -> float:
        widths = [layer.mlp_width for layer in layers if layer.mlp_width]
        return _seconds(layers) + each * sum(width != before for before, width in pairwise(widths))

    stacks = [shape.layers, *(design.layers for design in designs(shape, 128, finer=finer))]
    costs = fit_costs([Stack(layers, slower(layers)) for layers in stacks], phase="prefill", precision="int8")
    others = [design.layers for design in held_out_designs(shape, 128, count=20, seed=3)]
    errors = [costs.seconds(layers) / slower(layers) - 1 for layers in others]
    without = [_seconds(layers) / slower(layers) - 1 for layers in others]
    # Charged to the smaller MLPs of the stacks, it is right on average for models with as many changes, not in each.
    assert float(np.mean(without)) < -0.03
    assert abs(float(np.mean(errors))) < 0.015
    assert float(np.mean(np.abs(errors))) < 0.015


def test_a_shallow_stack_needs_no_quarter(shape: ModelShape) -> None:
    names = [design.name for design in designs(shape.with_layers(shape.layers[:4]), 128)]
    assert names[:2] == ["half of the attentions", "half of the MLPs"]
