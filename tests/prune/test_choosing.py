from __future__ import annotations

import math
from typing import Any

import pytest
from tiny_models import tiny_model, tokens  # type: ignore[import-not-found]

from prune_export.errors import BadInputError
from prune_export.prune.candidates import Change, apply_change, kv_changes, mlp_changes
from prune_export.prune.choosing import Pick, full_scan, lazy_scan
from prune_export.prune.evaluator import Evaluator, Score, Work
from prune_export.prune.multipruner import MultiPruner
from prune_export.prune.reorder import identity_orders
from prune_export.shape import LayerShape, ModelShape

SHAPE = ModelShape("llama", 32, 8, 61, False, (LayerShape(8, 4, 60),) * 8)


class ConvexEvaluator:
    """Stands in for a model whose log perplexity is a sum of convex functions of what each sub-block lost."""

    def __init__(self) -> None:
        self.shape = SHAPE
        self.orders = identity_orders(SHAPE.layers)
        self.structure = SHAPE.layers
        self.random_access = True
        self.work = Work()

    def move_to(self, structure: tuple[LayerShape, ...]) -> None:
        self.structure = structure

    def score(self, change: Change | None = None, hopeless: object = None) -> Score:
        structure = self.structure if change is None else apply_change(self.structure, change, SHAPE)
        return Score(
            2.0
            + sum(
                (1 + 0.37 * index) * (1 - layer.mlp_width / 60) ** 2
                + (2 + 0.61 * index) * (1 - layer.kv_heads / 4) ** 2
                for index, layer in enumerate(structure)
            )
        )


def search(**settings: Any) -> MultiPruner:
    evaluator: Any = ConvexEvaluator()
    return MultiPruner(
        evaluator, cost=lambda shape: shape.parameters() * 1e-9, cost_unit="seconds", mlp_group=5, **settings
    )


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_lazy_search_equals_the_full_one_where_prices_only_rise(share: float) -> None:
    settings: dict[str, Any] = {"distribution": (0, 80, 20)}
    budget = share * SHAPE.parameters() * 1e-9
    full, lazy = search(**settings).run(budget), search(lazy=True, **settings).run(budget)
    assert len(full.history) > 5
    assert lazy.history == full.history
    assert lazy.evaluations < 0.6 * full.evaluations


def test_lazy_search_meets_its_budget_on_a_model() -> None:
    evaluator = Evaluator(tiny_model(), tokens(2, 12))

    def cost(shape: ModelShape) -> float:
        return shape.parameters() * 1e-9

    results = [
        MultiPruner(evaluator, cost=cost, cost_unit="seconds", mlp_group=5, lazy=lazy).run(0.6 * cost(evaluator.shape))
        for lazy in (False, True)
    ]
    assert all(result.cost <= 0.6 * result.dense_cost for result in results)
    assert results[1].evaluations < results[0].evaluations
    assert results[1].method.endswith("by price, lazily")


def test_lazy_search_needs_prices() -> None:
    with pytest.raises(BadInputError, match=r'a lazy search needs the rule "price", not "perplexity"'):
        search(lazy=True, rule="perplexity")


def picks(scores: dict[Change, float]) -> Any:
    def evaluate(change: Change, after: tuple[LayerShape, ...], _share: float, _best: Pick | None) -> Pick:
        return Pick(change, scores[change], after, 0.0, 0.0)

    return evaluate


def test_ties_infinities_and_empty_lists() -> None:
    changes = [*kv_changes(SHAPE.layers, 1), *mlp_changes(SHAPE.layers, 5)]
    candidates = [(change, apply_change(SHAPE.layers, change, SHAPE)) for change in changes]
    for scan in (full_scan, lambda items, evaluate: lazy_scan(items, evaluate, {})):
        for first in (0, 3, 9):
            scores = {change: 1.0 if index >= first else 2.0 for index, change in enumerate(changes)}
            pick = scan(candidates, picks(scores))
            assert pick is not None
            assert pick.change == changes[first]
        assert scan(candidates, picks(dict.fromkeys(changes, math.inf))) is None
        assert scan([], picks({})) is None
