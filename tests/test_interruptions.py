"""Interrupted and killed deliveries: nothing half-written is left, and the next run goes on where it ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_device import Interrupting, fake_measure_together, fake_panel  # type: ignore[import-not-found]

from prune_export.benchmark import stacks
from prune_export.benchmark.measure import Subject
from prune_export.benchmark.panel_worker import PanelReply, PanelRequest
from prune_export.deliver import deliver
from prune_export.delivery import bench
from prune_export.delivery.request import Request
from prune_export.manifest import Manifest, Measurement
from prune_export.target import Target


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("stride", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interruption_at_any_phase_leaves_nothing_half_written(
    request_: Request,
    tmp_path: Path,
    stride: int,
) -> None:
    complete = Interrupting(at=0)
    deliver(replace(request_, output=tmp_path / "whole"), progress=complete)
    assert len(complete.begun) > 10
    for number in range(1, len(complete.begun) + 1, stride):
        with pytest.raises(KeyboardInterrupt):
            # Another seed each: no run finds what an earlier one left.
            deliver(replace(request_, seed=number), progress=Interrupting(at=number))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "whole"]


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("writer", ["copytree", "save_checkpoint", "write_report", "file_records"])
def test_an_interruption_while_the_artifact_is_written_leaves_the_old_one(
    request_: Request,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: str,
) -> None:
    from prune_export.delivery import publish

    dense = replace(request_, target=Target("tpot", 1.0))  # of a plan, the checkpoint is kept before that and copied
    before = deliver(dense).manifest

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    owner: Any = publish.shutil if writer == "copytree" else publish
    monkeypatch.setattr(owner, writer, interrupted)
    with pytest.raises(KeyboardInterrupt):
        deliver(replace(dense, force=True))
    assert Manifest.load(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} - {"cache"} == {"out"}


@pytest.mark.usefixtures("simulated")
def test_a_killed_run_resumes_to_the_same_plan_without_repeating_work(
    request_: Request,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a device whose timings never repeat: what was learnt before the kill must decide, not new noise."""
    random = np.random.default_rng(0)

    def noisy(subjects: Sequence[Subject], **settings: Any) -> list[Measurement]:
        measured = fake_measure_together(subjects, **settings)
        factors = (1 + 0.03 * random.standard_normal(len(measured))).tolist()
        return [replace(item, itl_s=tuple(value * factor for value in item.itl_s))
                for item, factor in zip(measured, factors, strict=True)]  # fmt: skip

    def noisy_panel(request: PanelRequest) -> PanelReply:
        found = fake_panel(request)
        factors = (1 + 0.03 * random.standard_normal(len(found.tpot_s))).tolist()
        return replace(
            found, tpot_s=tuple((turns[0] * factor,) for turns, factor in zip(found.tpot_s, factors, strict=True))
        )

    monkeypatch.setattr(bench, "measure_together", noisy)
    monkeypatch.setattr(stacks, "run_panel", noisy_panel)
    chosen: dict[str, str] = {}

    class Stopping(Interrupting):
        def note(self, line: str) -> None:
            if line.startswith("plan 1:"):
                chosen["first"] = line
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver(request_, progress=Stopping(at=0))

    class Listening(Interrupting):
        def note(self, line: str) -> None:
            if line.startswith(("plan 1:", "resuming")):
                chosen[line.split()[0]] = line

    first = Listening(at=0)
    deliver(request_, progress=first)
    assert "resuming:" in chosen
    assert chosen["plan"] == chosen["first"]
    assert not any(name.startswith("latency table") for name in first.begun)
    assert not list((tmp_path / "cache" / "runs").iterdir())


def _heed_interrupts() -> None:
    """A test run in the background of a shell ignores SIGINT, and its children would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_in_a_terminal_ends_with_one_line(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "prune_export.cli", "--model", str(checkpoint), "--target-speedup", "1.2x",
               "--calibration", str(text_file), "--eval-text", str(text_file), "-o", str(tmp_path / "out")]  # fmt: skip
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "perplexity through the artifact" in line:
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, "".join(lines) + err
    assert err.splitlines()[-1].startswith("prune-export: interrupted")
    assert "Traceback" not in err
    assert out == ""
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []
