"""What every sub-block's removal and narrowing does, against whole passes of the models themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (  # type: ignore[import-not-found]
    ONE_OF_EACH,
    VARIANTS,
    masked,
    plan_of,
    tiny_model,
    tokens,
)

from prune_export.errors import BadInputError
from prune_export.plan import LayerKeep, keep_all
from prune_export.prune import divergence, sensitivity
from prune_export.prune.closed_form import shared_update
from prune_export.prune.divergence import Divergence
from prune_export.prune.layer_runner import LayerRunner
from prune_export.prune.reorder import identity_orders
from prune_export.prune.scoring import ABSORB_RIDGE, RIDGE, BlockScores, Scoring
from prune_export.prune.sensitivity import output_sensitivity
from prune_export.prune.shapes import model_shape
from prune_export.prune.sub_blocks import SubBlock, matrix, matrix_replaced, sub_blocks
from prune_export.prune.surgery import prune_model


def divergence_of(dense: Any, changed: Any, ids: torch.Tensor) -> torch.Tensor:
    """KL(dense || changed) of every sequence, in nats a token, from two whole passes."""
    with torch.no_grad():
        p, q = (torch.log_softmax(model(ids, use_cache=False).logits.double(), -1) for model in (dense, changed))
    return (p.exp() * (p - q)).sum(-1).mean(1)


def without(model: Any, block: SubBlock) -> tuple[LayerKeep, ...]:
    """The plan's entries with one sub-block removed."""
    keep = list(keep_all(model_shape(model.config)))
    part = {"attention": "kv_groups", "mlp": "mlp_channels", "mixer": "mixer_units"}[block.part]
    keep[block.layer] = replace(keep[block.layer], **{part: ()})
    return tuple(keep)


@pytest.mark.parametrize("variant", ["llama", "gemma2", "gpt_neox", "mamba"])
def test_divergence_equals_two_whole_passes(variant: str) -> None:
    model, ids = tiny_model(variant, layers=3), tokens(3, 12)
    measured = Divergence(LayerRunner(model, identity_orders(model_shape(model.config).layers)), ids)
    nll = measured.learn_dense()
    expected = float(model(ids, labels=ids).loss)
    assert nll == pytest.approx(expected, rel=1e-5)
    for block in sub_blocks(model)[1:4]:
        measured.keep_state(block.index)
        layers = list(measured._dense)
        layers[block.layer] = block.resized(layers[block.layer], layers[block.layer], 0)
        start = 2 * block.layer if variant == "gpt_neox" else block.index
        effect = measured.of(start, tuple(layers))
        with masked(model, without(model, block)) as changed:
            logits = changed(ids, use_cache=False).logits
        dense = model(ids, use_cache=False).logits
        p, q = (torch.log_softmax(item.double(), -1) for item in (dense, logits))
        assert torch.allclose(effect.per_sequence, (p.exp() * (p - q)).sum(-1).mean(1), rtol=1e-3, atol=1e-7), block


def test_what_is_beyond_a_limit_is_dropped_early(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model(layers=3), tokens(16, 12)
    monkeypatch.setattr(divergence, "_HEAD_BYTES", 4 * 12 * model.config.vocab_size)  # a sequence at a time
    measured = Divergence(LayerRunner(model, identity_orders(model_shape(model.config).layers)), ids)
    measured.learn_dense()
    layers = list(measured._dense)
    layers[1] = replace(layers[1], mlp_width=0)
    whole = measured.of(0, tuple(layers))
    so_far = (whole.per_sequence.cumsum(0) / len(ids)).tolist()
    between = [(low + high) / 2 for low, high in zip([0.0, *so_far], so_far, strict=False)]
    for limit, run in ((between[0], 1), (between[7], 8), (between[15], 16), (2 * so_far[-1], 16)):
        before = measured.evaluations
        found = measured.within(limit, 0, tuple(layers))
        assert (found is None) == (so_far[-1] > limit)
        assert measured.evaluations - before == pytest.approx(run / 16)
        assert found is None or torch.equal(found.sketch, whole.sketch)


def test_sketches_keep_inner_products() -> None:
    """Of sqrt(p) (z - E_p z), which are half of Fisher's quadratic form of the changes of the logits."""
    model, ids = tiny_model(layers=3), tokens(8, 32)
    runner = LayerRunner(model, identity_orders(model_shape(model.config).layers))
    measured = Divergence(runner, ids)
    measured.learn_dense()
    exact, sketches = [], []
    dense = torch.log_softmax(model(ids, use_cache=False).logits.double(), -1)
    for block in sub_blocks(model):
        with matrix_replaced(block.module, 0.9 * matrix(block.module)):
            effect = measured.of(0, runner.shape.layers)
            z = torch.log_softmax(model(ids, use_cache=False).logits.double(), -1) - dense
        p = dense.exp()
        exact.append((p.sqrt() * (z - (p * z).sum(-1, keepdim=True))).reshape(-1) / math.sqrt(2 * ids.numel()))
        sketches.append(effect.sketch.double())
        # To second order the divergence is the squared length.
        assert float(exact[-1] @ exact[-1]) == pytest.approx(effect.divergence, rel=0.1)
    forms, found = (torch.stack(items) @ torch.stack(items).T for items in (exact, sketches))
    lengths = forms.diagonal().sqrt()
    off = ((found - forms) / (lengths[:, None] * lengths)).abs()
    # 8192 numbers are 32 signs of each word; were all tokens' changes alike, these 32 would be all that averages.
    assert float(off.max()) < math.sqrt(2 / 32)
    assert float(off.mean()) < math.sqrt(2 / 32) / 5


def test_fisher_information_is_that_of_autograd() -> None:
    """Every prediction's own gradient, weighted by its probability, in place of a hundred draws of each."""
    model, ids = tiny_model(layers=2), tokens(3, 6).repeat(100, 1)
    blocks = sub_blocks(model)
    roots = output_sensitivity(model, blocks, ids)
    block = blocks[1]
    total = torch.zeros(32, 32, dtype=torch.float64)
    probes: list[torch.Tensor] = []

    def probe(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        probes.append(torch.zeros_like(output, requires_grad=True))
        return output + probes[-1]

    handle = block.module.register_forward_hook(probe)
    for row in ids[:3]:
        log_p = torch.log_softmax(model(row[None], use_cache=False).logits[0], -1)
        for position, token in np.ndindex(*log_p.shape):
            (gradient,) = torch.autograd.grad(log_p[position, token], probes[-1], retain_graph=True)
            total += float(log_p[position, token].detach().exp()) * (gradient[0].T @ gradient[0]).double()
    handle.remove()
    exact, found = total / total.diagonal().mean(), roots[block.index].double() @ roots[block.index].double()
    found -= 0.1 * torch.eye(32)  # the damping
    cosine = float((exact * found).sum() / (exact.norm() * found.norm()))
    assert cosine > 0.97
    assert torch.allclose(roots[block.index], roots[block.index].T, atol=1e-6)
    assert torch.equal(output_sensitivity(model, blocks, ids)[block.index], roots[block.index])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_gradient_above_the_head_is_that_of_autograd(family: str) -> None:
    """The same draws from the same seed; Gemma-2 caps its logits."""
    model = tiny_model(family)
    assert (getattr(model.config, "final_logit_softcapping", None) is not None) == (family == "gemma2")
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(3)).requires_grad_()
    found = sensitivity.drawn_gradients(model, hidden.detach(), torch.Generator().manual_seed(5), draws=3)
    logits = model.get_output_embeddings()(hidden)
    if family == "gemma2":
        cap = model.config.final_logit_softcapping
        logits = cap * torch.tanh(logits / cap)
    log_p = torch.log_softmax(logits, -1)
    generator = torch.Generator().manual_seed(5)
    drawn = torch.multinomial(log_p.detach().exp(), 3, replacement=True, generator=generator)
    assert found is not None
    for draw in range(3):
        (expected,) = torch.autograd.grad(log_p.gather(1, drawn[:, draw : draw + 1]).sum(), hidden, retain_graph=True)
        assert torch.allclose(found[draw], expected, atol=1e-6)


def test_divergence_between_scored_sizes() -> None:
    scores = BlockScores(
        index=1,
        part="mlp",
        order=np.arange(8),
        losses=np.asarray([9.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.1, 0.0]),
        sizes=np.asarray([0, 1, 4]),
        divergences=np.asarray([2.0, 1.0, 0.2]),
        sketches=np.eye(3, 5, dtype=np.float32),
    )
    assert [scores.divergence(size) for size in (0, 1, 4, 8)] == [2.0, 1.0, 0.2, 0.0]
    found = [scores.divergence(size) for size in range(9)]
    assert found == sorted(found, reverse=True)
    assert scores.divergence(6) == pytest.approx(0.2 * 0.5 / 2.0)  # proportional to the loss beyond the scored sizes
    assert [scores.nearest(size) for size in (0, 1, 4, 7)] == [0, 1, 2, 2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_of_every_family(variant: str) -> None:
    """Removal equals the physically pruned model, the neighbour's part in it included."""
    model, ids, calibration = tiny_model(variant, layers=2), tokens(2, 10), tokens(6, 10, seed=1)
    kept: dict[tuple[str, int], torch.Tensor] = {}
    scoring = Scoring(model, ids, calibration, keep=lambda name, index, values: kept.update({(name, index): values}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for block in scoring.blocks:
        scores = scoring.score(block)
        assert sorted(scores.order.tolist()) == list(range(block.units))
        assert list(scores.sizes) == sorted(set(scores.sizes.tolist()))
        assert np.isfinite(scores.divergences).all()
        assert (scores.divergences >= 0).all()
        helper = scoring.helper(block)
        pruned = prune_model(model, plan_of(model, dict(enumerate(without(model, block)))))
        if helper is not None:
            ours = next(other for other in sub_blocks(pruned) if other.index == helper.index)
            moment, cross = by_hand(model, block, helper, calibration)
            assert torch.allclose(kept["moment", helper.index], moment, rtol=1e-4, atol=1e-6)
            assert torch.allclose(kept["cross", block.index], cross, rtol=1e-3, atol=1e-5)
            damped = moment + ABSORB_RIDGE * moment.diagonal().mean() * torch.eye(len(moment))
            extra = torch.linalg.solve(damped, cross.T).T
            with matrix_replaced(ours.module, matrix(ours.module) + extra):
                expected = divergence_of(model, pruned, ids)
        else:
            expected = divergence_of(model, pruned, ids)
        assert scores.divergence(0) == pytest.approx(float(expected.mean()), rel=2e-3, abs=1e-6)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def by_hand(model: Any, block: SubBlock, helper: SubBlock, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments of the helper's input with itself and with the block's output, from whole passes."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        helper.module.register_forward_hook(lambda _m, inputs, _o: seen.update(x=inputs[0])),
        block.module.register_forward_hook(lambda _m, _i, output: seen.update(y=output)),
    ]
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    x, y = (seen[name].reshape(-1, seen[name].shape[-1]).double() for name in ("x", "y"))
    return x.T @ x / len(x), y.T @ x / len(x)


@pytest.mark.parametrize("variant", [name for name in ONE_OF_EACH if not name.startswith("mamba")])
def test_narrow_sizes_equal_the_compensated_smaller_model(variant: str) -> None:
    model, ids, calibration = tiny_model(variant, layers=2), tokens(2, 10), tokens(6, 10, seed=1)
    moments: dict[int, torch.Tensor] = {}
    scoring = Scoring(
        model, ids, calibration,
        keep=lambda name, index, values: moments.update({index: values}) if name == "moment" else None,
    )  # fmt: skip
    for block in scoring.blocks[:2]:
        scores = scoring.score(block)
        size = int(scores.sizes[-1])
        units = sorted(scores.order[:size].tolist())
        part = {"attention": "kv_groups", "mlp": "mlp_channels"}[block.part]
        keep = {block.layer: replace(keep_all(scoring.shape)[block.layer], **{part: tuple(units)})}
        pruned = prune_model(model, plan_of(model, keep))
        ours = next(other for other in sub_blocks(pruned) if other.index == block.index)
        columns = block.columns[units].reshape(-1)
        with matrix_replaced(
            ours.module, shared_update(matrix(block.module), moments[block.index], columns, ridge=RIDGE)
        ):
            expected = divergence_of(model, pruned, ids)
        assert scores.divergence(size) == pytest.approx(float(expected.mean()), rel=2e-3, abs=1e-6)


def test_skipping_gives_the_same_scores() -> None:
    model, ids = tiny_model(layers=3), tokens(4, 12)
    whole, resumed = Scoring(model, ids, ids), Scoring(model, ids, ids)
    for block in whole.blocks:
        expected = whole.score(block)
        if block.index % 2:
            resumed.skip(block)
            continue
        found = resumed.score(block)
        assert np.array_equal(found.divergences, expected.divergences)
        assert np.array_equal(found.order, expected.order)
        assert np.array_equal(found.sketches, expected.sketches)


@pytest.mark.parametrize(("where", "words"), [
    ("down_proj", "layer 1: its MLP gives"), ("o_proj", "layer 1: its attention gives"),
])  # fmt: skip
def test_activations_that_are_not_finite_name_the_layer(where: str, words: str) -> None:
    model, ids = tiny_model(layers=3), tokens(2, 12)
    for name, parameter in model.named_parameters():
        if name.startswith("model.layers.1.") and where in name:
            parameter.fill_(3e38)
    with pytest.raises(BadInputError, match=words):
        Scoring(model, ids, ids)
    # Only on tokens that nothing is scored on: found by the walk.
    model = tiny_model(layers=3)
    model.model.embed_tokens.weight[60] = torch.inf
    other = torch.full((2, 12), 60)
    scoring = Scoring(model, ids.clamp(max=59), other)
    with pytest.raises(BadInputError, match="layer 0: its attention gives"):
        scoring.score(scoring.blocks[0])
