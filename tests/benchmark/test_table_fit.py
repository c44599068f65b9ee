"""Fitting a latency table: planted costs come back, and the solver agrees with scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls as scipy_nnls  # type: ignore[import-untyped]

from prune_export.benchmark.table_fit import Stack, fit_costs, nnls, prediction_error
from prune_export.errors import BadInputError
from prune_export.shape import LayerShape

FIXED = 1e-4
ATTENTION = {1: 1.0e-5, 2: 1.6e-5, 3: 2.0e-5}
MLP = {128: 0.9e-5, 256: 1.4e-5, 512: 3.1e-5}
SHALLOW, DEEP = 4, 8


def seconds(layers: tuple[LayerShape, ...]) -> float:
    blocks = sum(ATTENTION.get(layer.kv_heads, 0.0) + MLP.get(layer.mlp_width, 0.0) for layer in layers)
    return FIXED + blocks


def uniform(kv_heads: int, width: int, depth: int) -> tuple[LayerShape, ...]:
    return (LayerShape(3 * kv_heads, kv_heads, width),) * depth


def stacks(*, noise: float = 0.0) -> list[Stack]:
    """Stacks of 4 and 8 equal layers: each KV-head count with the widest MLP, each width with all KV heads."""
    generator = np.random.default_rng(0)
    pairs = [(heads, 512) for heads in ATTENTION] + [(3, width) for width in (128, 256)] + [(3, 0), (0, 512)]
    shapes = [uniform(heads, width, depth) for heads, width in pairs for depth in (SHALLOW, DEEP)]
    return [Stack(layers, seconds(layers) * (1 + noise * generator.standard_normal())) for layers in shapes]


def test_planted_costs_come_back() -> None:
    found = fit_costs(stacks(), phase="decode", precision="int8")
    assert found.fixed_s == pytest.approx(FIXED, rel=1e-8)
    assert dict(zip(found.attention.sizes, found.attention.seconds, strict=True)) == pytest.approx(ATTENTION, rel=1e-8)
    assert dict(zip(found.mlp.sizes, found.mlp.seconds, strict=True)) == pytest.approx(MLP, rel=1e-8)
    assert found.error == pytest.approx(0, abs=1e-10)


def test_held_out_heterogeneous_models_are_predicted() -> None:
    found = fit_costs(stacks(noise=0.01), phase="decode", precision="int8")
    generator = np.random.default_rng(1)
    held_out = []
    for _ in range(20):
        heads, widths = generator.integers(0, 4, 6).tolist(), generator.choice([0, 128, 256, 512], 6).tolist()
        layers = tuple(LayerShape(3 * k, k, width) for k, width in zip(heads, widths, strict=True))
        held_out.append(Stack(layers, seconds(layers)))
    error = prediction_error(found, held_out)
    # 1% of noise on each of 14 stacks; interpolation between them cannot be much worse.
    assert 0 < error.mean < 0.02
    assert error.mean <= error.worst < 0.05
    assert 0 < found.error < 0.01


def test_costs_never_fall_with_size_and_are_never_negative() -> None:
    # Wider blocks measured as cheaper, as noise can make them.
    layers = {width: [uniform(1, width, depth) for depth in (4, 8)] for width in (128, 256, 512)}
    measured = {128: 3e-5, 256: 2e-5, 512: 2.5e-5}
    made = [Stack(item, 1e-4 + measured[width] * len(item)) for width in layers for item in layers[width]]
    made += [Stack(uniform(1, 0, depth), 1e-4 - 1e-6 * depth) for depth in (4, 8)]
    found = fit_costs(made, phase="decode", precision="fp32")
    assert list(found.mlp.seconds) == sorted(found.mlp.seconds)
    assert min(found.mlp.seconds + found.attention.seconds) >= 0
    assert found.error > 0


@pytest.mark.parametrize("seed", range(20))
def test_the_solver_agrees_with_scipy(seed: int) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((15, 6)) * 10.0 ** generator.integers(-5, 5, 6)
    target = generator.standard_normal(15)
    expected, residual = scipy_nnls(matrix, target)
    found = nnls(matrix, target)
    assert found.min() >= 0
    np.testing.assert_allclose(np.linalg.norm(matrix @ found - target), residual, rtol=1e-9)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)


def test_stacks_that_cannot_tell_costs_apart_are_refused() -> None:
    # One depth only: the fixed cost and the blocks always occur together.
    made = [Stack(uniform(1, width, 4), 1e-3) for width in (128, 256)]
    words = r"2 stacks cannot tell 4 costs apart \(fixed, KV heads \[1\], MLP widths \[128, 256\]\): measure each size"
    with pytest.raises(BadInputError, match=words):
        fit_costs(made, phase="decode", precision="fp32")


def test_stacks_without_a_kind_of_block_or_with_broken_times_are_refused() -> None:
    with pytest.raises(BadInputError, match="needs stacks with attentions and with MLPs"):
        fit_costs([Stack(uniform(1, 0, 4), 1.0)], phase="decode", precision="fp32")
    with pytest.raises(BadInputError, match="times must be above zero"):
        fit_costs([Stack(uniform(1, 8, 4), 0.0)], phase="decode", precision="fp32")
