"""Compensation of a chosen plan, against the dense model's own stream and dense solvers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import (  # type: ignore[import-not-found]
    VARIANTS,
    last_stream,
    plan_of,
    tiny_model,
    tokens,
    varied_plan,
)

from prune_export.errors import BadInputError
from prune_export.plan import LayerKeep, PrunePlan, keep_all
from prune_export.prune.calibration import shortage
from prune_export.prune.families import family_of
from prune_export.prune.fitting import RIDGES, Sums, best_update, climbed
from prune_export.prune.refit import refit
from prune_export.prune.shapes import model_shape
from prune_export.prune.sub_blocks import matrix, sub_blocks
from prune_export.prune.surgery import prune_model
from prune_export.shape import LayerShape, ModelShape


def stream_error(dense: Any, pruned: Any, ids: torch.Tensor) -> float:
    """Squared difference of the last streams relative to the dense one, mean over tokens."""
    ours, theirs = last_stream(dense, ids), last_stream(pruned, ids)
    return float(((ours - theirs).square().sum(-1) / ours.square().sum(-1)).mean())


def redundant(variant: str, layers: int = 5) -> Any:
    """A model whose embeddings span 8 of 32 directions and whose projections write to them: much can be made up for."""
    model = tiny_model(variant, layers=layers)
    basis = torch.linalg.qr(torch.randn(32, 8, generator=torch.Generator().manual_seed(9)))[0]
    onto = basis @ basis.T
    embeddings = model.get_submodule(family_of(model.config).embeddings)
    embeddings.weight.copy_(embeddings.weight @ onto)
    for block in sub_blocks(model):
        matrix(block.module).copy_(onto @ matrix(block.module))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_gets_closer_to_the_dense_model(variant: str) -> None:
    dense = redundant(variant)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    plan = varied_plan(dense)
    pruned = prune_model(dense, plan)
    other = tokens(20, 12, seed=7)
    cut = stream_error(dense, pruned, other)
    found = refit(dense, pruned, tokens(80, 12, seed=6))
    assert len(found.fits) == len(sub_blocks(pruned))
    assert all(fit.error_after <= fit.error_before for fit in found.fits)
    assert any(fit.ridge is not None for fit in found.fits)
    assert stream_error(dense, pruned, other) < 0.95 * cut
    assert model_shape(pruned.config) == plan.target
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    assert not any(parameter.is_inference() for parameter in pruned.parameters())


def test_no_surgery_no_change() -> None:
    dense = tiny_model(layers=3)
    pruned = prune_model(dense, plan_of(dense, {}))
    found = refit(dense, pruned, tokens(20, 12))
    assert all(fit.ridge is None for fit in found.fits)
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, dense.state_dict()[name]), name


def test_a_repeated_channel_is_made_up_for() -> None:
    dense = tiny_model(layers=3)
    mlp = dense.model.layers[1].mlp
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.weight[7] = projection.weight[3]
    whole = keep_all(model_shape(dense.config))[1]
    keep = LayerKeep(whole.kv_groups, tuple(channel for channel in range(24) if channel != 7))
    assert_made_up_for(dense, plan_of(dense, {1: keep}))


def test_a_repeated_head_is_made_up_for() -> None:
    dense = tiny_model(layers=3)
    attention = dense.model.layers[1].self_attn
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        half = len(projection.weight) // 2
        projection.weight[half:] = projection.weight[:half]
    whole = keep_all(model_shape(dense.config))[1]
    assert_made_up_for(dense, plan_of(dense, {1: LayerKeep((0,), whole.mlp_channels)}))


def test_a_removed_block_that_follows_linearly_is_absorbed() -> None:
    """The attention of layer 1 gives a linear function of what enters the down projection of layer 0."""
    dense = tiny_model(layers=3)
    plan = plan_of(dense, {1: LayerKeep((), keep_all(model_shape(dense.config))[1].mlp_channels)})
    pruned = prune_model(dense, plan)
    seen: dict[str, torch.Tensor] = {}
    follows = 0.3 * torch.randn(32, 24, generator=torch.Generator().manual_seed(3))
    layers = dense.model.layers
    layers[0].mlp.down_proj.register_forward_hook(lambda _m, inputs, _o: seen.update(x=inputs[0]))
    layers[1].self_attn.register_forward_hook(lambda _m, _i, output: (seen["x"] @ follows.T, *output[1:]))
    assert_made_up_for(dense, plan, pruned)
    expected = layers[0].mlp.down_proj.weight + follows
    assert torch.allclose(pruned.model.layers[0].mlp.down_proj.weight, expected, atol=0.01)


def assert_made_up_for(dense: Any, plan: PrunePlan, pruned: Any = None) -> None:
    pruned = prune_model(dense, plan) if pruned is None else pruned
    other = tokens(20, 12, seed=7)
    before = stream_error(dense, pruned, other)
    refit(dense, pruned, tokens(80, 12, seed=6))
    after = stream_error(dense, pruned, other)
    assert before > 1e-3
    assert after**0.5 < 1e-4 * max(1.0, before**0.5 / 0.1)


def test_weights_are_rounded_to_the_stored_precision() -> None:
    dense = tiny_model("llama-biases-tied").bfloat16().float()
    pruned = prune_model(dense, varied_plan(dense))
    refit(dense, pruned, tokens(40, 12), stored=torch.bfloat16)
    for name, tensor in pruned.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensor.bfloat16().float()), name


def test_the_same_again() -> None:
    dense = tiny_model("qwen2")
    fitted = []
    for _ in range(2):
        pruned = prune_model(dense, varied_plan(dense))
        fitted.append((refit(dense, pruned, tokens(40, 12)), pruned.state_dict()))
    assert fitted[0][0] == fitted[1][0]
    assert all(torch.equal(tensor, fitted[1][1][name]) for name, tensor in fitted[0][1].items())


@pytest.mark.parametrize(("where", "words"), [("down_proj", "its MLP"), ("o_proj", "its attention")])
def test_activations_that_are_not_finite_name_the_layer(where: str, words: str) -> None:
    dense = tiny_model()
    for name, parameter in dense.named_parameters():
        if name.startswith("model.layers.4.") and where in name:
            parameter.fill_(3e38)
    with pytest.raises(BadInputError, match=f"layer 4: {words} gives activations that are not finite"):
        refit(dense, prune_model(dense, varied_plan(dense)), tokens(10, 12))


def test_few_tokens_for_wide_projections_are_warned_of() -> None:
    shape = ModelShape("llama", 32, 8, 61, False, (LayerShape(4, 2, 24), LayerShape(8, 2, 40)))
    assert shortage(640, shape) == ""
    assert "639 calibration tokens for projections of up to 64 inputs, 640 are advisable" in shortage(639, shape)


@pytest.mark.parametrize("bias", [False, True])
def test_fits_are_ridge_regressions_and_gains_are_real(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator).double() + 0.5
    r = x @ torch.randn(6, 3, generator=generator).double() + torch.randn(60, 3, generator=generator).double() + 2.0
    weight = torch.rand(60, 1, generator=generator).double() + 0.1
    parts = []
    for rows in (slice(0, 48), slice(48, 60)):
        parts.append(Sums(6, 3))
        parts[-1].add(x[rows], r[rows], weight[rows])
    update = best_update(*parts, bias=bias)
    assert update is not None
    assert bool(update.bias.any()) == bias

    def error(delta: torch.Tensor, shift: torch.Tensor) -> float:
        return float(((r - x @ delta.T - shift).square() * weight)[48:].sum())

    # The gain is that of the fit without the held-out rows.
    delta, shift = parts[0].solve(update.ridge, bias=bias)
    share, gain = parts[1].best_share(delta, shift)
    assert update.gain == gain
    assert error(0.0 * delta, 0.0 * shift) - error(share * delta, share * shift) == pytest.approx(gain)
    assert error(delta, shift) >= error(share * delta, share * shift) - 1e-9
    # With (almost) no ridge it is weighted least squares.
    design = torch.cat([x[:48], torch.ones(48, 1).double()], 1) if bias else x[:48]
    root = weight[:48].sqrt()
    solution = torch.linalg.lstsq(design * root, r[:48] * root, driver="gelsd").solution
    delta, shift = parts[0].solve(1e-13, bias=bias)
    assert torch.allclose(delta, solution[:6].T, rtol=1e-7)
    assert torch.allclose(shift, solution[6] if bias else torch.zeros(3).double(), rtol=1e-7)


def test_noise_is_not_fitted() -> None:
    """A target that has nothing to do with the inputs: hardly any of an update, if any, survives the held-out part."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for count in (40, 4000):
        parts.append(Sums(20, 3))
        parts[-1].add(*(torch.randn(count, n, generator=generator).double() for n in (20, 3)), torch.ones(count, 1))
    update = best_update(*parts, bias=False)
    assert update is None or update.gain < 0.01 * parts[1].rr


@pytest.mark.parametrize("peak", range(8))
def test_the_ridge_is_climbed_to_not_searched_for(peak: int) -> None:
    asked: list[int] = []

    def value(position: int) -> float:
        if position not in asked:
            asked.append(position)
        return 10.0 - abs(position - peak)

    assert climbed(value, start=3, last=7) == peak
    assert len(asked) <= abs(peak - 3) + 3  # what lies on the way, and one beyond on either side


def test_without_a_gain_at_the_start_the_strongest_ridge_is() -> None:
    gains = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.1]
    assert climbed(gains.__getitem__, start=3, last=7) == 6


def test_a_ridge_is_chosen_by_sums_of_many_outputs() -> None:
    """The choice and the gain of 256 random sums of 600 outputs, against those of all of them."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(600, 40, generator=generator).double()
    parts = []
    for count in (120, 60):
        x = torch.randn(count, 40, generator=generator).double()
        noise = torch.randn(count, 600, generator=generator).double()
        parts.append(Sums(40, 600))
        parts[-1].add(x, x @ mixing.T + 4.0 * noise, torch.ones(count, 1))
    update = best_update(*parts, bias=False)
    gains = [parts[1].best_share(*parts[0].solve(ridge, bias=False))[1] for ridge in RIDGES]
    assert update is not None
    assert gains[RIDGES.index(update.ridge)] > 0.999 * max(gains)
    # The sum of 256 random squares is off by some sqrt(2 / 256), 9%, of one direction, less of a mixture of 40.
    assert abs(update.gain / max(gains) - 1.0) < 0.05
