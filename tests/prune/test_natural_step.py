"""The step towards the dense predictions: its gradients against autograd, its size, and what it gains."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from tiny_models import ONE_OF_EACH, plan_of, tiny_model, tokens, varied_plan  # type: ignore[import-not-found]

from prune_export.prune import natural_step as module
from prune_export.prune.natural_step import best_size, moved, natural_step
from prune_export.prune.refit import refit
from prune_export.prune.sensitivity import len_out
from prune_export.prune.sub_blocks import sub_blocks
from prune_export.prune.surgery import prune_model

IDS = tokens(60, 12, seed=6)
HELD = torch.arange(60) % 5 == 4


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[N, T, V] float32."""
    with torch.no_grad():
        found: torch.Tensor = model(ids, use_cache=False).logits.float()
    return found


def divergence(dense: Any, pruned: Any, ids: torch.Tensor) -> float:
    """Mean KL(dense || pruned) over tokens, in nats."""
    log_p, log_q = (torch.log_softmax(logits(model, ids), -1) for model in (dense, pruned))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def step_of(dense: Any, pruned: Any) -> module.Step:
    wanted = logits(dense, IDS)
    return natural_step(pruned, IDS, HELD, lambda at: wanted[at], stored=torch.float32)


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_the_gradient_is_that_of_autograd(variant: str) -> None:
    """B of every sub-block, against the derivative of the whole divergence by M at M = 0."""
    dense = tiny_model(variant)
    pruned = prune_model(dense, varied_plan(dense))
    blocks, row = sub_blocks(pruned), IDS[0]
    wanted = logits(dense, row[None])[0]
    sums = {block.index: module._Sums(len_out(block)) for block in blocks}
    assert module._learn(pruned, blocks, row, wanted, sums, torch.Generator())
    maps = {block.index: torch.zeros(32, 32, requires_grad=True) for block in blocks}
    with ExitStack() as stack:
        for block in blocks:
            change = maps[block.index]
            stack.callback(
                block.module.register_forward_hook(lambda _m, _i, out, change=change: out + out @ change.T).remove
            )
        log_q = torch.log_softmax(pruned(row[None], use_cache=False).logits[0].float(), -1)
        log_p = torch.log_softmax(wanted, -1)
        found = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), list(maps.values()))
    for index, gradient in zip(maps, found, strict=True):
        # Float32 sums in another order.
        torch.testing.assert_close(sums[index].by_output, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("variant", ["llama", "gemma2"])
def test_drawn_gradients_have_the_covariance_of_the_predictions(variant: str) -> None:
    """E[d d^T] at the head is W^T S (diag q - q q^T) S W, S the slope of the soft cap."""
    model = tiny_model(variant)
    hidden = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    many = hidden.expand(40000, 32).contiguous()
    with torch.no_grad():
        raw = model.lm_head(hidden)[0].double()
        cap = getattr(model.config, "final_logit_softcapping", None)
        slope = torch.ones_like(raw) if cap is None else 1.0 - torch.tanh(raw / cap).square()
        q = torch.softmax(raw if cap is None else cap * torch.tanh(raw / cap), -1)
        table = model.lm_head.weight.double() * slope[:, None]
        exact = table.T @ (torch.diag(q) - torch.outer(q, q)) @ table
        pulls = module._pulls(model, many, torch.log(q).float().expand(40000, -1), torch.Generator().manual_seed(2))
    assert pulls is not None
    pull, drawn = (part.double() for part in pulls)
    assert float(pull.abs().max()) < 1e-5  # the dense predictions are the model's own
    # Of 40000 draws each entry is known to about 1 / sqrt(40000) of the diagonal.
    assert float((drawn.T @ drawn / 40000 - exact).abs().max()) < 0.05 * float(exact.diagonal().max())


@pytest.mark.parametrize("variant", ["llama-biases-tied", "gpt2", "opt", "gemma2", "mamba"])
def test_weights_get_what_was_tried(variant: str) -> None:
    """What the held-out windows judged, a map of the outputs, is what the weights and biases become."""
    dense = tiny_model(variant)
    pruned = prune_model(dense, varied_plan(dense))
    blocks = sub_blocks(pruned)
    generator = torch.Generator().manual_seed(3)
    moves = {block.index: torch.randn(32, 32, generator=generator) for block in blocks}
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    with moved(blocks, moves, 0.05):
        wanted = logits(pruned, IDS[:4])
    for block in blocks:
        module._apply(block, 0.05 * moves[block.index].double(), torch.float32)
    torch.testing.assert_close(logits(pruned, IDS[:4]), wanted, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    assert not any(parameter.is_inference() or parameter.requires_grad for parameter in pruned.parameters())


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_predictions_get_closer(variant: str) -> None:
    dense = tiny_model(variant)
    pruned = prune_model(dense, varied_plan(dense))
    other = tokens(40, 12, seed=7)
    before, held_before = divergence(dense, pruned, other), divergence(dense, pruned, IDS[HELD])
    found = step_of(dense, pruned)
    assert found.size > 0
    assert found.before == pytest.approx(held_before, rel=1e-4)
    assert found.after == pytest.approx(divergence(dense, pruned, IDS[HELD]), rel=1e-3)
    assert divergence(dense, pruned, other) < before
    assert found.layer_tokens > 0
    assert found.head_tokens > 0


def test_the_step_is_part_of_the_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, ids, other = tiny_model(), tokens(340, 12, seed=6), tokens(80, 12, seed=7)
    with_step, without = (prune_model(dense, varied_plan(dense)) for _ in range(2))
    found = refit(dense, with_step, ids)
    monkeypatch.setattr(module, "best_size", lambda value, *, start: {0.0: value(0.0)})
    plain = refit(dense, without, ids)
    assert found.step.size > 0 == plain.step.size
    assert divergence(dense, with_step, other) < divergence(dense, without, other)


def test_progress_goes_on_while_the_step_is_made() -> None:
    dense = tiny_model()
    pruned = prune_model(dense, varied_plan(dense))
    seen: list[tuple[float, float, str]] = []
    refit(dense, pruned, IDS, progress=lambda done, total, detail: seen.append((done, total, detail)))
    shares = [done / total for done, total, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] <= 1.0
    step = [share for share, (_, _, detail) in zip(shares, seen, strict=True) if "predictions" in detail]
    assert len(set(step)) > 10
    assert step[-1] > 0.8


@pytest.mark.parametrize("variant", ["opt", "gpt2"])
def test_rounded_weights_are_judged_as_they_are(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bfloat16 makes of the step is measured; where it costs more than the step gains, nothing moves."""
    dense = tiny_model(variant)
    wanted = logits(dense, IDS)
    pruned = prune_model(dense, varied_plan(dense))
    found = natural_step(pruned, IDS, HELD, lambda at: wanted[at], stored=torch.bfloat16)
    assert found.size > 0
    assert found.after == pytest.approx(divergence(dense, pruned, IDS[HELD]), rel=1e-4)
    assert found.after < found.before
    other = prune_model(dense, varied_plan(dense))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    monkeypatch.setattr(module, "best_size", lambda value, *, start: {0.0: value(0.0), 1e-5: value(0.0) * (1.0 - 1e-4)})
    tiny = natural_step(other, IDS, HELD, lambda at: wanted[at], stored=torch.bfloat16)
    assert tiny.size == 0.0
    assert tiny.after == tiny.before
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_the_same_predictions_need_no_step() -> None:
    dense = tiny_model()
    pruned = prune_model(dense, plan_of(dense, {}))
    assert step_of(dense, pruned).size == 0.0
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, dense.state_dict()[name]), name


def test_without_windows_to_judge_by_nothing_moves() -> None:
    dense = tiny_model()
    pruned = prune_model(dense, varied_plan(dense))
    wanted = logits(dense, IDS)
    for held in (torch.zeros(60, dtype=torch.bool), torch.ones(60, dtype=torch.bool)):
        assert natural_step(pruned, IDS, held, lambda at: wanted[at], stored=torch.float32).size == 0.0


@pytest.mark.parametrize("best", [0.002, 0.01, 0.03, 0.07, 0.2])
def test_the_size_is_that_of_a_parabola(best: float) -> None:
    tried = best_size(lambda size: (size - best) ** 2, start=0.05)
    assert len(tried) <= 5
    assert min(tried, key=lambda size: tried[size]) == pytest.approx(best, rel=1e-6)


def test_no_size_is_better_than_a_worse_one() -> None:
    tried = best_size(lambda size: 1.0 + size, start=0.05)
    assert min(tried, key=lambda size: tried[size]) == 0.0
    overflowed = best_size(lambda size: 1.0 if size == 0.0 else float("inf"), start=0.05)
    assert min(overflowed, key=lambda size: overflowed[size]) == 0.0
