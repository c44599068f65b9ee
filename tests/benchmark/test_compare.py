"""Paired ratios and drift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from prune_export.benchmark.compare import (
    PairedRatio,
    drift,
    drift_warning,
    paired_figures,
    paired_ratio,
    per_round,
    per_turn,
)
from prune_export.manifest import Measurement

Make = Callable[..., Measurement]


def test_rounds_are_told_apart(make_measurement: Make) -> None:
    found = make_measurement((1.0, 1.0, 2.0, 2.0), (0.1, 0.3, 0.1, 0.3, 0.5, 0.5, 0.5, 0.7), rounds=2)
    assert per_round(found, "ttft", "p50") == (1.0, 2.0)
    assert per_round(found, "tpot", "p50") == pytest.approx((0.2, 0.5))
    assert per_round(found, "total", "p50") == pytest.approx((1.4, 3.1))


def test_the_ratio_is_taken_round_by_round(make_measurement: Make) -> None:
    # The machine slows down threefold; the ratio stays one half.
    fast = make_measurement((1.0, 2.0, 3.0), (0.1, 0.2, 0.3), rounds=3)
    slow = make_measurement((2.0, 4.0, 6.6), (0.2, 0.4, 0.6), rounds=3)
    found = paired_ratio(fast, slow, "tpot", "p50")
    assert found.per_round == pytest.approx((0.5, 0.5, 0.5))
    found = paired_ratio(fast, slow, "ttft", "p90")
    assert (found.ratio, found.low, found.high) == pytest.approx((0.5, 3 / 6.6, 0.5))
    assert str(found) == "0.500 (0.455 to 0.500 over 3 rounds)"


def test_within_a_round_the_median_turn_decides(make_measurement: Make) -> None:
    """Two rounds of three turns: in one each has a burst, the other gets half as fast after its first turn."""
    ours = replace(make_measurement((1.0,) * 6, (0.1, 0.5, 0.1, 0.1, 0.2, 0.2), rounds=2), turns=3)
    # Twice as many repeats: two a turn.
    theirs = (0.2, 0.2, 0.2, 0.2, 0.9, 0.9, 0.2, 0.2, 0.4, 0.4, 0.4, 0.4)
    other = replace(make_measurement((1.0,) * 12, theirs, rounds=2), turns=3)
    assert per_turn(other, "tpot", "p50") == [pytest.approx((0.2, 0.2, 0.9)), pytest.approx((0.2, 0.4, 0.4))]
    assert paired_figures(ours, other, "tpot", "p90") == ((0.1, 0.2), (0.2, 0.4))
    assert paired_ratio(ours, other, "tpot", "p90").per_round == pytest.approx((0.5, 0.5))
    # Without turns the burst of a third of the samples is the 90th percentile.
    assert paired_ratio(replace(ours, turns=1), other, "tpot", "p90").per_round[0] < 0.48
    even = replace(make_measurement((1.0, 1.0), (0.1, 0.2)), turns=2)
    assert paired_figures(even, replace(even, itl_s=(0.1, 0.1)), "tpot", "p50") == ((0.1, 0.1),)


@pytest.mark.parametrize("rounds", [2, 3, 5, 9, 40])
def test_the_standard_error_is_how_far_medians_scatter(rounds: int) -> None:
    """Of normal ratios: 20000 draws know both to 1%.

    The large-sample formula is 23% too high for two rounds, 2% to 13% for more: one round more rather than one less.
    """
    draws = 1 + 0.01 * np.random.default_rng(0).standard_normal((20_000, rounds))
    scatter = np.median(draws, axis=1).std()
    estimates = [PairedRatio(tuple(draw)).standard_error for draw in draws[:4000].tolist()]
    assert 1.0 < np.mean(estimates) / scatter < 1.25
    assert PairedRatio((1.0,)).standard_error == float("inf")
    assert PairedRatio((1.0, 1.0, 1.0, 1.0, 9.0)).standard_error == 0.0


def test_rounds_that_only_one_has_are_left_out(make_measurement: Make) -> None:
    two, one = make_measurement((1.0, 2.0), (0.1, 0.2), 2), make_measurement((2.0,), (0.1,))
    assert paired_ratio(two, one, "ttft", "p50").per_round == (0.5,)
    assert paired_ratio(one, two, "ttft", "p50").per_round == (2.0,)


def test_samples_that_do_not_divide_into_rounds_are_refused(make_measurement: Make) -> None:
    with pytest.raises(ValueError, match="do not divide into 2 rounds"):
        per_round(make_measurement((1.0, 2.0, 3.0), (0.1, 0.2, 0.3), 2), "ttft", "p50")


@pytest.mark.parametrize(("last", "warned"), [(1.02, False), (1.05, True), (0.95, True)])
def test_a_baseline_that_moves_by_more_than_three_percent_is_warned_about(
    make_measurement: Make, last: float, warned: bool
) -> None:
    found = make_measurement((1.0, 1.0, 1.0), (0.1, 0.1, 0.1 * last), rounds=3)
    assert drift(found, "tpot") == pytest.approx(abs(last - 1))
    text = drift_warning(found, "tpot")
    assert bool(text) == warned
    assert not warned or ("tpot p50 moved by 5.0% over 3 rounds (limit 3%)" in text and "\n" not in text)
