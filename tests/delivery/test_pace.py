"""Limits in seconds on a machine whose speed drifts, on made-up samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_report import manifest  # type: ignore[import-not-found]
from test_verdict import measured  # type: ignore[import-not-found]

from prune_export.delivery.pace import Pace, at_pace, further_at_pace
from prune_export.delivery.summary import claim
from prune_export.delivery.verdict import Verdict
from prune_export.manifest import FurtherTarget
from prune_export.target import Target

LIMIT, SPEEDUP, MEMORY = Target("tpot", 1.0), Target("tpot", None, speedup=1.3), Target("memory", 100.0)


def test_the_pace_is_against_the_median_of_all_measurements() -> None:
    pace = Pace(LIMIT)
    assert pace.add(measured(1.0, 1.0)) == 1.0
    assert pace.now == 1.0
    pace.add(measured(1.2))
    assert pace.now == pytest.approx(1.2 / 1.1)
    pace.add(measured(1.1))
    assert pace.now == pytest.approx(1.0)


def test_a_resumed_run_knows_the_earlier_pace() -> None:
    pace = Pace(LIMIT, (1.0, 1.0))
    pace.add(measured(1.25))
    assert pace.now == pytest.approx(1.25)


def test_the_pace_is_of_the_latency_that_is_limited() -> None:
    first = Pace(Target("ttft", 1.0))
    assert first.add(measured(1.0)) == pytest.approx(10.0)
    # Of memory it is that of tpot, which is shown for it.
    assert Pace(MEMORY).add(measured(1.0, peak_bytes=77)) == pytest.approx(1.0)


def test_only_a_limit_in_seconds_follows_the_pace() -> None:
    found = Verdict(0.9, 1.0)
    assert at_pace(LIMIT, found, 0.9) == Verdict(1.0, 1.0)
    assert at_pace(SPEEDUP, found, 0.9) == found
    assert at_pace(MEMORY, found, 0.9) == found
    others = (FurtherTarget(LIMIT, 1.0, 0.9), FurtherTarget(SPEEDUP, 1.0, 0.9), FurtherTarget(MEMORY, 100.0, 0.9))
    assert [item.figure for item in further_at_pace(others, 0.5)] == [1.8, 0.9, 0.9]


def test_a_claim_says_when_the_last_measurement_was_the_faster_one() -> None:
    made = replace(manifest(), target=Target("tpot", 9e-4), limit=9e-4, speedups=())
    own = next(item.measurement for item in made.candidates if item.delivered)
    assert own is not None
    assert own.percentile("tpot", "p90") == pytest.approx(8.4e-4)
    assert claim(replace(made, figure=8.4e-4)).splitlines()[0] == "met: measured tpot p90 840 us <= 900 us"
    assert claim(replace(made, figure=8.82e-4)).splitlines()[0] == (
        "met: measured tpot p90 882 us <= 900 us at the whole run's speed (840 us in the last measurement, 5.0% faster)"
    )
