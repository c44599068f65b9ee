"""How many rounds a compared pair gets, and what the user is told when they were not enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prune_export.delivery import bench
from prune_export.delivery.request import Variant
from prune_export.manifest import Measurement
from prune_export.target import Target

Make = Callable[..., Measurement]
# Quartiles of five values 1.6% apart: 0.016 / 0.98 standard deviations, sqrt(pi / 10) of them, 0.9%; and 2.2%, 1.2%.
CERTAIN, UNCERTAIN = (1.0, 1.0, 1.008, 1.016, 1.016), (1.0, 1.0, 1.011, 1.022, 1.022)


@pytest.fixture
def job() -> Any:
    notes: list[str] = []
    return SimpleNamespace(
        measured=True,
        shape=SimpleNamespace(parameters=lambda: 1000),
        progress=SimpleNamespace(phase=lambda _: nullcontext(), note=notes.append),
        memory=SimpleNamespace(paused=nullcontext, add=lambda _: None),
        profile=SimpleNamespace(device="CPU"),
        workload=None,
        threads=1,
        request=SimpleNamespace(target=Target("tpot", None, "p50", speedup=1.2)),
        notes=notes,
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, make_measurement: Make) -> dict[str, Any]:
    """What `measure_together` is asked; it answers with the rounds under "rounds_s" of the pruned model."""
    known: dict[str, Any] = {}

    def pretend(subjects: Sequence[Any], **settings: Any) -> list[Measurement]:
        known.update(settings)
        return [of_rounds(make_measurement, (1.0,) * 5), of_rounds(make_measurement, known["rounds_s"])]

    monkeypatch.setattr(bench, "measure_together", pretend)
    monkeypatch.setattr(bench, "standing_together", lambda directories, *_, **__: [list(range(len(directories)))])
    return known


def of_rounds(make: Make, rounds_s: Sequence[float]) -> Measurement:
    return make((1.0,) * len(rounds_s), tuple(rounds_s), rounds=len(rounds_s))


def variants() -> list[Variant]:
    return [Variant(name, "int8", Path(name), None, 10.0) for name in ("dense", "pruned")]  # type: ignore[arg-type]


def test_rounds_go_on_until_their_median_is_certain(job: Any, asked: dict[str, Any], make_measurement: Make) -> None:
    asked["rounds_s"] = CERTAIN
    bench.measured(job, variants(), title="", judged=True)
    assert (asked["rounds"], asked["most_rounds"]) == (3, 9)
    for rounds_s, enough in ((CERTAIN, True), (UNCERTAIN, False)):
        found = [of_rounds(make_measurement, (1.0,) * 5), of_rounds(make_measurement, rounds_s)]
        assert asked["settled"](found) == enough
    assert job.notes == []


def test_the_user_is_told_how_uncertain_a_busy_machine_is(job: Any, asked: dict[str, Any]) -> None:
    asked["rounds_s"] = UNCERTAIN
    bench.measured(job, variants(), title="", judged=True)
    (note,) = job.notes
    assert note == (
        "note: after 5 rounds the standard error of what they are judged by is 1.2% (limit 1%): the machine is busy"
    )
    job.notes.clear()
    bench.measured(job, variants(), title="")
    assert asked["settled"] is None
    assert asked["most_rounds"] == 3
    assert job.notes == []
