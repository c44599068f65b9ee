"""What a delivery says of its targets, from records made up by hand."""

from __future__ import annotations

from dataclasses import replace

from test_report import manifest  # type: ignore[import-not-found]

from prune_export.delivery.summary import claim
from prune_export.manifest import FurtherTarget, Manifest
from prune_export.target import Target

LATENCY, FIRST, MEMORY = Target("tpot", 0.01), Target("ttft", 1.0), Target("memory", float(2 << 20))


def judged(figure: float, *further: FurtherTarget, measured: bool = True) -> Manifest:
    """A target of 10 ms, and what was found of it."""
    met = figure <= 0.01 and all(item.met for item in further)
    made: Manifest = replace(
        manifest(measured=measured), target=LATENCY, limit=0.01, figure=figure, met=met, further=further, speedups=()
    )
    return made


def test_a_missed_claim_says_on_which_side_of_the_limit_it_is() -> None:
    assert claim(judged(0.012)).splitlines()[0] == "not met: measured tpot p90 12.0 ms > 10.0 ms"
    assert claim(judged(0.008)).splitlines()[0] == "met: measured tpot p90 8.00 ms <= 10.0 ms"
    elsewhere = claim(judged(0.012, measured=False)).splitlines()[0]
    assert elsewhere == "predicted, not measured: tpot p90 12.0 ms would miss 10.0 ms"


def test_every_target_is_judged_by_itself() -> None:
    missed, held = FurtherTarget(FIRST, 1.0, 1.5), FurtherTarget(MEMORY, float(2 << 20), float(1 << 20))
    assert claim(judged(0.008, missed, held)).splitlines()[:3] == [
        "met: measured tpot p90 8.00 ms <= 10.0 ms",
        "not met: measured ttft p90 1.50 s > 1.00 s",
        "met: measured memory 1.00 MiB <= 2.00 MiB",
    ]
    assert claim(judged(0.012, held)).splitlines()[:2] == [
        "not met: measured tpot p90 12.0 ms > 10.0 ms",
        "met: measured memory 1.00 MiB <= 2.00 MiB",
    ]


def test_a_speed_up_is_not_called_missed_for_another_target() -> None:
    missed = FurtherTarget(MEMORY, float(2 << 20), float(3 << 20))
    first, second, third = claim(replace(manifest(), met=False, further=(missed,))).splitlines()[:3]
    assert first == "met: measured tpot p90 750 us <= 800 us"
    assert second.startswith("1.33x >= 1.25x, the median of 3 paired rounds")
    assert third == "not met: measured memory 3.00 MiB > 2.00 MiB"


def test_a_share_of_the_parameters() -> None:
    made = replace(manifest(), target=Target("parameters", 0.2), limit=0.2)
    assert claim(replace(made, figure=0.22)) == "met: 22.0% of the parameters removed >= 20.0%"
    assert claim(replace(made, figure=0.18)) == "not met: 18.0% of the parameters removed < 20.0%"
