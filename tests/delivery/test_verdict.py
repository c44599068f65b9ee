"""What decides whether a target is met, on made-up samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from prune_export.delivery.verdict import judged, rounds_error
from prune_export.manifest import Measurement
from prune_export.target import Target, Workload

TOKENS = 20


def measured(*rounds_s: float, peak_bytes: int = 0) -> Measurement:
    """Every token of a round takes the same time."""
    return Measurement(
        artifact="", profile="", host={}, runtime="", precision="int8", threads=1, workload=Workload(),
        ttft_s=tuple(10 * value for value in rounds_s),
        itl_s=tuple(value for value in rounds_s for _ in range(TOKENS)),
        load_s=(0.1,) * len(rounds_s), weights_bytes=0, peak_rss_bytes=peak_bytes, rss_rise_bytes=0, versions={},
    )  # fmt: skip


def test_an_absolute_limit_is_compared_with_all_samples_of_the_variant() -> None:
    variant, anything = measured(1.0, 1.0, 2.0), measured(9.0, 9.0, 9.0)
    for limit, met in ((1.9, False), (2.0, True)):
        found = judged(Target("tpot", limit), baseline=anything, variant=variant)
        assert (found.figure, found.limit, found.met, found.speedups) == (2.0, limit, met, ())
    memory = judged(Target("memory", 99.0), baseline=anything, variant=measured(1.0, peak_bytes=100))
    assert (memory.figure, memory.met) == (100.0, False)


# Ten generations of a first token and two later ones: first tokens are slow in the first three, later ones in the last.
UNEVEN = replace(
    measured(1.0),
    ttft_s=(30.0, 20.0, 15.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 4.0),
    itl_s=(1.0, 1.0) * 9 + (2.0, 8.0),
    load_s=(0.1,),
)


@pytest.mark.parametrize(
    ("metric", "statistic", "figure"),
    [
        ("ttft", "p50", 5.0), ("ttft", "p90", 21.0), ("ttft", "p99", 29.1),
        ("tpot", "p50", 1.0), ("tpot", "p90", 1.1), ("tpot", "p99", 8.0 - 0.19 * 6.0),
        # 32, 22, 17, seven times 7 but for the last, 14.
        ("total", "p50", 7.0), ("total", "p90", 23.0), ("total", "p99", 31.1),
    ],
)  # fmt: skip
def test_each_latency_is_judged_by_its_own_percentile(metric: Any, statistic: Any, figure: float) -> None:
    anything = measured(9.0)
    for share, met in ((0.999, False), (1.001, True)):
        found = judged(Target(metric, share * figure, statistic), baseline=anything, variant=UNEVEN)
        assert found.figure == pytest.approx(figure)
        assert found.met == met


@pytest.mark.parametrize(
    ("metric", "statistic", "speedup"),
    # First tokens half as long, later ones as long; one generation in three waits for something else.
    [("ttft", "p50", 2.0), ("ttft", "p99", 1.0), ("tpot", "p50", 1.0), ("total", "p50", 1.5), ("total", "p99", 1.0)],
)
def test_a_speedup_is_of_the_metric_and_percentile_asked_for(metric: Any, statistic: Any, speedup: float) -> None:
    baseline = replace(measured(1.0), ttft_s=(2.0, 2.0, 50.0), itl_s=(0.5, 0.5) * 3, load_s=(0.1,))
    variant = replace(baseline, ttft_s=(1.0, 1.0, 50.0))
    for factor, met in ((1.02 * speedup, False), (0.98 * speedup, True)):
        found = judged(Target(metric, None, statistic, speedup=factor), baseline=baseline, variant=variant)
        assert found.met == met
        assert found.speedups == pytest.approx((speedup,), rel=0.01)


def test_a_burst_in_one_round_does_not_decide_a_speedup() -> None:
    target = Target("tpot", None, speedup=1.25)
    variant = measured(1.0, 1.0, 2.0, 1.0, 1.0, 1.0)
    found = judged(target, baseline=measured(3.0, 1.3, 2.6, 1.3, 1.3, 1.3), variant=variant)
    assert found.speedups == pytest.approx((3.0, 1.3, 1.3, 1.3, 1.3, 1.3))
    assert (found.figure, found.limit, found.met) == (1.0, pytest.approx(1.3 / 1.25), True)
    # Pooled, the burst in the baseline's first round would have made 1.2 times look like 1.25 and more.
    slow = judged(target, baseline=measured(3.0, 1.2, 2.4, 1.2, 1.2, 1.2), variant=variant)
    assert not slow.met


def test_what_the_order_of_loading_does_to_rounds_cancels() -> None:
    """Every other round the one or the other is loaded first and 1% slower for it; the speed-up is 1.25."""
    for rounds in (2, 3, 4, 5):
        first, second = (1.01, 1.0) * rounds, (1.0, 1.01) * rounds
        baseline, variant = measured(*(1.25 * value for value in first[:rounds])), measured(*second[:rounds])
        for factor, met in ((1.2501, False), (1.2499, True)):
            found = judged(Target("ttft", None, speedup=factor), baseline=baseline, variant=variant)
            assert found.met == met
            assert found.limit / found.figure == pytest.approx(1.25 / factor)


def test_the_error_is_that_of_what_is_judged_and_one_burst_does_not_count() -> None:
    speedup, limit, memory = Target("tpot", None, speedup=1.5), Target("tpot", 1.0), Target("memory", 1.0)
    # Drift common to both in the second round, a burst in the last.
    baseline = measured(2.0, 4.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0)
    variant = measured(1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 5.0)
    assert rounds_error(speedup, baseline=baseline, variant=variant) == 0.0
    assert rounds_error(memory, baseline=baseline, variant=variant) == 0.0
    # Of four rounds, two of each order, the smallest and the largest of the four pairs: 0.29 beyond its ends.
    limited = rounds_error(limit, baseline=baseline, variant=measured(1.0, 4.0, 1.21, 4.0))
    assert limited == pytest.approx((2.2 - 2.0) / 2 / 2.1, rel=0.01)
    ratios = measured(1.0, 4.0, 1.21, 4.0)
    assert rounds_error(speedup, baseline=ratios, variant=measured(1.0, 1.0, 1.0, 1.0)) == pytest.approx(limited)


def test_bursts_and_drift_cost_few_wrong_verdicts() -> None:
    """A true speed-up 4% beside the limit, drift common to both, what is loaded first 1.5% slower, and one burst of 30%
    somewhere in a third of the runs.

    The pooled figures are the comparison.
    """
    random = np.random.default_rng(0)
    wrong = {"paired": 0, "pooled": 0}
    for run in range(400):
        true = 1.25 * (1.04 if run % 2 else 0.96)
        drift = 1 + 0.1 * random.random(6)
        noise = 1 + 0.01 * random.standard_normal((2, 6))
        noise[0, ::2] *= 1.015
        noise[1, 1::2] *= 1.015
        if random.random() < 1 / 3:
            noise[random.integers(2), random.integers(6)] *= 1.3
        baseline, variant = measured(*(true * drift * noise[0])), measured(*(drift * noise[1]))
        met = judged(Target("tpot", None, speedup=1.25), baseline=baseline, variant=variant).met
        wrong["paired"] += met != bool(run % 2)
        pooled = variant.percentile("tpot", "p90") <= baseline.percentile("tpot", "p90") / 1.25
        wrong["pooled"] += pooled != bool(run % 2)
    assert wrong["paired"] < 0.03 * 400, wrong
    assert wrong["paired"] < wrong["pooled"] / 3, wrong
