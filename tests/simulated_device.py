"""A device without noise in the place of this machine, and a request for it; `conftest.py` has the fixtures."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prune_export.benchmark import stacks
from prune_export.benchmark.measure import Rounds, Subject
from prune_export.benchmark.panel_worker import PanelReply, PanelRequest
from prune_export.benchmark.runtimes import find_model
from prune_export.benchmark.stacks import ExportedStack
from prune_export.delivery import bench, ir_checks, latency, workshop
from prune_export.delivery.ir_worker import perform
from prune_export.delivery.request import Request, SearchSettings
from prune_export.delivery.stacks import Design, build_stack
from prune_export.manifest import Measurement
from prune_export.progress import Progress
from prune_export.shape import ModelShape
from prune_export.target import Target, Workload

FIXED_S, PER_BYTE_S = 1e-3, 1e-8


def fake_measure_together(
    subjects: Sequence[Subject], *, rounds: Rounds, workload: Workload, **_: Any
) -> list[Measurement]:
    """A device without noise: every token takes a fixed time and a time for each byte of the weights."""
    results = []
    for subject in subjects:
        found = find_model(subject.directory)
        weights = found.weights_bytes
        seconds = FIXED_S + PER_BYTE_S * weights
        results.append(
            Measurement(
                artifact=str(subject.directory), profile="host", host={"processor": "simulated", "cores": "1"},
                runtime=found.runtime.name, precision=subject.precision, threads=1, workload=workload,
                ttft_s=(10 * seconds,) * rounds.least, itl_s=(seconds,) * rounds.least * (workload.new_tokens - 1),
                load_s=(0.1,) * rounds.least, weights_bytes=weights, peak_rss_bytes=10_000_000 + 2 * weights,
                rss_rise_bytes=2 * weights, versions={},
            )
        )  # fmt: skip
    return results


def fake_panel(request: PanelRequest) -> PanelReply:
    """The same device, asked turn by turn."""
    weights = [find_model(Path(directory)).weights_bytes for directory in request.directories]
    seconds = [FIXED_S + PER_BYTE_S * size for size in weights]
    return PanelReply(tuple((10 * each,) for each in seconds), tuple((each,) for each in seconds))


def stacks_once(folder: Path) -> Callable[..., ExportedStack]:
    """`build_stack` that builds a stack for the first delivery that times it, and copies it for the others."""
    made: dict[str, Path] = {}

    def build(shape: ModelShape, design: Design, directory: Path, **settings: Any) -> ExportedStack:
        key = repr((shape, design.layers, sorted(settings.items())))
        if key not in made:
            made[key] = folder / str(len(made))
            build_stack(shape, design, made[key], **settings)
        shutil.copytree(made[key], directory)
        return ExportedStack(design.layers, directory)

    return build


def simulate(monkeypatch: pytest.MonkeyPatch, build: Callable[..., ExportedStack]) -> None:
    """The simulated device; to save seconds, stacks are built once, IRs run here and no other budgets are looked at."""
    monkeypatch.setattr(workshop, "_LOOK_AROUND_S", 0.0)
    monkeypatch.setattr(latency, "build_stack", build)
    monkeypatch.setattr(bench, "measure_together", fake_measure_together)
    monkeypatch.setattr(stacks, "run_panel", fake_panel)
    monkeypatch.setattr(ir_checks, "run_task", lambda task, report=print: perform(task, report))


def small_request(checkpoint: Path, text_file: Path, tmp_path: Path) -> Request:
    """A speed-up of a tiny model, searched and scored on little text."""
    return Request(
        model=str(checkpoint),
        device="host",
        target=Target("tpot", None, speedup=1.2),
        workload=Workload(prompt_tokens=16, new_tokens=8),
        output=tmp_path / "out",
        search=SearchSettings(mlp_group=16, calibration_windows=4, calibration_length=64),
        calibration=str(text_file),
        eval_text=str(text_file),
        eval_tokens=1024,
        command="prune-export (test)",
    )


class Interrupting(Progress):
    """Ctrl-C as the n-th phase begins."""

    def __init__(self, at: int) -> None:
        super().__init__(quiet=True)
        self.begun: list[str] = []
        self._at = at

    def phase(self, name: str, *, expected_s: float = 0.0) -> Any:
        self.begun.append(name)
        if len(self.begun) == self._at:
            raise KeyboardInterrupt
        return super().phase(name, expected_s=expected_s)
