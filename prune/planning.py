"""From a search's result to the plan that surgery executes."""

from __future__ import annotations

from prune_export.plan import PrunePlan
from prune_export.prune.search_result import SearchResult


def make_plan(result: SearchResult, *, source: str, source_digest: str, calibration_digest: str) -> PrunePlan:
    """The plan of a result: the heads of the importance orders as ascending indices into the dense model.

    Args:
        result: of a search.
        source: the model as the user named it.
        source_digest: sha256 of the model.
        calibration_digest: sha256 of the calibration tokens.
    """
    keep = tuple(
        order.kept(layer, dense)
        for order, layer, dense in zip(result.orders, result.shape.layers, result.dense.layers, strict=True)
    )
    return PrunePlan(
        source=source,
        source_digest=source_digest,
        dense=result.dense,
        keep=keep,
        method=result.method,
        cost_unit=result.cost_unit,
        calibration_digest=calibration_digest,
        history=result.history,
    )
