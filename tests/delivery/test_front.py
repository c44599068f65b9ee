"""Which of the structures that were looked at are shown as the predicted front."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prune_export.delivery.front import around, pareto_front, points
from prune_export.manifest import PredictedPoint
from prune_export.plan import PlanStep
from prune_export.prune.search_result import FrontPoint, SearchResult
from prune_export.shape import LayerShape, ModelShape

SHAPE = ModelShape("llama", 64, 16, 100, True, (LayerShape(4, 2, 96),) * 3)
RESULT = SearchResult(
    dense=SHAPE, shape=SHAPE, orders=(), history=(PlanStep("blocks", 0, "mlp", 0, 11.0, 8.0),), perplexity=12.0,
    dense_perplexity=10.0, cost=7.0, dense_cost=10.0, cost_unit="seconds", method="", evaluations=0,
    block_evaluations=0, plain_evaluations=0, front=(FrontPoint(6.0, 15.0, ()), FrontPoint(5.0, float("inf"), ())),
)  # fmt: skip


def test_all_that_a_search_went_through_is_known() -> None:
    assert points(RESULT) == [
        PredictedPoint(10.0, 1.0), PredictedPoint(7.0, 1.2), PredictedPoint(8.0, 1.1), PredictedPoint(6.0, 1.5),
    ]  # fmt: skip
    # Steps on other tokens have other perplexities.
    assert PredictedPoint(8.0, 1.1) not in points(RESULT, alike=False)
    assert points(replace(RESULT, dense_perplexity=0.0)) == []


def test_the_front_has_what_nothing_beats_and_the_dense_model_first() -> None:
    dense, best = PredictedPoint(10.0, 1.0), PredictedPoint(8.0, 0.9)
    beaten = [PredictedPoint(9.0, 1.2), PredictedPoint(8.0, 1.0), PredictedPoint(6.0, 2.0)]
    far = PredictedPoint(5.0, 1.5)
    assert pareto_front([far, *beaten, best, dense, dense]) == (dense, best, far)
    assert pareto_front([]) == ()
    known = points(RESULT)
    front = pareto_front(known)
    assert front[0] == PredictedPoint(10.0, 1.0)
    for point in known:  # by brute force
        beats = [other for other in known if other.cost <= point.cost and other.rise <= point.rise and other != point]
        assert (point in front) == (not beats)


def test_other_budgets_lie_between_dense_and_nearly_nothing() -> None:
    assert around(8.0, dense=10.0) == pytest.approx((9.0, 7.2, 8.5, 6.4, 9.5))
    assert around(3.0, dense=10.0) == pytest.approx((6.5, 4.75, 8.25))
