"""Predictions from a latency table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prune_export.errors import BadInputError
from prune_export.profiles import CostCurve, HeldOutError, LatencyTable, PhaseCosts, TableKey, TableRecord
from prune_export.shape import LayerShape

HEADS, WIDTHS = (1, 2, 4), (128, 256, 512)
ATTENTION, MLP = CostCurve(HEADS, (1e-5, 1.5e-5, 3e-5)), CostCurve(WIDTHS, (1e-5, 2e-5, 5e-5))
SLOW = (1e-4, 2e-4, 4e-4)
DECODE = PhaseCosts("decode", "int8", 5e-5, ATTENTION, MLP)
PREFILL = PhaseCosts("prefill", "int8", 1e-4, CostCurve(HEADS, SLOW), CostCurve(WIDTHS, SLOW))
KEY = TableKey(192, 32, 3, 4096, 1, 384, 128)
TABLE = LatencyTable(KEY, "measured", (PREFILL, DECODE))
LAYERS = (LayerShape(12, 4, 512), LayerShape(0, 0, 256), LayerShape(3, 1, 0), LayerShape(0, 0, 0))


@pytest.mark.parametrize("metric", ["decode", "tpot"])
def test_a_model_costs_the_fixed_part_and_its_blocks(metric: str) -> None:
    # By hand: fixed + attention(4) + mlp(512) + mlp(256) + attention(1); gone blocks cost nothing.
    assert TABLE.predict(LAYERS, metric, precision="int8") == pytest.approx(5e-5 + 3e-5 + 5e-5 + 2e-5 + 1e-5, rel=1e-12)
    assert TABLE.predict((), metric, precision="int8") == 5e-5


def test_total_is_the_first_token_and_the_later_ones() -> None:
    first = TABLE.predict(LAYERS, "ttft", precision="int8")
    later = TABLE.predict(LAYERS, "tpot", precision="int8")
    assert first == pytest.approx(1e-4 + 4e-4 + 4e-4 + 2e-4 + 1e-4)
    assert TABLE.predict(LAYERS, "total", precision="int8") == pytest.approx(first + 127 * later)


def test_between_points_the_cost_is_linear() -> None:
    curve = DECODE.mlp
    for width in (128, 129, 200, 256, 300, 511, 512):
        assert curve.at(width) == pytest.approx(np.interp(width, curve.sizes, curve.seconds), rel=1e-12)


def test_below_the_first_point_the_first_segment_goes_on_but_not_below_zero() -> None:
    assert DECODE.attention.at(0) == 0.0
    assert CostCurve((2, 4), (3e-6, 5e-6)).at(1) == pytest.approx(2e-6)
    assert CostCurve((100, 200), (1e-6, 5e-6)).at(50) == 0.0
    assert CostCurve((2,), (3e-6,)).at(1) == 3e-6


def test_a_block_above_the_table_is_refused() -> None:
    with pytest.raises(BadInputError, match="ends at size 512, asked for 640: measure one for this model"):
        TABLE.predict((LayerShape(0, 0, 640),), "tpot", precision="int8")


def test_another_model_is_refused_with_every_difference() -> None:
    TABLE.check(KEY)
    with pytest.raises(BadInputError, match=r"hidden_size 192 \(here 576\), vocab_size 4096 \(here 100\)"):
        TABLE.check(replace(KEY, hidden_size=576, vocab_size=100))


def test_a_missing_precision_and_metric_are_named() -> None:
    with pytest.raises(BadInputError, match="no decode costs in fp32; it has prefill int8, decode int8"):
        TABLE.predict(LAYERS, "tpot", precision="fp32")
    with pytest.raises(BadInputError, match='ttft, tpot or total, not "memory"'):
        TABLE.predict(LAYERS, "memory", precision="int8")


@pytest.mark.parametrize(
    ("sizes", "seconds", "words"),
    [
        ((), (), "each size needs one"),
        ((1, 2), (1.0,), "each size needs one"),
        ((2, 1), (1.0, 2.0), "ascending"),
        ((0, 1), (1.0, 2.0), "above zero"),
        ((1,), (-1.0,), "costs must be finite and not negative, got -1.0"),
        ((1, 2), (1.0, float("nan")), "costs must be finite and not negative, got nan"),
    ],
)
def test_a_curve_that_makes_no_sense_is_refused(sizes: tuple[int, ...], seconds: tuple[float, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CostCurve(sizes, seconds)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fixed_s": -1.0}, "fixed_s must be finite and not negative, got -1.0"),
        ({"fixed_s": float("nan")}, "fixed_s must be finite and not negative, got nan"),
        ({"error": float("inf")}, "error must be finite and not negative, got inf"),
        ({"p90": 0.01}, r"p90 must be 0 \(not measured\) or at least 1, a multiple of the median, got 0.01"),
        ({"p90": 1.3, "p99": 1.2}, r"p99 must be 0 \(not measured\) or at least p90 \(1.3\) and 1, got 1.2"),
    ],
)
def test_costs_that_make_no_sense_are_refused(changes: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(DECODE, **changes)  # type: ignore[arg-type]


def test_a_table_of_nothing_or_with_costs_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size must be at least 1, got 0"):
        replace(KEY, hidden_size=0)
    with pytest.raises(ValueError, match="costs of decode in int8 are there twice"):
        replace(TABLE, costs=(PREFILL, DECODE, DECODE))


def test_a_table_says_how_far_it_can_be_trusted() -> None:
    fitted = replace(TABLE, costs=(replace(PREFILL, error=0.05), replace(DECODE, error=0.01)))
    expected = "predicted by a measured table, 5.0% off on average on what it was fitted to"
    assert fitted.trust("total", precision="int8") == fitted.trust("ttft", precision="int8") == expected
    assert "1.0% off" in fitted.trust("tpot", precision="int8")
    estimate = replace(fitted, source="roofline")
    assert estimate.trust("tpot", precision="int8") == (
        "predicted from the device's figures alone (roofline): up to 1% off on average, 8% in the ratio to the dense "
        "model, where that was checked (docs/devices.md)"
    )
    errors = tuple(
        HeldOutError(phase, "int8", 20, mean, p95, 0.2, 0.3, 0.01)
        for phase, mean, p95 in (("prefill", 0.02, 0.04), ("decode", 0.03, 0.05))
    )
    record = TableRecord({}, {}, "2026-11-29", "openvino", 2, 30, 500.0, errors)
    checked = replace(fitted, record=record)
    assert checked.trust("ttft", precision="int8").startswith(
        "predicted by a measured table: 2.0% off on average, 4.0%"
    )
    assert (
        "3.0% off on average, 5.0% at the 95th percentile, in the ratio to the dense model timed beside, on 20 models "
        "that it was not fitted to; how much faster or slower the device is on another day comes on top"
    ) in checked.trust("total", precision="int8")
    drifted = replace(record, held_out=(replace(errors[0], seconds_mean=0.31), errors[1]))
    told = replace(fitted, record=drifted).trust("total", precision="int8")
    assert "2.0% off" in told
    assert "timed beside (31.0% in seconds), on 20 models" in told
    with pytest.raises(BadInputError, match="no decode costs in int4"):
        checked.trust("tpot", precision="int4")


def test_percentiles_are_known_of_single_latencies_where_they_were_measured() -> None:
    table = replace(TABLE, costs=(replace(PREFILL, p90=1.1, p99=1.2), replace(DECODE, p90=1.3, p99=1.7)))
    found = {
        (metric, statistic): table.tail(metric, statistic, precision="int8")
        for metric in ("tpot", "ttft", "total")
        for statistic in ("p50", "p90", "p99")
    }
    assert found == {
        ("tpot", "p50"): 1.0, ("tpot", "p90"): 1.3, ("tpot", "p99"): 1.7,
        ("ttft", "p50"): 1.0, ("ttft", "p90"): 1.1, ("ttft", "p99"): 1.2,
        ("total", "p50"): 1.0, ("total", "p90"): 0.0, ("total", "p99"): 0.0,
    }  # fmt: skip
    assert TABLE.tail("tpot", "p90", precision="int8") == 0.0  # of a profile that was written before
    with pytest.raises(BadInputError, match="no decode costs in fp32"):
        table.tail("tpot", "p90", precision="fp32")


def test_what_a_latency_needs_is_in_a_precision() -> None:
    table = replace(TABLE, costs=(PREFILL, DECODE, replace(DECODE, precision="fp32")))
    assert table.precisions(["tpot"]) == ("int8", "fp32")
    assert table.precisions(["ttft"]) == table.precisions(["total"]) == table.precisions(["tpot", "ttft"]) == ("int8",)
