"""What a delivery says of its targets, from records made up by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_report import PLAN, manifest, text_of  # type: ignore[import-not-found]

from prune_export.delivery.axes import axis_words
from prune_export.delivery.card import delivery_card
from prune_export.delivery.summary import claim, table
from prune_export.manifest import Candidate, FurtherTarget, Manifest
from prune_export.target import Statistic, Target

LATENCY, FIRST, MEMORY = Target("tpot", 0.01), Target("ttft", 1.0), Target("memory", float(2 << 20))


def judged(figure: float, *further: FurtherTarget, measured: bool = True) -> Manifest:
    """A target of 10 ms, and what was found of it; the delivered model's tokens take as long as is claimed."""
    met = figure <= 0.01 and all(item.met for item in further)
    made: Manifest = replace(
        manifest(measured=measured), target=LATENCY, limit=0.01, figure=figure, met=met, further=further, speedups=()
    )
    return replace(made, candidates=tuple(_taking(item, figure) for item in made.candidates))


def _taking(candidate: Candidate, seconds: float) -> Candidate:
    if candidate.measurement is None or not candidate.delivered:
        return candidate
    tokens = (seconds,) * len(candidate.measurement.itl_s)
    return replace(candidate, measurement=replace(candidate.measurement, itl_s=tokens))


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
    assert second.startswith("1.33x >= 1.25x by 3 paired rounds")
    assert third == "not met: measured memory 3.00 MiB > 2.00 MiB"


def test_a_share_of_the_parameters() -> None:
    made = replace(manifest(), target=Target("parameters", 0.2), limit=0.2)
    assert claim(replace(made, figure=0.22)) == "met: 22.0% of the parameters removed >= 20.0%"
    assert claim(replace(made, figure=0.18)) == "not met: 18.0% of the parameters removed < 20.0%"


def test_a_predicted_median_is_called_one() -> None:
    made = replace(judged(0.008, FurtherTarget(FIRST, 1.0, 0.5), measured=False), medians=("tpot",))
    assert claim(made).splitlines()[:2] == [
        "predicted, not measured: tpot median 8.00 ms would meet 10.0 ms",
        "predicted, not measured: ttft p90 500 ms would meet 1.00 s",
    ]
    assert axis_words(made) == "tpot median"
    # What became of it once it was measured is of the statistic that was asked for.
    assert claim(replace(made, claim="measured")).startswith("met: measured tpot p90 8.00 ms")
    assert axis_words(replace(made, claim="measured")) == "tpot p90"


@pytest.mark.parametrize(
    ("statistic", "medians", "column"),
    [("p90", (), "tpot p90"), ("p90", ("tpot",), "tpot p50"), ("p50", (), "tpot p50"), ("p99", (), "tpot p99")],
)
def test_a_prediction_stands_under_what_it_is_of(statistic: Statistic, medians: tuple[str, ...], column: str) -> None:
    made = replace(manifest(measured=False), target=Target("tpot", 0.01, statistic), medians=medians)
    head, first, *_ = table(made).splitlines()
    assert head.index(column) + len(column) == first.index("~2.00 ms") + len("~2.00 ms")
    card = delivery_card(made, PLAN)
    titles, _, cells, *_ = [line.split(" | ") for line in card.splitlines() if line.startswith("| ")]
    assert [title for title, cell in zip(titles, cells, strict=True) if cell.startswith("~")] == [column]
    page = text_of(made, PLAN)
    assert page.count("~2.00 ms</td>") == 1
