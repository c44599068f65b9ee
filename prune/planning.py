"""From a search's result to the plan that surgery executes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from prune_export.plan import PrunePlan
from prune_export.prune.search_result import FrontPoint, SearchResult
from prune_export.records import to_json


def make_plan(
    result: SearchResult,
    *,
    source: str,
    source_digest: str,
    calibration_digest: str,
    compensated: bool = False,
    uniform: bool = False,
) -> PrunePlan:
    """The plan of a result: the heads of the importance orders as ascending indices into the dense model.

    Args:
        result: of a search.
        source: the model as the user named it.
        source_digest: sha256 of the model.
        calibration_digest: sha256 of the calibration tokens.
        compensated: what stays is to be fitted to what goes.
        uniform: the result is uniform, and the model is to be written as a stock one.
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
        compensated=compensated,
        uniform=uniform,
    )


def save_front(path: Path, front: Sequence[FrontPoint], *, cost_unit: str) -> None:
    """Writes a Pareto front as JSON: cost, calibration perplexity and layers of each point, by rising cost."""
    data = {"cost_unit": cost_unit, "front": [to_json(point) for point in front]}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf8")


def front_path(plan: Path) -> Path:
    """Where the front of a plan's search lies: "plan.front.json" beside "plan.json"."""
    return plan.with_suffix(".front.json")
