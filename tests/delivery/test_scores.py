"""Scores that outlive their run: the next target of the same model takes them; no more of them is kept than said."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from prune_export import cli
from prune_export.delivery import scores
from prune_export.delivery.scores import close_scores, open_scores
from prune_export.plan import PrunePlan
from prune_export.prune.scoring import Scoring


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRUNE_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scores"


def plan(checkpoint: Path, text: Path, output: Path, ratio: str) -> PrunePlan:
    arguments = ["plan", "--model", str(checkpoint), "--calibration", str(text), "--target-ratio", ratio]
    arguments += ["--mlp-group", "8", "--calibration-windows", "4", "--calibration-length", "64", "-o", str(output)]
    assert cli.main(arguments) == 0
    return PrunePlan.load(output)


def test_a_second_target_is_planned_from_the_first_ones_scores(
    checkpoint: Path,
    text_file: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = plan(checkpoint, text_file, tmp_path / "alone.json", "40%")
    for path in cache.glob("*"):
        assert not list(path.glob("used-by-*"))  # over: may be deleted
    monkeypatch.setenv("PRUNE_EXPORT_CACHE", str(tmp_path / "other"))
    plan(checkpoint, text_file, tmp_path / "first.json", "20%")
    assert "earlier run" not in capsys.readouterr().err

    def refused(self: Scoring, block: object) -> None:
        raise AssertionError("scored again")

    with monkeypatch.context() as patch:
        patch.setattr(Scoring, "score", refused)
        second = plan(checkpoint, text_file, tmp_path / "second.json", "40%")
        assert "the scores of an earlier run with this model and calibration are taken" in capsys.readouterr().err
    assert second == alone
    # Scores of other pruning code are none.
    monkeypatch.setattr(scores, "_code_digest", lambda: "another version")
    assert plan(checkpoint, text_file, tmp_path / "third.json", "40%") == alone
    assert "earlier run" not in capsys.readouterr().err


def test_the_oldest_go_first_but_none_that_a_run_works_with(cache: Path) -> None:
    folders = []
    for number, run in enumerate(("killed", "a", "b", "c")):
        folders.append(open_scores(f"model {number}", "text", run=run))
        folders[-1].mkdir()
        (folders[-1] / "block").write_bytes(bytes(1000))
    for number, run in enumerate(("a", "b"), start=1):
        close_scores(run, limit_bytes=2000)
        os.utime(folders[number].parent, (number, number))
    assert all(folder.exists() for folder in folders)
    close_scores("c", limit_bytes=2000)
    assert [folder.exists() for folder in folders] == [True, False, True, True]
    (folders[3] / "block").write_bytes(bytes(3000))
    close_scores("another", limit_bytes=2000)
    assert [folder.exists() for folder in folders] == [True, False, True, False], "the large one leaves room"
    close_scores("another", limit_bytes=0)
    assert [path / "scores" for path in cache.iterdir()] == folders[:1]


def test_a_full_disk_keeps_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close_scores("none")  # nothing was ever kept
    for free, kept in ((10**9, True), (3999, False)):
        folder = open_scores("model", "text", run="run")
        folder.mkdir(exist_ok=True)
        (folder / "block").write_bytes(bytes(1000))
        monkeypatch.setattr(scores.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        close_scores("run")
        assert folder.exists() == kept


def test_taking_scores_makes_them_the_latest(cache: Path) -> None:
    for number in (0, 1):
        folder = open_scores(f"model {number}", "text", run="run")
        folder.mkdir()
        (folder / "block").write_bytes(bytes(1000))
    again = open_scores("model 0", "text", run="run")
    for number, path in enumerate(sorted(cache.iterdir(), key=lambda path: path != again.parent)):
        (path / "used-by-run").unlink()
        os.utime(path, (9 - number, 9 - number))
    close_scores("run", limit_bytes=1000)
    assert [path / "scores" for path in cache.iterdir()] == [again]
