"""tools/loop_runs.py: what is on record is not run again, and the table says what the records say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from prune_export.delivery.request import Request
from prune_export.target import Target

TARGETS = [Target("tpot", None, speedup=1.2), Target("tpot", 0.5), Target("tpot", 0.1)]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("loop_runs", Path(__file__).parents[1] / "tools" / "loop_runs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "loop_runs", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "dense_artifacts", lambda base, folder: folder)
    monkeypatch.setattr(module, "targets", lambda *_: TARGETS)
    return module


def test_an_interrupted_series_goes_on_and_tabulates(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def run(request: Request, dense: Path) -> object:
        asked.append(str(request.target))
        if request.target.speedup is not None:
            figures = {"limit": 0.8, "claimed": 0.78, "later": 0.84, "later_limit": 0.8, "noise": 0.06}
            return script.Run(str(request.target), 1.5, precision="int8", **figures)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return script.Run(str(request.target), 0.5, infeasible="the smallest model takes 0.2 s")

    monkeypatch.setattr(script, "one_run", run)
    tmp_path.joinpath("reference-fp32-int8").mkdir()
    monkeypatch.setattr(sys, "argv", ["loop_runs.py", "--output", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        script.main()
    script.main()
    assert asked == [str(TARGETS[0]), str(TARGETS[1]), str(TARGETS[1]), str(TARGETS[2])]
    *rows, _, summary = capsys.readouterr().out.splitlines()[-5:]
    figures = "800 ms | 780 ms | 2.5% | 840 ms | 800 ms | 5.0% | 6.0% | 1.5"
    assert rows[0] == f"| tpot p90 at least 1.2x faster than dense, int8 | {figures} |"
    assert rows[1].startswith("| tpot p90 <= 500 ms | infeasible: the smallest model takes 0.2 s |")
    assert all(row.count("|") == 10 for row in (*rows, *script.HEAD.splitlines()))
    assert summary == (
        "1 pruned, 0 dense, 2 refused; undershoot of the pruned: median 2.5%, worst 2.5%; over the limit when measured "
        "again: 1, beyond that measurement's noise: 0"
    )
    artifact = tmp_path / "reference-fp32-int8" / "dense" / "int8"
    artifact.mkdir(parents=True)
    (artifact / "config.json").write_text("{}")  # not a record
    monkeypatch.setattr(sys, "argv", ["loop_runs.py", "--output", str(tmp_path), "--table"])
    script.main()
    tables = capsys.readouterr().out.splitlines()
    assert tables[0] == "reference-fp32-int8"
    assert sorted(tables[4:7]) == sorted(rows)
    assert tables[-1] == f"in all: {summary}"
    assert len(asked) == 4


def test_the_summary_counts_apart_what_was_not_pruned(script: ModuleType) -> None:
    def run(claimed: float, later: float, *, pruned: bool = True, noise: float = 0.02) -> object:
        figures = {"limit": 1.0, "claimed": claimed, "later": later, "later_limit": 1.0, "noise": noise}
        return script.Run("memory <= 1 B", 1.0, precision="int8", pruned=pruned, **figures)

    runs = [run(0.99, 1.01), run(0.95, 1.03), run(0.9, 0.9), run(0.5, 0.5, pruned=False)]
    assert script.summary(runs) == (
        "3 pruned, 1 dense, 0 refused; undershoot of the pruned: median 5.0%, worst 10.0%; over the limit when "
        "measured again: 2, beyond that measurement's noise: 1"
    )
    assert runs[3].row.startswith("| memory <= 1 B, int8 dense | 1 B |")
    assert script.summary([run(0.5, 0.5, pruned=False)]) == "0 pruned, 1 dense, 0 refused"


def test_limits_are_shares_of_the_dense_figure_that_is_measured_once(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the real `targets`
    request = Request(model="reference", device="host", target=Target("ttft", None, speedup=1.1))
    assert script.targets(request, tmp_path, tmp_path, [1.2], []) == [Target("ttft", None, speedup=1.2)]
    (tmp_path / "dense-ttft-p90.figure").write_text("0.5")
    found = script.targets(request, tmp_path, tmp_path, [], [0.5, 0.8])
    assert found == [Target("ttft", 0.25), Target("ttft", 0.4)]
