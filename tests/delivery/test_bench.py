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
from prune_export.target import Target, Workload

Make = Callable[..., Measurement]
# Standard errors of 0.8% and 1.2%.
CERTAIN, UNCERTAIN = (1.0, 1.0, 1.013, 1.026, 1.026), (1.0, 1.0, 1.02, 1.04, 1.04)


@pytest.fixture
def job() -> Any:
    notes: list[str] = []
    return SimpleNamespace(
        measured=True,
        shape=SimpleNamespace(parameters=lambda: 1000),
        progress=SimpleNamespace(phase=lambda _: nullcontext(), note=notes.append),
        memory=SimpleNamespace(paused=nullcontext, add=lambda _: None),
        profile=SimpleNamespace(device="CPU"),
        workload=Workload(1, 4, 11),
        threads=1,
        request=SimpleNamespace(target=Target("tpot", None, "p50", speedup=1.2), further=()),
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


def test_rounds_go_on_until_what_they_say_is_certain(job: Any, asked: dict[str, Any], make_measurement: Make) -> None:
    asked["rounds_s"] = CERTAIN
    bench.measured(job, variants(), title="", judged=True)
    assert (asked["rounds"].least, asked["rounds"].most, asked["rounds"].samples) == (4, 10, 72)
    for rounds_s, enough in ((CERTAIN, True), (UNCERTAIN, False)):
        found = [of_rounds(make_measurement, (1.0,) * 5), of_rounds(make_measurement, rounds_s)]
        assert asked["rounds"].settled(found) == enough
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
    assert asked["rounds"].settled is None
    assert asked["rounds"].most == 4
    assert job.notes == []


def test_a_process_leaves_as_many_samples_as_the_target_that_wants_the_most(job: Any, asked: dict[str, Any]) -> None:
    asked["rounds_s"] = CERTAIN
    job.request.further = (Target("memory", 1.0), Target("ttft", 1.0, "p90"))
    bench.measured(job, variants(), title="")
    assert asked["rounds"].samples == 360 * 10
    job.request.further, job.request.target = (), Target("memory", 1.0, "p99")
    bench.measured(job, variants(), title="")
    assert asked["rounds"].samples == 72
