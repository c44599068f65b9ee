from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from plain_multipruner import plain_perplexity  # type: ignore[import-not-found]
from tiny_models import VARIANTS, VOCAB, tiny_model, tokens  # type: ignore[import-not-found]

from prune_export.errors import BadInputError
from prune_export.plan import LayerKeep, PrunePlan
from prune_export.prune import evaluator as evaluator_module
from prune_export.prune.candidates import (
    Change,
    Structure,
    apply_change,
    block_changes,
    kv_changes,
    mixer_changes,
    mlp_changes,
)
from prune_export.prune.evaluator import Evaluator
from prune_export.prune.reorder import identity_orders, importance_orders
from prune_export.prune.surgery import prune_model

# Both sides are fp32; sums over 24 to 32 terms come in another order.
RELATIVE = 1e-5


def physical_perplexity(model: Any, evaluator: Evaluator, structure: Structure, ids: torch.Tensor) -> float:
    """Through surgery and the family's own forward pass."""
    keep = tuple(
        LayerKeep(
            tuple(sorted(order.kv_groups[: layer.kv_heads])),
            tuple(sorted(order.mlp_channels[: layer.mlp_width])),
            tuple(sorted(order.mixer_units[: layer.mixer_width])),
            layer.state_size > 0 or evaluator.shape.layers[0].state_size == 0,
        )
        for order, layer in zip(evaluator.orders, structure, strict=True)
    )
    plan = PrunePlan("tiny", "", evaluator.shape, keep, "", "parameters", "")
    perplexity: float = plain_perplexity(prune_model(model, plan), ids)
    return perplexity


def walk(evaluator: Evaluator, steps: int) -> Iterator[tuple[Structure, float]]:
    """Takes changes of all kinds, one after the other, and yields each one's structure and score before it is taken."""
    kinds = (
        block_changes,
        lambda s: mlp_changes(s, 7) or mixer_changes(s, 3, "mlp"),
        lambda s: kv_changes(s, 1) or mixer_changes(s, 1, "attention"),
    )
    for step in range(steps):
        structure = evaluator.structure
        for kind in kinds:
            for change in kind(structure):
                yield apply_change(structure, change, evaluator.shape), evaluator.perplexity(change)
        changes = kinds[step % 3](structure)
        evaluator.move_to(apply_change(structure, changes[step % len(changes)], evaluator.shape))
        yield evaluator.structure, evaluator.perplexity()


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_physically_pruned_model(variant: str) -> None:
    model, ids = tiny_model(variant, layers=3), tokens(3, 14)
    evaluator = Evaluator(model, ids)
    assert evaluator.perplexity() == pytest.approx(plain_perplexity(model, ids), rel=RELATIVE)
    for structure, perplexity in walk(evaluator, 3):
        assert perplexity == pytest.approx(physical_perplexity(model, evaluator, structure, ids), rel=RELATIVE)


@pytest.mark.parametrize("states", [0, 3, 4, 6, 8])
def test_small_caches_give_the_same_numbers(states: int) -> None:
    model, ids = tiny_model(), tokens(3, 14)
    cache_bytes = states * ids.numel() * 32 * 4
    small = list(walk(Evaluator(model, ids, cache_bytes=cache_bytes), 4))
    assert small == list(walk(Evaluator(model, ids), 4))


def test_small_caches_hold_few_states() -> None:
    evaluator = Evaluator(tiny_model(), tokens(3, 14), cache_bytes=6 * 3 * 14 * 32 * 4)
    evaluator.perplexity(Change("blocks", 4, "mlp", 0))
    assert len(evaluator._states) + 2 <= 6


def test_batches_and_head_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model(), tokens(5, 14)
    whole = Evaluator(model, ids).perplexity(Change("mlp", 1, "mlp", 8))
    monkeypatch.setattr(evaluator_module, "_BATCH_TOKENS", 28)
    monkeypatch.setattr(evaluator_module, "_HEAD_BYTES", 4 * VOCAB * 5)
    assert Evaluator(model, ids).perplexity(Change("mlp", 1, "mlp", 8)) == pytest.approx(whole, rel=1e-6)


def test_only_the_suffix_is_run() -> None:
    evaluator = Evaluator(tiny_model(), tokens(1, 8))
    evaluator.perplexity()
    assert evaluator.work.block_evaluations == 10
    evaluator.perplexity(Change("blocks", 4, "attention", 0))  # the way there once, then one MLP
    assert evaluator.work.block_evaluations == 10 + 8 + 1
    evaluator.perplexity(Change("blocks", 3, "attention", 0))
    assert evaluator.work.block_evaluations == 19 + 3
    assert evaluator.work.plain_evaluations == 10 + 9 + 9


def test_reordering_preserves_the_function_and_the_model() -> None:
    model, ids = tiny_model("qwen2"), tokens(2, 12)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    orders = importance_orders(model)
    assert orders != identity_orders(Evaluator(model, ids).shape.layers)
    sorted_perplexity = Evaluator(model, ids, orders=orders).perplexity()
    plain = Evaluator(model, ids, orders=identity_orders(Evaluator(model, ids).shape.layers)).perplexity()
    assert sorted_perplexity == pytest.approx(plain, rel=RELATIVE)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_activations_that_are_not_finite_name_the_layer() -> None:
    model = tiny_model()
    model.model.layers[3].mlp.down_proj.weight.fill_(1e38)
    evaluator = Evaluator(model, tokens(1, 8))
    with pytest.raises(BadInputError, match=r"layer 3: its MLP gives activations that are not finite"):
        evaluator.perplexity(Change("blocks", 4, "mlp", 0))


def test_hopeless_candidates_score_infinity() -> None:
    model = tiny_model()
    model.model.norm.weight.fill_(3e38)
    assert Evaluator(model, tokens(1, 8)).log_perplexity() == math.inf


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (torch.full((1, 8), VOCAB), r"reach from 61 to 61, the model knows 0 to 60"),
        (torch.zeros(8), r"shape \[8\]: at least one sequence of 2 to 64"),
        (torch.zeros(2, 1), r"shape \[2, 1\]"),
        (torch.zeros(1, 65), r"shape \[1, 65\]"),
    ],
)
def test_unusable_tokens(ids: torch.Tensor, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        Evaluator(tiny_model(), ids)
