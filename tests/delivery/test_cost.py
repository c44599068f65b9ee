"""What drives the loop: the metric of the target, read off a table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prune_export.delivery import cost
from prune_export.delivery.cost import Cost
from prune_export.profiles import CostCurve, LatencyTable, PhaseCosts, TableKey
from prune_export.shape import LayerShape, ModelShape
from prune_export.target import Target

DENSE = ModelShape("llama", 64, 16, 100, True, (LayerShape(4, 2, 100),) * 2)
# A first token pays for MLPs, a later one for attentions: what is cheap for one is dear for the other.
TABLE = LatencyTable(
    TableKey(64, 16, 2, 100, 1, 16, 4),
    "measured",
    (
        PhaseCosts("prefill", "int8", 1.0, CostCurve((2,), (0.0,)), CostCurve((100,), (10.0,))),
        PhaseCosts("decode", "int8", 0.5, CostCurve((2,), (2.0,)), CostCurve((100,), (0.25,))),
    ),
)


@pytest.mark.parametrize(
    ("metric", "dense", "without_attention", "without_mlp"),
    [("ttft", 21.0, 21.0, 11.0), ("tpot", 5.0, 3.0, 4.75), ("total", 36.0, 30.0, 25.25)],
)
@pytest.mark.parametrize("statistic", ["p50", "p99"])
def test_plans_cost_what_the_target_limits(
    monkeypatch: pytest.MonkeyPatch, metric: Any, statistic: Any, dense: float, without_attention: float,
    without_mlp: float,
) -> None:  # fmt: skip
    monkeypatch.setattr(cost, "latency_table", lambda job, variant: TABLE)
    # Of a host that is the device: its figures are measured, costs compare plans by their medians.
    profile = SimpleNamespace(latency_table=TABLE)
    job: Any = SimpleNamespace(
        request=SimpleNamespace(target=Target(metric, 1.0, statistic)), profile=profile, measured=True
    )
    found = Cost(job, SimpleNamespace(precision="int8"), None)  # type: ignore[arg-type]
    (layer, _) = DENSE.layers
    assert found.unit == "seconds"
    assert found.predict(DENSE) == pytest.approx(dense)
    assert found.predict(DENSE.with_layers((layer, LayerShape(0, 0, 100)))) == pytest.approx(without_attention)
    assert found.predict(DENSE.with_layers((layer, LayerShape(4, 2, 0)))) == pytest.approx(without_mlp)


def test_memory_falls_by_what_the_runtime_holds_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(runtime=SimpleNamespace(memory_per_byte=2.0))
    monkeypatch.setattr(cost, "find_model", lambda directory: found)
    job: Any = SimpleNamespace(request=SimpleNamespace(target=Target("memory", 1.0)), shape=DENSE)
    variant: Any = SimpleNamespace(
        precision="fp32", directory="", measurement=SimpleNamespace(peak_rss_bytes=10_000_000)
    )
    smaller = DENSE.with_layers((DENSE.layers[0], LayerShape(4, 2, 0)))
    removed = DENSE.parameters() - smaller.parameters()
    assert removed == 3 * 64 * 100 + 64  # gate, up, down, and the norm before them
    assert Cost(job, variant, None).predict(DENSE) == 10_000_000
    assert Cost(job, variant, None).predict(smaller) == 10_000_000 - 2 * 4 * removed
