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
    # Between the pairs of the second round with the first (0.5) and with the third.
    assert (found.ratio, found.low, found.high) == pytest.approx((0.4884, 3 / 6.6, 0.5), abs=1e-4)
    assert str(found) == "0.488 (0.455 to 0.500 over 3 rounds)"


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


@pytest.mark.parametrize(("rounds", "efficiency"), [(4, 0.95), (5, 0.88), (7, 0.88), (10, 0.88), (40, 0.88)])
def test_the_standard_error_is_how_far_ratios_scatter(rounds: int, efficiency: float) -> None:
    """Of normal ratios, the order of loading adding as much as they scatter: 4000 draws know scatters to 1.1%, the mean
    of the estimates to 0.8%.

    A mean of the logarithms of as many of the one as of the other order scatters by the square root of the efficiency
    less, if the order is known; a median of all by more than the ratio does.
    """
    draws = 1 + 0.01 * np.random.default_rng(0).standard_normal((4000, rounds))
    draws[:, ::2] *= 1.01
    draws[:, 1::2] /= 1.01
    found = [PairedRatio(tuple(draw)) for draw in draws.tolist()]
    scatter = np.std([item.ratio for item in found])
    assert np.mean([item.ratio for item in found]) == pytest.approx(1.0, abs=0.0005)
    assert np.mean([item.standard_error for item in found]) / scatter == pytest.approx(1.0, abs=0.08)
    assert (0.01 / scatter) ** 2 / rounds > efficiency
    assert np.median(draws, axis=1).std() > 1.1 * scatter


def test_few_rounds_are_uncertain_and_a_burst_in_one_of_many_is_not() -> None:
    assert PairedRatio((1.0,)).ratio == 1.0
    for few in ((1.0,), (1.0, 1.0)):
        assert PairedRatio(few).standard_error == float("inf")
    for rounds in (4, 6):  # too few to tell a burst from what rounds do, so further ones are wanted
        assert PairedRatio((*(1.0,) * (rounds - 1), 1.3)).standard_error > 0.05
    for place in range(8):
        many = [1.0] * 8
        many[place] = 9.0
        assert (PairedRatio(tuple(many)).ratio, PairedRatio(tuple(many)).standard_error) == (1.0, 0.0)


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
