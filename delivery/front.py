"""What is predicted of structures that were never built: cost by the latency table against calibration perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prune_export.manifest import PredictedPoint
from prune_export.prune.search_result import SearchResult

# Reductions to look at, as multiples of the one that was asked for: those nearest to it first.
_REDUCTIONS = (0.5, 1.4, 0.75, 1.8, 0.25)
_LARGEST_REDUCTION = 0.95  # of the dense cost


def around(budget: float, *, dense: float) -> tuple[float, ...]:
    """Other budgets between the dense cost and nearly nothing, the nearest to `budget` first."""
    reduction = dense - budget
    budgets = (dense - multiple * reduction for multiple in _REDUCTIONS)
    return tuple(other for other in budgets if dense * (1.0 - _LARGEST_REDUCTION) <= other < dense)


def points(result: SearchResult, *, alike: bool = True) -> list[PredictedPoint]:
    """All that a search's result tells: the dense model, the structure found, what it went through or traded.

    A smallest structure that was looked up without a search has no dense perplexity and tells nothing.

    Args:
        result: of a search.
        alike: all steps were scored on the same tokens, so that their perplexities can be compared.
    """
    base = result.dense_perplexity
    if base <= 0.0:
        return []
    known = [
        (result.dense_cost, base),
        (result.cost, result.perplexity),
        *((step.cost, step.perplexity) for step in result.history if alike),
        *((point.cost, point.perplexity) for point in result.front),
    ]
    return [PredictedPoint(cost, value / base) for cost, value in known if math.isfinite(value)]


def pareto_front(known: Iterable[PredictedPoint]) -> tuple[PredictedPoint, ...]:
    """The dense model, then those that no other one beats in both cost and rise, the dearest first.

    Args:
        known: with the dense model, which is the dearest.
    """
    ordered = sorted(known, key=lambda item: (item.cost, item.rise))
    if not ordered:
        return ()
    front: list[PredictedPoint] = []
    for point in ordered:
        if not front or point.rise < front[-1].rise:
            front.append(point)
    dense = max(ordered, key=lambda item: (item.cost, -abs(item.rise - 1.0)))
    return (dense, *(point for point in reversed(front) if point != dense))
